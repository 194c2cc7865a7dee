//! Reads everything, decides what each file needs, and counts. Nothing is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::backup;
use super::convert::{Item, Merged, Out, Progress, Source, Tracking, clash, shadow_of};
use super::layout::{self, FIRST_NATIVE, INFO, Kind, MAIN, SHARD, SHARDS_KEY, Table, VERSION_KEY};
use super::{DbiReport, FileReport, FileStatus, Report, Request, Side, Status, Untracked, about, refused};
use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use crate::header;
use crate::lmdb::{self, DbiStat, EnvOptions, Environment, Info, ReadTxn};
use crate::merge::PRIVATE_PREFIX;

/// More than PowerDNS and Lightning Stream ever make.
pub const MAX_DBS: u32 = 256;
/// Pages for the tree above, lists of free pages, small DBIs.
const SPARE_PAGES: u64 = 128;
/// Shards that PowerDNS can be told to make are far fewer.
const MAX_SHARDS: u32 = 65_536;

/// How long a server may take to be the first to open a file.
const START_PAUSE: Duration = Duration::from_millis(20);
const START_ATTEMPTS: u32 = 25;

/// A file as it was found.
struct File {
    path: PathBuf,
    /// `None`: it is absent, or empty.
    env: Option<Environment>,
    users: Vec<i32>,
}

impl File {
    /// Asks who has it open, then opens it to look.
    fn open(path: PathBuf, no_subdir: bool) -> Result<Self> {
        let data_file = data_file(&path, no_subdir);
        if fs::metadata(&data_file).map_or(true, |meta| meta.len() == 0) {
            return Ok(Self { path, env: None, users: Vec::new() });
        }
        let users = lmdb::users(&path, no_subdir).map_err(|e| about(&path, e))?.into_iter().collect();
        check_open(&path, no_subdir)?;
        let options = EnvOptions { no_subdir, read_only: true, max_dbs: MAX_DBS, ..EnvOptions::default() };
        let env = Environment::open(&path, options).map_err(|e| about(&path, e))?;
        Ok(Self { path, env: Some(env), users })
    }

    fn check_unused(&self) -> Result<()> {
        check_unused(&self.path, &self.users)
    }
}

/// Another run has it for itself, or a server that is just starting: to open it would wait for that, which nobody could stop.
fn check_open(path: &Path, no_subdir: bool) -> Result<()> {
    for attempt in 0.. {
        match lmdb::excluded_by(path, no_subdir).map_err(|e| about(path, e))? {
            Some(pid) if attempt == START_ATTEMPTS => return check_unused(path, &[pid]),
            Some(_) => std::thread::sleep(START_PAUSE),
            None => break,
        }
    }
    Ok(())
}

pub fn check_unused<'a>(path: &Path, users: impl IntoIterator<Item = &'a i32>) -> Result<()> {
    let named = |pid: &i32| match pid {
        0 => "a process of another pid namespace".to_owned(),
        pid => format!("process {pid}"),
    };
    let pids: Vec<_> = users.into_iter().map(named).collect();
    if pids.is_empty() {
        return Ok(());
    }
    let text = format!("LMDB {} is in use by {}: stop it first", path.display(), pids.join(", "));
    Err(Error::new(Code::InUse, text))
}

pub fn data_file(path: &Path, no_subdir: bool) -> PathBuf {
    if no_subdir { path.to_owned() } else { path.join("data.mdb") }
}

pub fn shard_path(main: &Path, number: u32) -> PathBuf {
    let mut name = main.as_os_str().to_owned();
    name.push(format!("-{number}"));
    name.into()
}

/// What is in a file.
struct Shape {
    dbis: Vec<DbiStat>,
    info: Info,
}

impl Shape {
    fn read(env: &Environment, view: &ReadTxn<'_>) -> Result<Self> {
        let dbis = view.dbi_names().map(|name| view.stat(name)).collect::<Result<_>>()?;
        Ok(Self { dbis, info: env.info()? })
    }

    fn dbi(&self, name: &str) -> Option<&DbiStat> {
        self.dbis.iter().find(|dbi| dbi.name == name)
    }

    fn entries(&self, name: &str) -> u64 {
        self.dbi(name).map_or(0, |dbi| dbi.entries)
    }

    fn page_bytes(&self) -> u64 {
        u64::from(self.info.page_bytes)
    }

    /// Bytes of the file that may hold something.
    fn used_bytes(&self) -> u64 {
        (self.info.last_page + 1) * self.page_bytes()
    }

    fn side(&self, tables: &'static [Table], name: fn(&Table) -> &'static str) -> Presence {
        let (there, missing) = tables.iter().map(name).partition(|name| self.dbi(name).is_some());
        Presence { there, missing }
    }

    fn has_shadow(&self, tables: &[Table]) -> bool {
        tables.iter().any(|table| self.dbi(&shadow_of(table.old)).is_some())
    }

    fn has_private(&self) -> bool {
        self.dbis.iter().any(|dbi| dbi.name.starts_with(PRIVATE_PREFIX))
    }

    fn counts(&self, names: &[&str]) -> String {
        names.iter().map(|name| format!("{name} {}", self.entries(name))).collect::<Vec<_>>().join(", ")
    }
}

/// DBIs of one form.
struct Presence {
    there: Vec<&'static str>,
    missing: Vec<&'static str>,
}

/// What is done to the DBIs of a file.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Nothing.
    None,
    /// From old to new, which are emptied first; timestamps are 0 without tracking.
    Convert(Option<Tracking>),
    /// The new ones are there; with tracking their timestamps are rescued.
    InPlace(Option<Tracking>),
}

/// What is done to a file.
pub struct FilePlan {
    pub path: PathBuf,
    pub present: bool,
    pub schema: Option<u32>,
    pub state: &'static str,
    pub tables: &'static [Table],
    pub work: Work,
    /// In the order of the tables.
    pub reports: Vec<DbiReport>,
    /// Entries written in place.
    pub changes: u64,
    pub drop_old: bool,
    pub drop_private: bool,
    /// Transaction that was read.
    pub txn_id: u64,
    pub map_bytes: u64,
    pub used_bytes: u64,
    pub file_bytes: u64,
    /// Bytes that the map must have.
    pub need_bytes: u64,
}

impl FilePlan {
    /// Something is written into it, apart from other files' records.
    pub fn is_changed(&self) -> bool {
        matches!(self.work, Work::Convert(_)) || self.changes > 0 || self.drop_old || self.drop_private
    }

    fn is_native(&self) -> bool {
        matches!(self.work, Work::InPlace(_))
    }

    pub fn source<'e, 't>(&self, view: &'t ReadTxn<'e>, table: &'static Table) -> Result<Option<Source<'e, 't>>> {
        match self.work {
            Work::None => Ok(None),
            Work::Convert(tracking) => Source::new(view, table, false, tracking).map(Some),
            Work::InPlace(tracking) => Source::new(view, table, true, tracking).map(Some),
        }
    }
}

/// What is done in all.
pub struct Plan {
    pub report: Report,
    pub main: FilePlan,
    /// By number.
    pub shards: Vec<FilePlan>,
    /// All records go to shard 0.
    pub merge: bool,
    /// Files that a merge which was interrupted after all else has left; all that is in them is in shard 0.
    pub leftovers: Vec<PathBuf>,
    /// What DBI `pdns` gets.
    pub info: Vec<InfoValue>,
    /// Entries looked at, and the bytes they stand for.
    pub walked: (u64, u64),
}

/// An entry of DBI `pdns`: key, timestamp, value.
pub type InfoValue = (Vec<u8>, u64, Vec<u8>);

/// Why not; also what the state is called.
struct Refusal {
    state: &'static str,
    path: PathBuf,
    text: String,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        refused(&refusal.path, refusal.text)
    }
}

/// What was found, with a view of each file that is there.
struct Found<'e> {
    files: &'e [File],
    views: Vec<Option<ReadTxn<'e>>>,
    shapes: Vec<Option<Shape>>,
}

impl<'e> Found<'e> {
    fn read(files: &'e [File]) -> Result<Self> {
        let (mut views, mut shapes) = (Vec::new(), Vec::new());
        for file in files {
            let (view, shape) = match &file.env {
                Some(env) => {
                    let here = |e| about(&file.path, e);
                    let view = env.read_latest().map_err(here)?;
                    let shape = Shape::read(env, &view).map_err(here)?;
                    (Some(view), Some(shape))
                }
                None => (None, None),
            };
            views.push(view);
            shapes.push(shape);
        }
        Ok(Self { files, views, shapes })
    }

    /// Nobody came who does not know of our transactions.
    fn check_unshared(&self) -> Result<()> {
        self.files.iter().filter_map(|file| file.env.as_ref()).try_for_each(Environment::check_unshared)
    }
}

/// The numbers in DBI `pdns`: schema, shards.
fn numbers(view: &ReadTxn<'_>) -> Result<(Option<u32>, Option<u32>)> {
    let Some(dbi) = view.dbi(INFO)? else { return Ok((None, None)) };
    if dbi.flags != 0 {
        return Ok((None, None));
    }
    let mut cursor = view.cursor(dbi)?;
    let mut number = |key| cursor.find(key, false).map(|stored| stored.and_then(layout::number));
    Ok((number(VERSION_KEY)?, number(SHARDS_KEY)?))
}

/// All files of a main database: itself, then its shards. Also its schema and the number of shards.
struct Files {
    files: Vec<File>,
    is_main: bool,
    schema: Option<u32>,
    shards: Option<u32>,
}

impl Files {
    fn open(path: &Path, no_subdir: bool, check: impl Fn(&File) -> Result<()>) -> Result<Self> {
        let main = File::open(path.to_owned(), no_subdir)?;
        check(&main)?;
        let (mut is_main, mut schema, mut shards) = (false, None, None);
        if let Some(env) = &main.env {
            let view = env.read_latest().map_err(|e| about(path, e))?;
            is_main = view.dbi(INFO)?.is_some();
            (schema, shards) = numbers(&view).map_err(|e| about(path, e))?;
        }
        let mut files = vec![main];
        for number in 0..shards.unwrap_or(0).min(MAX_SHARDS) {
            let file = File::open(shard_path(path, number), no_subdir)?;
            check(&file)?;
            files.push(file);
        }
        Ok(Self { files, is_main, schema, shards })
    }
}

/// What the user decided, as far as it matters here.
struct Choice {
    side: Option<Side>,
    tracking: Option<Tracking>,
    keep_shadow: bool,
}

fn file_plan(file: &File, shape: Option<&Shape>, txn_id: u64, tables: &'static [Table]) -> FilePlan {
    FilePlan {
        path: file.path.clone(),
        present: shape.is_some(),
        schema: None,
        state: "absent",
        tables,
        work: Work::None,
        reports: Vec::new(),
        changes: 0,
        drop_old: false,
        drop_private: false,
        txn_id,
        map_bytes: shape.map_or(0, |shape| shape.info.map_bytes),
        used_bytes: shape.map_or(0, Shape::used_bytes),
        file_bytes: shape.map_or(0, |shape| shape.info.file_bytes),
        need_bytes: shape.map_or(0, Shape::used_bytes),
    }
}

impl Choice {
    /// Timestamps come from the shadow when the file has any.
    fn tracking(&self, shape: &Shape, tables: &[Table]) -> Option<Tracking> {
        self.tracking.filter(|_| shape.has_shadow(tables))
    }

    fn convert(&self, plan: &mut FilePlan, shape: &Shape) {
        plan.state = "migrate";
        plan.work = Work::Convert(self.tracking(shape, plan.tables));
        plan.drop_old = true;
        plan.drop_private = !self.keep_shadow && shape.has_private();
    }

    fn in_place(&self, plan: &mut FilePlan, shape: &Shape) {
        let rescue = shape.has_shadow(plan.tables);
        plan.state = if rescue { "rescue" } else { "native" };
        plan.work = Work::InPlace(self.tracking(shape, plan.tables));
        plan.drop_private = rescue && !self.keep_shadow;
    }

    /// The new ones count, whatever was tracked for the old.
    fn drop_old(&self, plan: &mut FilePlan, shape: &Shape) {
        plan.state = "mixed";
        plan.work = Work::InPlace(None);
        plan.drop_old = true;
        plan.drop_private = !self.keep_shadow && shape.has_private();
    }

    fn main(&self, plan: &mut FilePlan, shape: &Shape, schema: u32) -> std::result::Result<(), Refusal> {
        plan.schema = Some(schema);
        let refuse = |state, text| Err(Refusal { state, path: plan.path.clone(), text });
        if !layout::KNOWN.contains(&schema) {
            let (from, to) = layout::KNOWN.into_inner();
            return refuse("unsupported", format!("schema {schema} is not known; {from} to {to} are"));
        }
        let (old, new) = (shape.side(&MAIN, |table| table.old), shape.side(&MAIN, |table| table.new));
        let native = match (old.there.is_empty(), new.there.is_empty(), self.side) {
            (false, false, None) => {
                let text = side_by_side(shape, &old.there, &new.there);
                return refuse("mixed", text);
            }
            (false, false, Some(side)) => side == Side::New,
            _ => schema >= FIRST_NATIVE,
        };
        let wanted = if native { &new } else { &old };
        if !wanted.missing.is_empty() {
            let text = format!("schema {schema}, but DBI {} is missing", wanted.missing.join(", "));
            return refuse("unsupported", text);
        }
        match (native, old.there.is_empty()) {
            (false, _) => self.convert(plan, shape),
            (true, true) => self.in_place(plan, shape),
            (true, false) => self.drop_old(plan, shape),
        }
        Ok(())
    }

    /// `main_is_old`: the main database is converted.
    fn shard(&self, plan: &mut FilePlan, shape: &Shape, main_is_old: bool) -> std::result::Result<(), Refusal> {
        let [table] = &SHARD;
        let (old, new) = (shape.dbi(table.old), shape.dbi(table.new));
        let refuse = |state, text| Err(Refusal { state, path: plan.path.clone(), text });
        plan.schema = if new.is_some() { Some(FIRST_NATIVE) } else { old.map(|_| FIRST_NATIVE - 1) };
        match (old, new) {
            (None, None) if shape.dbis.is_empty() => plan.state = "empty",
            (None, None) => return refuse("unsupported", format!("neither DBI {} nor {}", table.old, table.new)),
            (Some(_), None) if main_is_old => self.convert(plan, shape),
            (Some(_), None) => {
                return refuse(
                    "unsupported",
                    format!("the main database has a new schema, but DBI {} is missing", table.new),
                );
            }
            (None, Some(_)) => {
                self.in_place(plan, shape);
                if main_is_old && plan.state == "native" {
                    plan.state = "done";
                }
            }
            (Some(_), Some(new)) => match self.side {
                Some(Side::Old) => self.convert(plan, shape),
                Some(Side::New) => self.drop_old(plan, shape),
                // What was begun here and not finished is in neither of them alone: an old program may have added to a shard that was
                // done already.
                None if main_is_old && new.entries == 0 => self.convert(plan, shape),
                None => return refuse("mixed", side_by_side(shape, &[table.old], &[table.new])),
            },
        }
        Ok(())
    }
}

fn side_by_side(shape: &Shape, old: &[&str], new: &[&str]) -> String {
    format!(
        "DBIs of old and new schemas are side by side, with entries: {}; {}. Decide which count: --use old or --use new",
        shape.counts(old),
        shape.counts(new)
    )
}

impl Plan {
    /// # Errors
    /// [`Code::Refused`] and [`Code::InUse`].
    pub fn make(request: &Request, cancel: &Cancel) -> Result<Self> {
        let check = |file: &File| if request.write && !request.force { file.check_unused() } else { Ok(()) };
        let files = Files::open(&request.path, request.no_subdir, check)?;
        let mut leftovers = Vec::new();
        if request.merge_shards && files.shards == Some(1) {
            for path in strays(&request.path) {
                let file = File::open(path, request.no_subdir)?;
                check(&file)?;
                leftovers.push(file);
            }
        }
        let found = Found::read(&files.files)?;
        let plan = Self::of(request, &files, &found, &leftovers, cancel).map_err(|e| match e.code {
            // What is wrong with the data is found before anything is written.
            Code::HeaderInvalid | Code::DbiUnsupported | Code::InvalidArgument => Error { code: Code::Refused, ..e },
            _ => e,
        })?;
        found.check_unshared()?;
        Ok(plan)
    }

    fn of(request: &Request, files: &Files, found: &Found<'_>, leftovers: &[File], cancel: &Cancel) -> Result<Self> {
        let path = request.path.as_path();
        let (Some(view), Some(shape)) = (&found.views[0], &found.shapes[0]) else {
            return Err(refused(path, "the main database is missing"));
        };
        if !files.is_main {
            return Err(refused(path, "it has no DBI pdns, so it is not a main database of PowerDNS"));
        }
        let (Some(schema), Some(shards)) = (files.schema, files.shards) else {
            return Err(refused(path, "DBI pdns tells no schema or no number of shards"));
        };
        if !(1..=MAX_SHARDS).contains(&shards) {
            return Err(refused(path, format!("it says that there are {shards} shards")));
        }
        let tracking = Tracking { untracked: request.untracked, now: request.now };
        let choice = Choice {
            side: request.side,
            tracking: (!request.ignore_shadow).then_some(tracking),
            keep_shadow: request.keep_shadow,
        };
        let mut main = file_plan(&files.files[0], Some(shape), view.id(), &MAIN);
        choice.main(&mut main, shape, schema)?;
        let main_is_old = matches!(main.work, Work::Convert(_));
        if !main_is_old && schema > request.to {
            return Err(refused(
                path,
                format!("it has schema {schema} already; there is no way back to {}", request.to),
            ));
        }
        let mut plans = Vec::new();
        for ((file, shape), view) in files.files.iter().zip(&found.shapes).zip(&found.views).skip(1) {
            let mut plan = file_plan(file, shape.as_ref(), view.as_ref().map_or(0, ReadTxn::id), &SHARD);
            if let Some(shape) = shape {
                choice.shard(&mut plan, shape, main_is_old)?;
            }
            plans.push(plan);
        }
        let merge = request.merge_shards && shards > 1;
        let info = info(view, request, schema, main_is_old, merge)?;
        let mut plan = Self {
            report: Report { schema: Some(schema), ..Report::default() },
            main,
            shards: plans,
            merge,
            leftovers: Vec::new(),
            info,
            walked: (0, 0),
        };
        plan.count(found, request.write, cancel)?;
        plan.leftovers(found, leftovers, cancel)?;
        plan.finish(request, files, found)?;
        Ok(plan)
    }

    fn files(&self) -> impl Iterator<Item = &FilePlan> {
        std::iter::once(&self.main).chain(&self.shards)
    }

    /// Walks everything as it will be when it is written.
    fn count(&mut self, found: &Found<'_>, twice: bool, cancel: &Cancel) -> Result<()> {
        let mut walked = (0, 0);
        for (plan, shape) in self.files().zip(&found.shapes) {
            let Some(shape) = shape else { continue };
            for table in plan.tables {
                let live = if plan.is_native() { table.new } else { table.old };
                for dbi in [shape.dbi(live), shape.dbi(&shadow_of(table.old))].into_iter().flatten() {
                    walked.0 += dbi.entries;
                    walked.1 += dbi.pages() * shape.page_bytes();
                }
            }
        }
        self.walked = walked;
        let times = if twice { 2 } else { 1 };
        let mut progress = Progress { cancel, walked: 0, total: walked.0 * times, total_bytes: walked.1 * times };
        progress.report();
        let merge = self.merge;
        for (number, plan) in std::iter::once(&mut self.main).chain(&mut self.shards).enumerate() {
            let (Some(view), Some(shape)) = (&found.views[number], &found.shapes[number]) else { continue };
            // Of a merge only what shard 0 keeps in place.
            if !merge || number == 0 || (number == 1 && plan.is_native()) {
                let path = plan.path.clone();
                count_file(plan, view, shape, &mut progress).map_err(|e| about(&path, e))?;
            }
        }
        if merge {
            self.count_merge(found, &mut progress)?;
        }
        Ok(())
    }

    /// Shards whose records are moved to shard 0, by number.
    pub fn moved(&self) -> impl Iterator<Item = usize> {
        let in_place = self.shards.first().is_some_and(FilePlan::is_native);
        let worked = self.shards.iter().enumerate().filter(|(_, plan)| !matches!(plan.work, Work::None));
        worked.map(|(number, _)| number).filter(move |number| !in_place || *number > 0)
    }

    fn count_merge(&mut self, found: &Found<'_>, progress: &mut Progress<'_>) -> Result<()> {
        let views: Vec<_> = found.views.iter().skip(1).map(Option::as_ref).collect();
        let mut out = Out::count(DbiReport::default()).elsewhere();
        self.merge_records(&views, &mut out, progress)?;
        let (bytes, changes, value_bytes) = (out.bytes, out.changes, out.value_bytes);
        let page_bytes = found.shapes.iter().flatten().map(Shape::page_bytes).next().unwrap_or(4096);
        let in_place = self.shards[0].is_native();
        let need = need(bytes, changes, value_bytes, !in_place, page_bytes);
        self.shards[0].need_bytes += need;
        Ok(())
    }

    /// Hands the records that are moved to `out`, in order, and counts them for their files.
    pub fn merge_records(
        &mut self,
        views: &[Option<&ReadTxn<'_>>],
        out: &mut Out<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let [table] = &SHARD;
        let moved: Vec<usize> = self.moved().collect();
        let mut sources = Vec::new();
        for &number in &moved {
            if let Some(view) = views[number]
                && let Some(source) =
                    self.shards[number].source(view, table).map_err(|e| about(&self.shards[number].path, e))?
            {
                sources.push(source);
            }
        }
        let target = &self.shards[0];
        // What shard 0 has already, from an interrupted run or on its own.
        let existing = match views[0] {
            Some(view) if target.is_native() => view.dbi(table.new)?.map(|dbi| view.cursor(dbi)).transpose()?,
            _ => None,
        };
        let target = target.path.clone();
        let mut existing = existing;
        let mut reports: Vec<DbiReport> = sources.iter().map(|source| report(source.name(), table.new)).collect();
        let mut walks = sources.iter().map(Source::walk).collect::<Result<Vec<_>>>()?;
        let mut merged = Merged::new(&mut walks, progress).map_err(|e| about(&target, e))?;
        while let Some((number, item)) = merged.next(progress).map_err(|e| about(&target, e))? {
            if let Some(existing) = &mut existing
                && is_there(existing, &item).map_err(|e| about(&target, e).in_dbi(table.new))?
            {
                continue;
            }
            std::mem::swap(&mut out.report, &mut reports[number]);
            let put = out.put_item(&item);
            std::mem::swap(&mut out.report, &mut reports[number]);
            put.map_err(|e| about(&target, e))?;
        }
        for (number, report) in moved.into_iter().zip(reports) {
            let plan = &mut self.shards[number];
            plan.reports = vec![report];
            if number > 0 {
                plan.state = "merge";
            }
        }
        Ok(())
    }

    /// Which of the files that are no shards any more can go.
    fn leftovers(&mut self, found: &Found<'_>, files: &[File], cancel: &Cancel) -> Result<()> {
        let [table] = &SHARD;
        for file in files {
            let Some(env) = &file.env else { continue };
            let mut progress = Progress { cancel, walked: 0, total: 0, total_bytes: 0 };
            let all_there = match (self.shards.first(), found.views.get(1)) {
                (Some(shard), Some(Some(target))) if shard.is_native() => {
                    let view = env.read_latest()?;
                    let native = view.dbi(table.new)?.is_some();
                    let source = Source::new(&view, table, native, None).map_err(|e| about(&file.path, e))?;
                    let mut walk = source.walk()?;
                    let mut existing = target.dbi(table.new)?.map(|dbi| target.cursor(dbi)).transpose()?;
                    let mut all = existing.is_some();
                    while let (true, Some(item)) = (all, walk.next(&mut progress)?) {
                        let key = item.key.bytes().unwrap_or_default();
                        all = match &mut existing {
                            Some(existing) => match existing.find(key, true)? {
                                Some(stored) => item.says(&header::parse(stored)?),
                                None => false,
                            },
                            None => false,
                        };
                    }
                    env.check_unshared()?;
                    all
                }
                _ => false,
            };
            if all_there {
                self.leftovers.push(file.path.clone());
            } else {
                let text = "is no shard, and not all of its records are in shard 0: left alone";
                self.report.warnings.push(format!("{} {text}", file.path.display()));
            }
        }
        Ok(())
    }

    /// Sums, what is needed, warnings.
    fn finish(&mut self, request: &Request, files: &Files, found: &Found<'_>) -> Result<()> {
        if !self.info.is_empty()
            && let Some(shape) = &found.shapes[0]
        {
            self.main.need_bytes += SPARE_PAGES * shape.page_bytes();
        }
        let untracked: u64 = self.files().flat_map(|plan| &plan.reports).map(|report| report.untracked).sum();
        if untracked > 0 {
            let changed = "changed after Lightning Stream last looked";
            if request.untracked == Untracked::Fail {
                let per_dbi = self.files().flat_map(|plan| plan.reports.iter().map(move |report| (plan, report)));
                let per_dbi = per_dbi.filter(|(_, report)| report.untracked > 0);
                let list: Vec<_> = per_dbi
                    .map(|(plan, report)| {
                        format!("{} in DBI {} of {}", report.untracked, report.from, plan.path.display())
                    })
                    .collect();
                return Err(refused(&request.path, format!("{untracked} entries {changed}: {}", list.join(", "))));
            }
            let stamp = match request.untracked {
                Untracked::Now => "the time of this run",
                _ => "a time just after what was tracked",
            };
            self.report.warnings.push(format!("{untracked} entries {changed}: they get {stamp}"));
        }
        if !request.write || request.force {
            for file in files.files.iter().filter(|file| !file.users.is_empty()) {
                self.report.warnings.extend(file.check_unused().err().map(|e| e.message));
            }
        }
        let grown = self.files().filter(|plan| plan.need_bytes > plan.map_bytes && plan.present);
        let warnings: Vec<String> = grown
            .map(|plan| {
                let text = "MiB is too small for both schemas: set lmdb-map-size of PowerDNS to at least";
                let (map, need) = (mib(plan.map_bytes), mib(plan.need_bytes));
                format!("{}: the map of {map} {text} {need}", plan.path.display())
            })
            .collect();
        self.report.warnings.extend(warnings);
        let changed =
            self.merge || !self.info.is_empty() || !self.leftovers.is_empty() || self.files().any(FilePlan::is_changed);
        let disk = backup::disk(&data_file(&request.path, request.no_subdir))?;
        let backup_bytes: u64 = self.files().map(|plan| plan.used_bytes).sum();
        let map_bytes = self.files().map(|plan| plan.need_bytes).max().unwrap_or(0);
        let file_reports = self.files().map(FilePlan::report).collect();
        let report = &mut self.report;
        report.changed = changed;
        report.map_bytes = map_bytes;
        report.backup_bytes = if request.backup_dir.is_some() { backup_bytes } else { 0 };
        report.disk_free_bytes = disk.free_bytes;
        report.files = file_reports;
        self.check_disk(request, disk)
    }

    fn check_disk(&mut self, request: &Request, disk: backup::Disk) -> Result<()> {
        if !self.report.changed {
            return Ok(());
        }
        let growth: u64 =
            self.files().map(|plan| plan.need_bytes.saturating_sub(plan.file_bytes.max(plan.used_bytes))).sum();
        let mut needed = vec![(disk, request.path.clone(), growth)];
        if let Some(directory) = &request.backup_dir {
            let other = backup::disk(directory)?;
            if other.device == disk.device {
                needed[0].2 += self.report.backup_bytes;
            } else {
                needed.push((other, directory.clone(), self.report.backup_bytes));
            }
        }
        for (disk, path, bytes) in needed {
            if bytes > disk.free_bytes {
                let text = format!("up to {} MiB of disk are needed, {} are free", mib(bytes), disk.free_bytes >> 20);
                if request.write {
                    return Err(Error::new(Code::Refused, format!("{}: {text}", path.display())));
                }
                self.report.warnings.push(format!("{}: {text}", path.display()));
            }
        }
        Ok(())
    }
}

impl FilePlan {
    pub fn report(&self) -> FileReport {
        FileReport {
            path: self.path.clone(),
            schema: self.schema,
            state: self.state.to_owned(),
            dbis: self.reports.clone(),
        }
    }
}

/// Rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

pub fn report(from: &str, to: &str) -> DbiReport {
    DbiReport { from: from.to_owned(), to: to.to_owned(), ..DbiReport::default() }
}

/// Bytes for what is added. Entries that do not come in order leave pages half empty.
fn need(bytes: u64, entries: u64, value_bytes: u64, ordered: bool, page_bytes: u64) -> u64 {
    let pages = if ordered { bytes + bytes / 8 } else { bytes * 9 / 4 };
    pages.max(value_bytes * 11 / 5 + 24 * entries) + SPARE_PAGES * page_bytes
}

fn count_file(plan: &mut FilePlan, view: &ReadTxn<'_>, shape: &Shape, progress: &mut Progress<'_>) -> Result<()> {
    if matches!(plan.work, Work::None | Work::InPlace(None)) {
        // Nothing to look at, but it must be what PowerDNS makes.
        return plan.tables.iter().try_for_each(|table| plan.source(view, table).map(drop));
    }
    let mut freed = 0;
    for table in plan.tables {
        let Some(source) = plan.source(view, table)? else { continue };
        let mut out = Out::count(report(source.name(), table.new));
        source.convert(&mut out, progress)?;
        plan.need_bytes += need(out.bytes, out.changes, out.value_bytes, table.kind != Kind::Index, shape.page_bytes());
        if plan.is_native() && out.changes > 0 {
            // Pages are copied before they change.
            plan.need_bytes += shape.dbi(table.new).map_or(0, DbiStat::pages) * shape.page_bytes();
        }
        freed += shape.dbi(source.name()).map_or(0, DbiStat::pages);
        plan.changes += out.changes;
        plan.reports.push(out.report);
    }
    // The list of free pages.
    plan.need_bytes += freed * 16;
    Ok(())
}

/// True when the target has the same already; an error when it has something else under that key.
fn is_there(existing: &mut lmdb::ReadCursor<'_>, item: &Item<'_>) -> Result<bool> {
    let Some(stored) = existing.find(item.key.bytes().unwrap_or_default(), true)? else { return Ok(false) };
    if item.says(&header::parse(stored)?) { Ok(true) } else { Err(clash(item.key)) }
}

/// What DBI `pdns` gets. Its timestamps are 0, as from the server: it never beats a stray old instance. Only when the number goes from 5
/// to 6 has that to travel.
fn info(view: &ReadTxn<'_>, request: &Request, schema: u32, main_is_old: bool, merge: bool) -> Result<Vec<InfoValue>> {
    let dbi = view.dbi(INFO)?.filter(|dbi| dbi.flags == 0);
    let dbi = dbi.ok_or_else(|| refused(&request.path, "DBI pdns is not what PowerDNS makes"))?;
    let mut values = Vec::new();
    let mut cursor = view.cursor(dbi)?;
    while let Some((key, stored)) = cursor.next()? {
        values.push((key.to_vec(), stored.to_vec()));
    }
    let all = main_is_old || values.iter().any(|(_, stored)| stored.len() < header::HEADER_BYTES);
    let later =
        |stored: &[u8]| header::parse(stored).map_or(0, |native| native.timestamp.saturating_add(1)).max(request.now);
    let mut out = Vec::new();
    for (key, stored) in values {
        let (is_version, is_shards) = (key == VERSION_KEY, key == SHARDS_KEY);
        let value = match layout::number(&stored) {
            _ if is_version => request.to.to_be_bytes().to_vec(),
            Some(_) if is_shards && merge => 1_u32.to_be_bytes().to_vec(),
            Some(shards) if is_shards => shards.to_be_bytes().to_vec(),
            _ => layout::plain(&stored).to_vec(),
        };
        if all {
            let timestamp = if is_version && request.to > FIRST_NATIVE { request.now } else { 0 };
            out.push((key, timestamp, value));
        } else if (is_version && schema != request.to) || (is_shards && merge) {
            out.push((key, later(&stored), value));
        }
    }
    Ok(out)
}

/// Files beside the main database that have names of shards, but for the first.
fn strays(main: &Path) -> Vec<PathBuf> {
    let directory = main.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (Ok(entries), Some(name)) = (fs::read_dir(directory), main.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(name)?.strip_prefix('-')?.parse().ok())
        .filter(|number| (1..MAX_SHARDS).contains(number))
        .collect();
    numbers.sort_unstable();
    numbers.into_iter().map(|number| shard_path(main, number)).collect()
}

pub fn status(path: &Path, no_subdir: bool) -> Result<Status> {
    let files = Files::open(path, no_subdir, |_| Ok(()))?;
    let found = Found::read(&files.files)?;
    let mut statuses = Vec::new();
    for (number, (file, shape)) in files.files.iter().zip(&found.shapes).enumerate() {
        let tables: &[Table] = if number == 0 && files.is_main { &MAIN } else { &SHARD };
        let [table] = &SHARD;
        let of_shard = |shape: &Shape| {
            let old = shape.dbi(table.old).map(|_| FIRST_NATIVE - 1);
            shape.dbi(table.new).map(|_| FIRST_NATIVE).or(old)
        };
        statuses.push(FileStatus {
            path: file.path.clone(),
            present: shape.is_some(),
            schema: if number == 0 && files.is_main { files.schema } else { shape.as_ref().and_then(of_shard) },
            shadow: shape.as_ref().is_some_and(|shape| shape.has_shadow(tables)),
            users: file.users.clone(),
        });
    }
    let (state, text) = state(&files, &found);
    found.check_unshared()?;
    Ok(Status { is_main: files.is_main, schema: files.schema, shards: files.shards, files: statuses, state, text })
}

fn state(files: &Files, found: &Found<'_>) -> (&'static str, String) {
    let Some(shape) = &found.shapes[0] else { return ("not PowerDNS", "there is no LMDB".to_owned()) };
    if !files.is_main {
        return ("not PowerDNS", "it has no DBI pdns, so it is no main database of PowerDNS".to_owned());
    }
    let (Some(schema), Some(_)) = (files.schema, files.shards) else {
        return ("unsupported", "DBI pdns tells no schema or no number of shards".to_owned());
    };
    let tracking = Some(Tracking { untracked: Untracked::Now, now: 0 });
    let choice = Choice { side: None, tracking, keep_shadow: false };
    let mut main = file_plan(&files.files[0], Some(shape), 0, &MAIN);
    let told = |refusal: Refusal| (refusal.state, format!("{}: {}", refusal.path.display(), refusal.text));
    if let Err(refusal) = choice.main(&mut main, shape, schema) {
        return told(refusal);
    }
    let main_is_old = matches!(main.work, Work::Convert(_));
    let (mut done, mut rescue) = (0, main.state == "rescue");
    for (file, shape) in files.files.iter().zip(&found.shapes).skip(1) {
        let Some(shape) = shape else { continue };
        let mut plan = file_plan(file, Some(shape), 0, &SHARD);
        if let Err(refusal) = choice.shard(&mut plan, shape, main_is_old) {
            return told(refusal);
        }
        done += u32::from(plan.is_native());
        rescue |= plan.state == "rescue";
    }
    match (main_is_old, done > 0, rescue) {
        (true, false, _) => ("can be migrated", format!("schema {schema} can be migrated")),
        (true, true, _) => {
            ("interrupted", format!("schema {schema}, but {done} shards are migrated already: run it again"))
        }
        (false, _, true) => (
            "rescue",
            format!("schema {schema}; PowerDNS upgraded it, and what Lightning Stream tracked before can be rescued"),
        ),
        (false, _, false) => ("native", format!("schema {schema}, in which PowerDNS itself tracks changes")),
    }
}
