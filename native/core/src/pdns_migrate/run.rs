//! Writes what was planned.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::backup;
use super::convert::{Out, Progress};
use super::layout::{INFO, Kind, SHARD};
use super::plan::{FilePlan, MAX_DBS, Plan, Work, check_unused, data_file, shard_path};
use super::{DbiReport, Report, Request, about};
use crate::cancel::Cancel;
use crate::error::{Code, Error, Result};
use crate::header;
use crate::lmdb::{self, EnvOptions, Environment, Exclusion, ReadTxn, WriteTxn};
use crate::merge::PRIVATE_PREFIX;

const MDB_MAP_FULL: i32 = -30792;
/// Maps grow in steps of this.
const MAP_STEP_BYTES: u64 = 1 << 20;

/// What was planned, with the files open.
pub struct Run<'r> {
    request: &'r Request,
    plan: Plan,
    main: Environment,
    /// By number; `None`: absent and not needed.
    shards: Vec<Option<Environment>>,
    /// A server that starts waits for the end; else it would write to shards that are done, or go on with tables that are gone. To be dropped
    /// after the environments.
    _alone: Vec<Exclusion>,
}

/// `None`: somebody wrote after it was planned, and nothing was changed.
///
/// # Errors
/// As [`super::migrate`].
pub fn run(request: &Request, plan: Plan, map_limit: u64, cancel: &Cancel) -> Result<Option<Report>> {
    let mut run = Run::open(request, plan, map_limit)?;
    let copies = run.back_up(cancel)?;
    let mut committed = false;
    let done = match copies {
        Some(_) => run.write(&mut committed, cancel),
        None => Ok(false),
    };
    if !committed && !matches!(done, Ok(true)) {
        // Nothing happened that it would be needed for, and the next attempt makes its own.
        for copy in copies.into_iter().flatten() {
            let _ = fs::remove_file(copy);
        }
    }
    if !done? {
        return Ok(None);
    }
    run.remove_merged()?;
    let mut report = run.plan.report;
    report.backup = request.backup_dir.clone();
    report.files = std::iter::once(&run.plan.main).chain(&run.plan.shards).map(FilePlan::report).collect();
    Ok(Some(report))
}

/// Opens to write. Files that this makes belong to whom the main database belongs, and are no more open to others than that.
fn open(path: &Path, request: &Request, map_bytes: u64, create: bool) -> Result<Environment> {
    let lock_file = lmdb::lock_file(path, request.no_subdir);
    let data = data_file(path, request.no_subdir);
    let made: Vec<_> = [&lock_file, &data].into_iter().filter(|file| !file.exists()).collect();
    let original = fs::metadata(data_file(&request.path, request.no_subdir));
    let original = original.map_err(|e| Error::io(format_args!("look at {}", request.path.display()), &e))?;
    let options = EnvOptions {
        no_subdir: request.no_subdir,
        create,
        file_mode: original.permissions().mode() & 0o666,
        map_bytes: usize::try_from(map_bytes).unwrap_or(usize::MAX),
        max_dbs: MAX_DBS,
        ..EnvOptions::default()
    };
    let env = Environment::open(path, options).map_err(|e| about(path, e))?;
    made.into_iter().for_each(|file| backup::own_as(file, &original));
    Ok(env)
}

impl<'r> Run<'r> {
    pub fn open(request: &'r Request, plan: Plan, map_limit: u64) -> Result<Self> {
        let map_bytes = |file: &FilePlan| {
            let needed = file.need_bytes.next_multiple_of(MAP_STEP_BYTES).min(map_limit);
            file.map_bytes.max(needed)
        };
        // Dropped after the environments also on an error.
        let mut alone = Vec::new();
        let mut be_alone = |path: &Path| {
            let exclusion = lmdb::exclude(path, request.no_subdir).map_err(|e| about(path, e))?;
            let unused = if request.force { Ok(()) } else { check_unused(path, &exclusion.others) };
            alone.push(exclusion);
            unused
        };
        let main = open(&plan.main.path, request, map_bytes(&plan.main), false)?;
        be_alone(&plan.main.path)?;
        let mut shards = Vec::new();
        for (number, file) in plan.shards.iter().enumerate() {
            // Somewhere the records of the others must go.
            let needed = plan.merge && number == 0 && plan.moved().next().is_some();
            let create = needed && !file.present;
            let env =
                if file.present || create { Some(open(&file.path, request, map_bytes(file), create)?) } else { None };
            let is_open = env.is_some();
            shards.push(env);
            if is_open {
                be_alone(&file.path)?;
            }
        }
        Ok(Self { request, plan, main, shards, _alone: alone })
    }

    fn envs(&self) -> impl Iterator<Item = (&FilePlan, &Environment)> {
        let shards = self.plan.shards.iter().zip(&self.shards);
        std::iter::once((&self.plan.main, &self.main))
            .chain(shards.filter_map(|(plan, env)| env.as_ref().map(|env| (plan, env))))
    }

    /// The files that were written; `None`: somebody wrote after it was planned.
    fn back_up(&self, cancel: &Cancel) -> Result<Option<Vec<PathBuf>>> {
        let Some(directory) = &self.request.backup_dir else { return Ok(Some(Vec::new())) };
        let no_subdir = self.request.no_subdir;
        let targets: Vec<PathBuf> =
            self.envs().map(|(plan, _)| backup::target(directory, &plan.path, no_subdir)).collect();
        if let Some(taken) = targets.iter().find(|target| target.exists()) {
            let text = format!("there is a backup already: {}; name another directory", taken.display());
            return Err(Error::new(Code::Refused, text));
        }
        let mut written = Vec::new();
        for ((plan, env), target) in self.envs().zip(targets) {
            let copied = cancel.check().and_then(|()| if plan.present { backup::copy(env, &target) } else { Ok(()) });
            match copied {
                Ok(()) if plan.present && env.last_txn_id() != plan.txn_id => {}
                Ok(()) => {
                    written.push(target);
                    continue;
                }
                Err(e) => {
                    written.iter().for_each(|copy| drop(fs::remove_file(copy)));
                    return Err(e);
                }
            }
            written.push(target);
            written.iter().for_each(|copy| drop(fs::remove_file(copy)));
            return Ok(None);
        }
        if let Some(parent) = directory.parent() {
            backup::sync_directory(parent).map_err(|e| Error::io(format_args!("sync {}", parent.display()), &e))?;
        }
        Ok(Some(written))
    }

    /// False: somebody wrote after it was planned, and nothing was changed.
    fn write(&mut self, committed: &mut bool, cancel: &Cancel) -> Result<bool> {
        let Self { request, plan, main, shards, .. } = self;
        let here = |e: Error| full(&request.path, e);
        let view = main.read().map_err(here)?;
        let txn = main.write(true, cancel).map_err(here)?;
        let stale = |plan: &FilePlan, env: &Environment| plan.present && env.last_txn_id() != plan.txn_id;
        let shard_stale =
            plan.shards.iter().zip(shards.iter()).any(|(plan, env)| env.as_ref().is_some_and(|env| stale(plan, env)));
        if stale(&plan.main, main) || view.id() != plan.main.txn_id || shard_stale {
            return Ok(false);
        }
        let (walked, bytes) = plan.walked;
        let mut progress = Progress { cancel, walked, total: walked * 2, total_bytes: bytes * 2 };
        if plan.merge {
            merge(plan, shards, committed, &mut progress)?;
        } else {
            for (plan, env) in plan.shards.iter().zip(shards.iter()) {
                if let Some(env) = env
                    && plan.is_changed()
                {
                    write_shard(plan, env, &mut progress).map_err(|e| full(&plan.path, e))?;
                    *committed = true;
                }
            }
        }
        if plan.main.is_changed() || !plan.info.is_empty() {
            write_main(plan, txn, view, &mut progress).map_err(here)?;
            *committed = true;
        }
        progress.walked = progress.total;
        progress.report();
        Ok(true)
    }

    /// After the commit of the main database: it does not know of them any more.
    fn remove_merged(&mut self) -> Result<()> {
        let mut paths = std::mem::take(&mut self.plan.leftovers);
        if self.plan.merge {
            let present = self.plan.shards.iter().enumerate().skip(1).filter(|(_, plan)| plan.present);
            paths.extend(present.map(|(number, _)| shard_path(&self.request.path, number as u32)));
        }
        self.shards.clear();
        for path in &paths {
            let data_file = data_file(path, self.request.no_subdir);
            let gone = |file: &Path| match fs::remove_file(file) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io(format_args!("remove {}, whose records are in shard 0", file.display()), &e))
                }
                _ => Ok(()),
            };
            gone(&lmdb::lock_file(path, self.request.no_subdir))?;
            gone(&data_file)?;
            if !self.request.no_subdir {
                let _ = fs::remove_dir(path);
            }
        }
        if let (false, Some(parent)) = (paths.is_empty(), self.request.path.parent()) {
            backup::sync_directory(parent).map_err(|e| Error::io(format_args!("sync {}", parent.display()), &e))?;
        }
        Ok(())
    }
}

/// Names the environment and, when it was full, what to do.
fn full(path: &Path, mut error: Error) -> Error {
    match error.code {
        Code::Lmdb(MDB_MAP_FULL) => error.message = "its map is full; nothing was changed in it".to_owned(),
        Code::Os(libc::ENOSPC | libc::EDQUOT) => {
            error.message = format!("{}; nothing was changed in it: make room and run again", error.message);
        }
        _ => {}
    }
    about(path, error)
}

/// Begins to write exactly what was planned.
fn begin<'e>(plan: &FilePlan, env: &'e Environment, cancel: &Cancel) -> Result<(ReadTxn<'e>, WriteTxn<'e>)> {
    let view = env.read()?;
    let txn = env.write(true, cancel)?;
    if plan.present && (view.id() != plan.txn_id || txn.id() != plan.txn_id + 1) {
        return Err(Error::new(Code::Os(libc::EBUSY), "somebody wrote to it in the meantime; run again"));
    }
    Ok((view, txn))
}

fn write_shard(plan: &FilePlan, env: &Environment, progress: &mut Progress<'_>) -> Result<()> {
    let (view, mut txn) = begin(plan, env, progress.cancel)?;
    write_tables(plan, &mut txn, &view, progress)?;
    drop(view);
    drop_dbis(plan, &mut txn)?;
    txn.commit()
}

fn write_main(plan: &Plan, mut txn: WriteTxn<'_>, view: ReadTxn<'_>, progress: &mut Progress<'_>) -> Result<()> {
    let txn_id = txn.id();
    write_tables(&plan.main, &mut txn, &view, progress)?;
    drop(view);
    let dbi = txn.dbi(INFO)?.ok_or_else(|| Error::new(Code::InvalidArgument, "it is missing").in_dbi(INFO))?;
    let mut cursor = txn.cursor(dbi)?;
    let mut stored = Vec::new();
    for (key, timestamp, value) in &plan.info {
        header::build(&mut stored, *timestamp, txn_id, 0, value, false);
        cursor.put(key, &stored, false).map_err(|e| e.in_dbi(INFO).at_key(key))?;
    }
    drop(cursor);
    drop_dbis(&plan.main, &mut txn)?;
    txn.commit()
}

fn write_tables(
    plan: &FilePlan,
    txn: &mut WriteTxn<'_>,
    view: &ReadTxn<'_>,
    progress: &mut Progress<'_>,
) -> Result<()> {
    // Nothing in it changes but what is dropped.
    if plan.changes == 0 && !matches!(plan.work, Work::Convert(_)) {
        return Ok(());
    }
    let txn_id = txn.id();
    for (table, planned) in plan.tables.iter().zip(&plan.reports) {
        let Some(source) = plan.source(view, table)? else { continue };
        let converts = matches!(plan.work, Work::Convert(_));
        let dbi = if converts {
            txn.drop_dbi(table.new)?;
            txn.create_dbi(table.new, 0)?
        } else {
            txn.dbi(table.new)?.ok_or_else(|| Error::new(Code::InvalidArgument, "it is missing").in_dbi(table.new))?
        };
        let start = DbiReport { from: planned.from.clone(), to: planned.to.clone(), ..DbiReport::default() };
        let mut out = Out::write(start, txn.cursor(dbi)?, txn_id, converts && table.kind != Kind::Index);
        source.convert(&mut out, progress)?;
        let written = out.report.clone();
        drop(out);
        agree(txn.entries(dbi)?, &written, planned)?;
    }
    Ok(())
}

/// What was written is what was planned, and all of it is there.
fn agree(entries: u64, written: &DbiReport, planned: &DbiReport) -> Result<()> {
    if written == planned && entries == planned.entries {
        return Ok(());
    }
    let text = format!("{entries} entries were written instead of {}: this is a bug", planned.entries);
    Err(Error::new(Code::Panic, text).in_dbi(planned.to.as_str()))
}

fn drop_dbis(plan: &FilePlan, txn: &mut WriteTxn<'_>) -> Result<()> {
    if plan.drop_old {
        for table in plan.tables {
            txn.drop_dbi(table.old)?;
        }
    }
    if plan.drop_private {
        let private = |name: &&str| name.starts_with(PRIVATE_PREFIX);
        let names: Vec<String> = txn.dbi_names().filter(private).map(str::to_owned).collect();
        for name in names {
            txn.drop_dbi(&name)?;
        }
    }
    Ok(())
}

/// Moves the records of all shards to shard 0, in one transaction; the others stay as they are until their files go.
fn merge(
    plan: &mut Plan,
    envs: &[Option<Environment>],
    committed: &mut bool,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let [table] = &SHARD;
    let Some(env) = envs.first().and_then(Option::as_ref) else { return Ok(()) };
    let path = plan.shards[0].path.clone();
    let here = |e: Error| full(&path, e);
    let (target_view, mut txn) = begin(&plan.shards[0], env, progress.cancel).map_err(here)?;
    let in_place = matches!(plan.shards[0].work, Work::InPlace(_));
    let mut others = Vec::new();
    for (file, env) in plan.shards.iter().zip(envs).skip(1) {
        others.push(env.as_ref().map(Environment::read).transpose().map_err(|e| about(&file.path, e))?);
    }
    if in_place {
        write_tables(&plan.shards[0], &mut txn, &target_view, progress).map_err(here)?;
    } else {
        txn.drop_dbi(table.new).map_err(here)?;
        txn.create_dbi(table.new, 0).map_err(here)?;
    }
    let dbi = txn.dbi(table.new).map_err(here)?;
    let dbi = dbi.ok_or_else(|| here(Error::new(Code::InvalidArgument, "it is missing").in_dbi(table.new)))?;
    let before = txn.entries(dbi).map_err(here)?;
    let planned: Vec<Vec<DbiReport>> = plan.shards.iter().map(|shard| shard.reports.clone()).collect();
    let txn_id = txn.id();
    let mut out = Out::write(DbiReport::default(), txn.cursor(dbi).map_err(here)?, txn_id, !in_place).elsewhere();
    let views: Vec<_> = std::iter::once(Some(&target_view)).chain(others.iter().map(Option::as_ref)).collect();
    plan.merge_records(&views, &mut out, progress).map_err(|e| full(&path, e))?;
    let changes = out.changes;
    drop(out);
    let entries = txn.entries(dbi).map_err(here)?;
    let same = plan.shards.iter().zip(&planned).all(|(shard, planned)| shard.reports == *planned);
    if entries != before + changes || !same {
        let text = format!("{entries} entries instead of {}: this is a bug", before + changes);
        return Err(here(Error::new(Code::Panic, text).in_dbi(table.new)));
    }
    drop((others, target_view));
    drop_dbis(&plan.shards[0], &mut txn).map_err(here)?;
    txn.commit().map_err(here)?;
    *committed = true;
    // A file that is new must not be lost when the main database knows of no other.
    if let (false, Some(parent)) = (plan.shards[0].present, path.parent()) {
        backup::sync_directory(parent).map_err(|e| Error::io(format_args!("sync {}", parent.display()), &e))?;
    }
    Ok(())
}
