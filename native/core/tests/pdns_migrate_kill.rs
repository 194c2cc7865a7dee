//! Schema upgrades of PowerDNS's LMDBs, killed between any two changes of a file and at random moments, or with a full disk: every file is as
//! it was or as it shall be, the main database the last; doing it again comes to the end that it has undisturbed.
#![cfg(target_env = "gnu")]

mod common;
#[path = "common/pdns.rs"]
mod pdns;
#[path = "common/writes.rs"]
mod writes;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Random, native, open, put_raw, temp_dir};
use lightningstream_core::header::FLAG_DELETED;
use lightningstream_core::pdns_migrate::{Request, Untracked, migrate};
use lightningstream_core::{Cancel, Code};
use pdns::{MAIN, State, golden, look, unpack};
use tempfile::TempDir;
use writes::{ARMED, FULL, Fate, KILL_AT, STEPS, STOP, TORN, fate};

/// `SCENARIO STEP HOW DIRECTORY`: this process is the other one.
const VARIABLE: &str = "LS_TEST_MIGRATE";
/// How many steps it took, or what failed, in its directory.
const STEPS_FILE: &str = "steps";
const ERROR_FILE: &str = "error";
const NOW: u64 = 1_800_000_000_000_000_000;

/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
pub unsafe extern "C" fn write(fd: libc::c_int, buffer: *const libc::c_void, count: libc::size_t) -> libc::ssize_t {
    let fate = fate();
    if fate == Fate::NoSpace {
        return writes::no_space();
    }
    let half = if fate == Fate::Half { count / 2 } else { count };
    // SAFETY: the caller's arguments, of which at most `count` bytes are read.
    let written = unsafe { libc::syscall(libc::SYS_write, fd, buffer, half) };
    if fate == Fate::Half {
        writes::die();
    }
    written as libc::ssize_t
}

/// # Safety
/// As unlink(2).
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
pub unsafe extern "C" fn unlink(path: *const libc::c_char) -> libc::c_int {
    let fate = fate();
    // SAFETY: the caller's path.
    let result = unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) };
    if fate == Fate::Half {
        writes::die();
    }
    result as libc::c_int
}

/// # Safety
/// As rename(2).
#[unsafe(no_mangle)]
#[allow(unsafe_code)]
pub unsafe extern "C" fn rename(from: *const libc::c_char, to: *const libc::c_char) -> libc::c_int {
    let fate = fate();
    // SAFETY: the caller's paths.
    let result = unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) };
    if fate == Fate::Half {
        writes::die();
    }
    result as libc::c_int
}

struct Scenario {
    name: &'static str,
    to: u32,
    merge_shards: bool,
    /// Lays the files out.
    lay: fn(&Path),
}

const SCENARIOS: [Scenario; 6] = [
    Scenario { name: "drift", to: 6, merge_shards: false, lay: |dir| golden_case("v4-drift", dir) },
    Scenario { name: "shards", to: 5, merge_shards: false, lay: |dir| golden_case("v4-shards3", dir) },
    Scenario { name: "merge", to: 5, merge_shards: true, lay: |dir| golden_case("v4-shards3", dir) },
    Scenario { name: "rescue", to: 5, merge_shards: false, lay: |dir| golden_case("v5-leftover", dir) },
    Scenario { name: "medium", to: 5, merge_shards: false, lay: |dir| generated(dir, 4000, 30) },
    // More than a transaction keeps in memory: pages go to the file before the commit.
    Scenario { name: "large", to: 5, merge_shards: false, lay: |dir| generated(dir, 40_000, 130) },
];

fn golden_case(name: &str, dir: &Path) {
    for entry in fs::read_dir(golden().join(name)).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !file.ends_with(".json") {
            fs::write(dir.join(&file), unpack(&path)).unwrap();
        }
    }
}

/// A golden case with that many records more, of that many times eight bytes.
fn generated(dir: &Path, records: u32, words: u32) {
    golden_case("v4-shadow", dir);
    let (count, mut random) = (records, Random(7));
    let (mut records, mut shadow) = (Vec::new(), Vec::new());
    for number in 0..count {
        let key = [&0xffff_0000_u32.to_be_bytes()[..], &number.to_be_bytes()].concat();
        let value: Vec<u8> = (0..words).flat_map(|_| random.next().to_be_bytes()).collect();
        match random.below(10) {
            0 => shadow.push((key, native(random.below(NOW), 1, FLAG_DELETED, &[]))),
            1 => records.push((key, value)),
            _ => {
                shadow.push((key.clone(), native(random.below(NOW), 1, 0, &value)));
                records.push((key, value));
            }
        }
    }
    let env = open(&dir.join("pdns.lmdb-0"), 1 << 30);
    put_raw(&env, "records", 0, &records);
    put_raw(&env, "_sync_shadow_records", 0, &shadow);
    drop(env);
    fs::remove_file(dir.join("pdns.lmdb-0-lock")).unwrap();
}

fn request(scenario: &Scenario, dir: &Path, attempt: &str) -> Request {
    Request {
        path: dir.join(MAIN),
        no_subdir: true,
        to: scenario.to,
        write: true,
        backup_dir: Some(dir.join(format!("backup-{attempt}"))),
        untracked: Untracked::Now,
        ignore_shadow: false,
        keep_shadow: false,
        side: None,
        merge_shards: scenario.merge_shards,
        force: false,
        now: NOW,
    }
}

/// The other process.
#[test]
fn child() {
    let Ok(order) = std::env::var(VARIABLE) else { return };
    let parts: Vec<&str> = order.splitn(4, ' ').collect();
    let [name, step, how, dir] = parts[..] else { panic!("{order}") };
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
    let dir = Path::new(dir);
    KILL_AT.store(step.parse().unwrap(), Ordering::Relaxed);
    for (word, flag) in [("torn", &TORN), ("stop", &STOP), ("full", &FULL)] {
        flag.store(how == word, Ordering::Relaxed);
    }
    let request = request(scenario, dir, "first");
    ARMED.store(true, Ordering::Relaxed);
    let result = migrate(&request, &Cancel::new());
    ARMED.store(false, Ordering::Relaxed);
    // Whoever reads them misses them; on a disk that was filled there may be no room.
    if let Err(e) = result {
        let _ = fs::write(dir.join(ERROR_FILE), format!("{} {e}", e.code.name()));
    }
    let _ = fs::write(dir.join(STEPS_FILE), STEPS.load(Ordering::Relaxed).to_string());
}

fn spawn(scenario: &Scenario, dir: &Path, step: u64, how: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(VARIABLE, format!("{} {step} {how} {}", scenario.name, dir.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// False: it came to its end instead.
fn killed(child: Child) -> bool {
    let output = child.wait_with_output().unwrap();
    let killed = output.status.signal() == Some(libc::SIGKILL);
    assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    killed
}

/// Each data file with what is in it, transaction ids left out.
type Files = BTreeMap<String, State>;

fn read(dir: &Path) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with(MAIN) && !name.ends_with("-lock") && !name.ends_with(".partial") {
            let (_, mut state) = look(&dir.join(&name));
            for (dbi, (_, entries)) in &mut state {
                if dbi.ends_with("_v5") || dbi.ends_with("_v5_0") || dbi == "pdns" {
                    for (_, stored) in entries.iter_mut().filter(|(_, stored)| stored.len() >= 24) {
                        stored[8..16].fill(0);
                    }
                }
            }
            files.insert(name, state);
        }
    }
    files
}

/// A scenario's files, before and after its undisturbed work, and how many steps that takes.
struct Prepared {
    scenario: &'static Scenario,
    dir: TempDir,
    base: BTreeMap<String, Vec<u8>>,
    before: Files,
    end: Files,
    steps: u64,
    took: Duration,
}

impl Prepared {
    fn new(name: &str) -> Self {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
        let dir = temp_dir();
        (scenario.lay)(dir.path());
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let base: BTreeMap<_, _> = names.map(|name| (name.clone(), fs::read(dir.path().join(name)).unwrap())).collect();
        assert!(base.len() >= 2);
        let mut prepared =
            Self { scenario, before: read(dir.path()), dir, base, end: Files::new(), steps: 0, took: Duration::ZERO };
        prepared.reset();
        let started = Instant::now();
        assert!(!killed(spawn(scenario, prepared.path(), 0, "kill")));
        prepared.took = started.elapsed();
        assert!(!prepared.path().join(ERROR_FILE).exists(), "{:?}", fs::read(prepared.path().join(ERROR_FILE)));
        prepared.steps = fs::read_to_string(prepared.path().join(STEPS_FILE)).unwrap().parse().unwrap();
        prepared.end = read(prepared.path());
        assert!(prepared.end != prepared.before);
        prepared
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn reset(&self) {
        for entry in fs::read_dir(self.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        for (name, bytes) in &self.base {
            fs::write(self.path().join(name), bytes).unwrap();
        }
    }

    /// Looks at what is left and does it again.
    fn finish(&self, what: &str) {
        let left = read(self.path());
        let mut all_done = true;
        for (name, before) in &self.before {
            let (left, end) = (left.get(name), self.end.get(name));
            // Of a merge the files that are no shards any more go at the end.
            let is_before = left == Some(before);
            assert!(is_before || left == end, "{what}: {name} is neither as it was nor as it shall be");
            // Files that a merge removes say nothing about the order.
            all_done &= end.is_none() || before == self.end.get(name).unwrap() || !is_before || name == MAIN;
        }
        assert!(left[MAIN] == self.before[MAIN] || all_done, "{what}: the main database before a shard");
        self.check_backups(what);
        let again = migrate(&request(self.scenario, self.path(), "again"), &Cancel::new());
        assert!(again.is_ok(), "{what}: {}", again.unwrap_err());
        assert!(read(self.path()) == self.end, "{what}: another end");
    }

    /// A file in a backup is whole.
    fn check_backups(&self, what: &str) {
        let backup = self.path().join("backup-first");
        if !backup.exists() {
            return;
        }
        for entry in fs::read_dir(&backup).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".partial") || name.ends_with("-lock") {
                continue;
            }
            // What is there is not cut, either: LMDB would not tell.
            assert!(read(&backup)[&name] == self.before[&name], "{what}: the copy of {name}");
        }
    }
}

fn every_step(name: &str, at_least: u64) {
    let prepared = Prepared::new(name);
    assert!(prepared.steps >= at_least, "{} steps", prepared.steps);
    for step in 1..=prepared.steps {
        for how in ["kill", "torn"] {
            let what = format!("{name}, step {step} of {}, {how}", prepared.steps);
            prepared.reset();
            assert!(killed(spawn(prepared.scenario, prepared.path(), step, how)), "{what}");
            prepared.finish(&what);
        }
    }
}

#[test]
fn killed_at_every_step() {
    every_step("drift", 10);
}

#[test]
fn several_shards_killed_at_every_step() {
    every_step("shards", 20);
}

#[test]
fn a_merge_killed_at_every_step() {
    every_step("merge", 20);
}

#[test]
fn a_rescue_killed_at_every_step() {
    every_step("rescue", 10);
}

#[test]
fn a_large_one_killed_while_pages_go_to_the_file_before_the_commit() {
    let prepared = Prepared::new("large");
    assert!(prepared.steps > 60, "{} steps", prepared.steps);
    let last = prepared.steps;
    for step in [1, last / 4, last / 2, last - 12, last - 1, last] {
        let how = if step % 2 == 0 { "kill" } else { "torn" };
        let what = format!("large, step {step} of {last}, {how}");
        prepared.reset();
        assert!(killed(spawn(prepared.scenario, prepared.path(), step, how)), "{what}");
        prepared.finish(&what);
    }
}

#[test]
fn killed_at_random_moments() {
    let prepared = Prepared::new("medium");
    let mut random = Random(11);
    let mut kills = 0;
    while kills < 100 {
        prepared.reset();
        let mut child = spawn(prepared.scenario, prepared.path(), 0, "kill");
        std::thread::sleep(Duration::from_micros(random.below(prepared.took.as_micros() as u64)));
        child.kill().unwrap();
        if killed(child) {
            kills += 1;
            prepared.finish(&format!("kill {kills}"));
        }
    }
}

#[test]
fn killed_again_and_again() {
    for name in ["shards", "merge"] {
        let prepared = Prepared::new(name);
        for seed in 0..10 {
            let mut random = Random(seed);
            prepared.reset();
            let mut kills = 0;
            while kills < 10 {
                let _ = fs::remove_dir_all(prepared.path().join("backup-first"));
                let step = 1 + random.below(prepared.steps);
                let how = if random.below(2) == 0 { "kill" } else { "torn" };
                if !killed(spawn(prepared.scenario, prepared.path(), step, how)) {
                    break;
                }
                kills += 1;
            }
            let _ = fs::remove_dir_all(prepared.path().join("backup-first"));
            prepared.finish(&format!("{name}, seed {seed}, {kills} kills"));
        }
    }
}

#[test]
fn a_disk_that_is_full_from_any_step_on_rolls_back() {
    for name in ["shards", "merge", "rescue"] {
        let prepared = Prepared::new(name);
        let mut failed = 0;
        for step in 1..=prepared.steps {
            let what = format!("{name}, full from step {step} of {}", prepared.steps);
            prepared.reset();
            assert!(!killed(spawn(prepared.scenario, prepared.path(), step, "full")), "{what}");
            if let Ok(error) = fs::read_to_string(prepared.path().join(ERROR_FILE)) {
                failed += 1;
                assert!(error.starts_with("ENOSPC ") && error.contains(MAIN), "{what}: {error}");
                assert!(read(prepared.path())[MAIN] == prepared.before[MAIN], "{what}: failed, but done");
            }
            prepared.finish(&what);
        }
        assert!(failed > 5, "{name}: {failed}");
    }
}

/// Mounted for as long as the test runs; `None` when that is not allowed.
struct Disk(PathBuf);

impl Disk {
    fn mount(dir: &Path, mib: u64) -> Option<Self> {
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(dir)
            .stderr(Stdio::null())
            .status();
        done.is_ok_and(|status| status.success()).then(|| Self(dir.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// As root only. The disk is large enough for what is asked for before; in the middle somebody else fills it.
#[test]
fn a_real_disk_that_somebody_fills_in_the_middle() {
    let prepared = Prepared::new("large");
    let dir = temp_dir();
    let Some(disk) = Disk::mount(dir.path(), 600) else { return };
    for (name, bytes) in &prepared.base {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    // Among the pages that go to the file before the commit: the backup is done by then.
    let child = spawn(prepared.scenario, dir.path(), prepared.steps - 12, "stop");
    wait_until_stopped(child.id());
    assert!(dir.path().join("backup-first").join(MAIN).exists(), "the backup comes first");
    let filler = dir.path().join("filler");
    let block = vec![1; 1 << 20];
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    while std::io::Write::write_all(&mut file, &block[..512]).is_ok() {}
    drop(file);
    let pid = child.id();
    assert!(Command::new("kill").args(["-CONT", &pid.to_string()]).status().unwrap().success());
    assert!(!killed(child));
    fs::remove_file(&filler).unwrap();
    assert!(read(dir.path()) == prepared.before, "rolled back");
    let again = migrate(&request(prepared.scenario, dir.path(), "again"), &Cancel::new()).unwrap();
    assert!(again.changed && read(dir.path()) == prepared.end);
    drop(disk);
}

fn wait_until_stopped(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        if stat.rsplit(')').next().unwrap().trim_start().starts_with('T') {
            return;
        }
        assert!(Instant::now() < deadline, "it never came there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn too_small_a_disk_is_refused_before_anything_is_written() {
    let dir = temp_dir();
    let Some(_disk) = Disk::mount(dir.path(), 1) else { return };
    golden_case("v4-plain", dir.path());
    let scenario = Scenario { name: "", to: 5, merge_shards: false, lay: |_| () };
    let before = read(dir.path());
    let error = migrate(&request(&scenario, dir.path(), "first"), &Cancel::new()).unwrap_err();
    assert_eq!(error.code, Code::Refused, "{error}");
    assert!(error.message.contains("MiB of disk are needed"), "{error}");
    assert!(read(dir.path()) == before && !dir.path().join("backup-first").exists());
}
