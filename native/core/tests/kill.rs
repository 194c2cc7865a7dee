//! `kill -9` at every write to the file: what is left is what some transaction committed, and doing the work again comes to the end that
//! it has undisturbed.
//!
//! The work is done by another process, this test program itself. There the functions by which liblmdb writes are those of [`writes`],
//! which count, and kill their process at the given one: before it, or when it has done half.
#![cfg(target_env = "gnu")]

mod common;
#[path = "common/writes.rs"]
mod writes;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Random, native, open, publish_to, put_raw, temp_dir};
use lightningstream_core::Cancel;
use lightningstream_core::header::FLAG_DELETED;
use lightningstream_core::lmdb::{Environment, flags};
use lightningstream_core::merge::{CaptureOptions, MergeOptions, SHADOW_PREFIX, Shadow, Stamp, capture, merge};
use lightningstream_core::publish::publish_shadow;
use lightningstream_core::snapshot::Meta;
use lightningstream_core::sweep::{SweepOptions, sweep};
use writes::{ARMED, KILL_AT, STEPS, TORN};

/// `SCENARIO STEP TORN DIRECTORY`: this process is the other one.
const VARIABLE: &str = "LS_TEST_KILL";
/// How many writes it made, in its directory, when it came to the end.
const STEPS_FILE: &str = "steps";

/// Everything in the environment, in order, duplicates included.
type State = BTreeMap<String, Vec<(Vec<u8>, Vec<u8>)>>;

fn state(env: &Environment) -> State {
    look(env).1
}

/// The transaction that readers see, and what they see.
fn look(env: &Environment) -> (u64, State) {
    let txn = env.read().unwrap();
    let mut all = State::new();
    for name in txn.dbi_names() {
        let mut cursor = txn.cursor(txn.dbi(name).unwrap().unwrap()).unwrap();
        let entries = all.entry(name.to_owned()).or_default();
        while let Some((key, value)) = cursor.next().unwrap() {
            entries.push((key.to_vec(), value.to_vec()));
        }
    }
    (txn.id(), all)
}

/// Without the numbers of local transactions: the same work done in more of them has others.
fn comparable(mut state: State) -> State {
    let shadowed = state.keys().any(|name| name.starts_with(SHADOW_PREFIX));
    for (name, entries) in &mut state {
        if !shadowed || name.starts_with(SHADOW_PREFIX) {
            entries.iter_mut().for_each(|(_, value)| value[8..16].fill(0));
        }
    }
    state
}

/// Called after each operation, none of which has more than one transaction.
type Done<'a> = &'a mut dyn FnMut(&Environment);

/// The work of a scenario and what it works on.
struct Scenario {
    name: &'static str,
    map_bytes: usize,
    /// Makes `local.mdb` and the snapshots.
    prepare: fn(&Path),
    work: fn(&Environment, &Path, Done<'_>),
}

const SCENARIOS: [Scenario; 3] = [
    Scenario { name: "native", map_bytes: 32 << 20, prepare: prepare_native, work: work_native },
    Scenario { name: "shadow", map_bytes: 32 << 20, prepare: prepare_shadow, work: work_shadow },
    Scenario { name: "large", map_bytes: 256 << 20, prepare: prepare_large, work: work_large },
];

fn local(dir: &Path) -> PathBuf {
    dir.join("local.mdb")
}

fn snapshot(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("{number}.pb.gz"))
}

/// With few candidates in memory, with none, with some before streaming begins.
const BUDGETS: [usize; 3] = [16 << 20, 0, 2000];
/// Of deletions.
const OLD: u64 = 10;

fn sweep_old(env: &Environment, shadow: bool) {
    let options = SweepOptions { cutoff: OLD, lock_duration: None, release_duration: Duration::ZERO, shadow };
    let swept = sweep(env, &options, &Cancel::new()).unwrap();
    assert!(swept.transactions <= 1 && swept.failed.is_none(), "the sweep is one transaction here: {swept:?}");
}

/// Not empty: such a value cannot stay in an application's DBI in shadow mode.
fn value(random: &mut Random) -> Vec<u8> {
    // Some need pages of their own.
    let length = *random.pick(&[1, 30, 30, 300, 300, 9000]);
    (0..length).map(|_| random.next() as u8).collect()
}

fn prepare_native(dir: &Path) {
    let mut random = Random(1);
    let fill = |random: &mut Random, env: &Environment, dbis: &[(&str, u32)]| {
        for &(dbi, dbi_flags) in dbis {
            let entries: BTreeMap<Vec<u8>, Vec<u8>> = (0..120)
                .map(|_| {
                    let key = (random.below(200) as u32).to_ne_bytes().to_vec();
                    let deleted = random.below(5) == 0;
                    let value = if deleted { Vec::new() } else { value(random) };
                    (key, native(OLD + random.below(1000), 1, u8::from(deleted), &value))
                })
                .collect();
            put_raw(env, dbi, dbi_flags, &entries.into_iter().collect::<Vec<_>>());
        }
    };
    let env = open(&local(dir), 32 << 20);
    fill(&mut random, &env, &[("records", 0), ("integers", flags::INTEGERKEY)]);
    let old: Vec<_> = (1000..1300_u32).map(|i| (i.to_ne_bytes().to_vec(), native(1, 1, FLAG_DELETED, b""))).collect();
    put_raw(&env, "records", 0, &old);
    for number in 0..BUDGETS.len() {
        let other = open(&dir.join(format!("other-{number}.mdb")), 32 << 20);
        let mut dbis = vec![("records", 0), ("integers", flags::INTEGERKEY)];
        if number == 1 {
            dbis.push(("new", flags::REVERSEKEY));
        }
        fill(&mut random, &other, &dbis);
        publish_to(&other, &snapshot(dir, number));
    }
}

fn work_native(env: &Environment, dir: &Path, done: Done<'_>) {
    for (number, budget_bytes) in BUDGETS.into_iter().enumerate() {
        let path = snapshot(dir, number);
        merge(env, &MergeOptions { budget_bytes, ..MergeOptions::new(&path) }, &Cancel::new()).unwrap();
        done(env);
    }
    sweep_old(env, false);
    done(env);
}

const DUPLICATES: u32 = flags::DUPSORT;

fn shadow(nano: u64) -> Shadow {
    Shadow { guard: true, stamp: Stamp::Fixed(nano), dupsort_hack: true }
}

/// Random changes of an application.
fn apply(random: &mut Random, env: &Environment) {
    let mut txn = env.write(true, &Cancel::new()).unwrap();
    for (name, dbi_flags) in [("plain", 0), ("integers", flags::INTEGERKEY), ("index", DUPLICATES)] {
        let dbi = match txn.dbi(name).unwrap() {
            Some(dbi) => dbi,
            None => txn.create_dbi(name, dbi_flags).unwrap(),
        };
        let mut cursor = txn.cursor(dbi).unwrap();
        for _ in 0..100 {
            let duplicates = dbi_flags & DUPLICATES != 0;
            let key = (1 + random.below(if duplicates { 10 } else { 150 }) as u32).to_ne_bytes();
            let value = if duplicates { random.below(100).to_be_bytes().to_vec() } else { value(random) };
            if random.below(3) > 0 {
                cursor.put(&key, &value, false).unwrap();
            } else if let Err(e) = cursor.delete(&key, &value) {
                assert_eq!(e.code.name(), "MDB_NOTFOUND", "{e}");
            }
        }
    }
    txn.commit().unwrap();
}

fn prepare_shadow(dir: &Path) {
    let mut random = Random(2);
    let env = open(&local(dir), 32 << 20);
    let captured = |nano| capture(&env, &CaptureOptions::new(shadow(nano)), &Cancel::new()).unwrap();
    let old: Vec<_> = (1000..1100_u32).map(|i| (i.to_ne_bytes().to_vec(), b"gone".to_vec())).collect();
    put_raw(&env, "plain", 0, &old);
    captured(1);
    let mut txn = env.write(true, &Cancel::new()).unwrap();
    assert!(txn.drop_dbi("plain").unwrap());
    txn.create_dbi("plain", 0).unwrap();
    txn.commit().unwrap();
    // Deletions for the sweep.
    captured(OLD - 1);
    for nano in [OLD, OLD + 1] {
        apply(&mut random, &env);
        captured(nano);
    }
    // And what the work captures.
    apply(&mut random, &env);
    for number in 0..BUDGETS.len() {
        let other = open(&dir.join(format!("other-{number}.mdb")), 32 << 20);
        apply(&mut random, &other);
        // Before and after what the work captures.
        capture(&other, &CaptureOptions::new(shadow(50 + number as u64)), &Cancel::new()).unwrap();
        apply(&mut random, &other);
        let path = snapshot(dir, number);
        publish_shadow(&other, &path, Meta::default(), 0, shadow(150 + number as u64), || 1, &Cancel::new()).unwrap();
    }
}

fn work_shadow(env: &Environment, dir: &Path, done: Done<'_>) {
    let cancel = Cancel::new();
    // As the first merge of all does it, in a transaction of its own and in the merge's.
    capture(env, &CaptureOptions { budget_bytes: 0, ..CaptureOptions::new(shadow(100)) }, &cancel).unwrap();
    done(env);
    for (number, budget_bytes) in BUDGETS.into_iter().enumerate() {
        let path = snapshot(dir, number);
        let options = MergeOptions { budget_bytes, shadow: Some(shadow(100)), ..MergeOptions::new(&path) };
        merge(env, &options, &cancel).unwrap();
        done(env);
    }
    sweep_old(env, true);
    done(env);
}

/// More than the 32 MiB that a transaction keeps in memory: pages go to the file before the commit.
fn prepare_large(dir: &Path) {
    let mut random = Random(3);
    let other = open(&dir.join("other.mdb"), 256 << 20);
    let entries: Vec<_> = (0..36_000_u32)
        .map(|i| {
            let value: Vec<u8> = (0..140).flat_map(|_| random.next().to_be_bytes()).collect();
            (i.to_be_bytes().to_vec(), native(OLD, 1, 0, &value))
        })
        .collect();
    put_raw(&other, "records", 0, &entries);
    publish_to(&other, &snapshot(dir, 0));
    let env = open(&local(dir), 256 << 20);
    put_raw(&env, "records", 0, &entries[..100]);
}

fn work_large(env: &Environment, dir: &Path, done: Done<'_>) {
    let path = snapshot(dir, 0);
    merge(env, &MergeOptions { budget_bytes: 0, ..MergeOptions::new(&path) }, &Cancel::new()).unwrap();
    done(env);
}

/// The other process.
#[test]
fn child() {
    let Ok(request) = std::env::var(VARIABLE) else { return };
    let parts: Vec<&str> = request.splitn(4, ' ').collect();
    let [name, step, torn, dir] = parts[..] else { panic!("{request}") };
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
    let dir = Path::new(dir);
    let env = open(&local(dir), scenario.map_bytes);
    KILL_AT.store(step.parse().unwrap(), Ordering::Relaxed);
    TORN.store(torn == "true", Ordering::Relaxed);
    ARMED.store(true, Ordering::Relaxed);
    (scenario.work)(&env, dir, &mut |_| ());
    ARMED.store(false, Ordering::Relaxed);
    std::fs::write(dir.join(STEPS_FILE), STEPS.load(Ordering::Relaxed).to_string()).unwrap();
}

/// Works in the other process, killed at that step; false when it came to its end instead.
fn killed(scenario: &Scenario, dir: &Path, step: u64, torn: bool) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(VARIABLE, format!("{} {step} {torn} {}", scenario.name, dir.display()))
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(libc::SIGKILL);
    assert!(killed || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    killed
}

/// A scenario's directory, what its undisturbed work commits, and how many steps that takes.
struct Prepared {
    dir: tempfile::TempDir,
    base: Vec<u8>,
    /// By transaction.
    states: BTreeMap<u64, State>,
    end: State,
    steps: u64,
}

impl Prepared {
    fn new(scenario: &Scenario) -> Self {
        let dir = temp_dir();
        (scenario.prepare)(dir.path());
        let base = std::fs::read(local(dir.path())).unwrap();
        let mut states = BTreeMap::new();
        let env = open(&local(dir.path()), scenario.map_bytes);
        let mut record = |env: &Environment| {
            let (id, state) = look(env);
            states.insert(id, state);
        };
        record(&env);
        (scenario.work)(&env, dir.path(), &mut record);
        let end = comparable(state(&env));
        drop(env);
        let mut prepared = Self { dir, base, states, end, steps: 0 };
        prepared.reset();
        assert!(!killed(scenario, prepared.dir.path(), 0, false));
        prepared.steps = std::fs::read_to_string(prepared.dir.path().join(STEPS_FILE)).unwrap().parse().unwrap();
        prepared
    }

    /// As it was before the work; nobody has used the file.
    fn reset(&self) {
        let path = local(self.dir.path());
        std::fs::write(&path, &self.base).unwrap();
        let _ = std::fs::remove_file(path.with_extension("mdb-lock"));
    }

    /// Kills the work once, looks at what is left, and does it again.
    fn kill_once(&self, scenario: &Scenario, step: u64, torn: bool, beside: bool) {
        let what =
            format!("{}, step {step} of {}, torn {torn}, application beside {beside}", scenario.name, self.steps);
        self.reset();
        let path = local(self.dir.path());
        // The application has the file open all the time, or nobody has.
        let application = beside.then(|| open(&path, scenario.map_bytes));
        assert!(killed(scenario, self.dir.path(), step, torn), "{what}");
        let env = application.unwrap_or_else(|| open(&path, scenario.map_bytes));
        // A commit that was killed between the file and the lock file is seen by those who come later.
        let (id, left) = look(&env);
        assert!(self.states.get(&id) == Some(&left), "{what}: transaction {id} was never committed like that");
        (scenario.work)(&env, self.dir.path(), &mut |_| ());
        assert!(comparable(state(&env)) == self.end, "{what}: another end");
    }
}

fn scenario(name: &str) -> &'static Scenario {
    SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap()
}

fn every_step(name: &str, at_least: u64) {
    let scenario = scenario(name);
    let prepared = Prepared::new(scenario);
    assert!(prepared.steps >= at_least, "{} steps", prepared.steps);
    for step in 1..=prepared.steps {
        for torn in [false, true] {
            prepared.kill_once(scenario, step, torn, (step % 2 == 0) != torn);
        }
    }
}

#[test]
fn native_merges_and_sweep_killed_at_every_write() {
    every_step("native", 20);
}

#[test]
fn shadow_captures_merges_and_sweep_killed_at_every_write() {
    every_step("shadow", 20);
}

#[test]
fn a_large_load_killed_while_pages_go_to_the_file_before_the_commit() {
    let scenario = scenario("large");
    let prepared = Prepared::new(scenario);
    assert!(prepared.steps > 100, "{} steps", prepared.steps);
    let last = prepared.steps;
    for step in (1..last).step_by(29).chain(last - 3..=last) {
        prepared.kill_once(scenario, step, step % 3 == 0, step % 2 == 0);
    }
}

/// Killed again while it does again what it was killed in.
#[test]
fn killed_again_and_again() {
    for name in ["native", "shadow"] {
        let scenario = scenario(name);
        let prepared = Prepared::new(scenario);
        for seed in 0..15 {
            let mut random = Random(seed);
            prepared.reset();
            let mut kills = 0;
            while kills < 20 {
                let step = 1 + random.below(prepared.steps);
                if !killed(scenario, prepared.dir.path(), step, random.below(2) == 0) {
                    break;
                }
                kills += 1;
            }
            let env = open(&local(prepared.dir.path()), scenario.map_bytes);
            (scenario.work)(&env, prepared.dir.path(), &mut |_| ());
            assert!(comparable(state(&env)) == prepared.end, "{name}, seed {seed}: another end after {kills} kills");
        }
    }
}
