//! Mutants of the shipping logic: a simulation that lets one pass shows nothing about what it guards.
//!
//! The tables in `mutants/` say which text is replaced by which, one for each simulation. All of them go into one copy of the
//! workspace, each behind a switch that an environment variable turns on: one build serves them all, and what is tested beside the mutation
//! is the very text that ships. The copy has a version and a program name of its own, so that cargo keeps its artifacts apart
//! and takes the dependencies that are built already.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs};

use serde::Deserialize;

/// What the copy is made of.
const PARTS: [&str; 10] = [
    "Cargo.toml",
    "Cargo.lock",
    "rust-toolchain.toml",
    "proto",
    "frontend",
    "backend",
    "client",
    "cli",
    "tests",
    "bench",
];
const SWITCH: &str = "HOLDFAST_MUTANT";

/// A simulation and what it must catch.
struct Suite {
    table: &'static str,
    /// Its name in the copy, and its source in this crate.
    program: &'static str,
    source: &'static str,
    /// Seeds that each mutant gets: the same ones each time, then as many fresh ones.
    seeds: u64,
}

const SUITES: [Suite; 2] = [
    Suite {
        table: "tests/mutants/cores.toml",
        program: "holdfast-simulate-mutants",
        source: "src/bin/holdfast-simulate.rs",
        seeds: 1000,
    },
    Suite {
        table: "tests/mutants/transport.toml",
        program: "holdfast-simulate-udp-mutants",
        source: "src/bin/holdfast-simulate-udp.rs",
        seeds: 1000,
    },
];
/// Seeds that must be clean with no mutant on.
const CLEAN_SEEDS: u64 = 200;
const THREADS: usize = 2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    mutant: Vec<Mutant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    what: String,
    /// Those that may catch it: another one would be luck.
    promises: Vec<String>,
    edit: Vec<Edit>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    file: PathBuf,
    find: String,
    replace: String,
}

#[test]
#[ignore = "builds a copy of the workspace: .ci/run calls it"]
fn every_mutant_of_the_cores_is_caught() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace");
    let tables = SUITES.map(|suite| read_table(root, suite.table));
    let all: Vec<&Mutant> = tables.iter().flatten().collect();
    let began = Instant::now();
    let directory = build(root, &all);
    println!("built in {:.0} s", began.elapsed().as_secs_f64());
    let mut verdicts = Vec::new();
    for (suite, mutants) in SUITES.iter().zip(&tables) {
        let program = directory.join(suite.program);
        let clean = simulate(&program, "none", (1, CLEAN_SEEDS));
        assert!(
            clean.status.success(),
            "the copy itself is broken:\n{}",
            text(&clean)
        );
        verdicts.extend(judge_all(&program, suite.seeds, mutants));
    }
    for verdict in &verdicts {
        println!("{}", verdict.line);
    }
    println!(
        "{} mutants in {:.0} s",
        verdicts.len(),
        began.elapsed().as_secs_f64()
    );
    let missed: Vec<&str> = verdicts
        .iter()
        .filter(|v| !v.caught)
        .map(|v| v.line.as_str())
        .collect();
    assert!(
        missed.is_empty(),
        "not caught as they must be:\n{}",
        missed.join("\n")
    );
}

fn read_table(root: &Path, path: &str) -> Vec<Mutant> {
    let table = fs::read_to_string(root.join(path)).expect("the table of mutants");
    let table: Table = toml::from_str(&table).expect("a valid table of mutants");
    table.mutant
}

struct Verdict {
    caught: bool,
    line: String,
}

fn judge_all(program: &Path, seeds: u64, mutants: &[Mutant]) -> Vec<Verdict> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = judge(program, seeds, mutant);
                    done.lock()
                        .expect("no judge panics with the lock held")
                        .push(verdict);
                }
            });
        }
    });
    done.into_inner().expect("no judge panics with the lock held")
}

fn judge(program: &Path, seeds: u64, mutant: &Mutant) -> Verdict {
    let Mutant { name, what, .. } = mutant;
    let mut tried = 0;
    for first in [1, by_the_clock()] {
        let output = simulate(program, name, (first, seeds));
        if output.status.success() {
            tried += seeds;
            continue;
        }
        let text = text(&output);
        let Some((seed, promise)) = text.lines().rev().find_map(read_failure) else {
            let line = format!("{name}: the simulation ended without a verdict:\n{text}");
            return Verdict { caught: false, line };
        };
        tried += seed.wrapping_sub(first) + 1;
        let caught = mutant.promises.contains(&promise);
        let mut line = format!("{name} ({what}): {promise} after {tried} seeds");
        if !caught {
            let _ = write!(line, ", which is not one of {:?}:\n{text}", mutant.promises);
        }
        return Verdict { caught, line };
    }
    let line = format!("{name} ({what}): SURVIVED {tried} seeds");
    Verdict { caught: false, line }
}

/// Seed and promise of a line such as `seed 5 step 358 at 0.380681s: InOrder is broken: …`.
fn read_failure(line: &str) -> Option<(u64, String)> {
    let (seed, rest) = line.strip_prefix("seed ")?.split_once(' ')?;
    let (_, rest) = rest.split_once("s: ")?;
    let (promise, _) = rest.split_once(" is broken: ")?;
    Some((seed.parse().ok()?, promise.to_owned()))
}

fn simulate(program: &Path, mutant: &str, (from, seeds): (u64, u64)) -> Output {
    let mut command = Command::new(program);
    command.env(SWITCH, mutant).arg("--from").arg(from.to_string());
    command
        .args(["--threads", "1"])
        .arg("--seeds")
        .arg(seeds.to_string());
    let output = command.output();
    output.expect("the program that was just built")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn by_the_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since: Duration| since.as_millis() as u64)
}

/// Gives the directory of the programs.
fn build(root: &Path, mutants: &[&Mutant]) -> PathBuf {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let copy = scratch.join("mutants");
    let mut files = BTreeSet::new();
    PARTS
        .iter()
        .for_each(|part| list(root, Path::new(part), &mut files));
    let mut old = BTreeSet::new();
    PARTS
        .iter()
        .for_each(|part| list(&copy, Path::new(part), &mut old));
    for gone in old.difference(&files) {
        fs::remove_file(copy.join(gone)).expect("an old file of the copy");
    }
    for file in &files {
        let bytes = fs::read(root.join(file)).expect("a file of the workspace");
        let bytes = change(file, bytes, mutants);
        // What has not changed is not built again.
        if fs::read(copy.join(file)).ok().as_ref() != Some(&bytes) {
            let directory = copy.join(file).parent().map(Path::to_owned).expect("a directory");
            fs::create_dir_all(directory).expect("the copy's directory");
            fs::write(copy.join(file), bytes).expect("a file of the copy");
        }
    }
    let target = scratch.parent().expect("the target directory");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--offline", "--quiet", "--workspace"]);
    SUITES.iter().for_each(|suite| {
        cargo.args(["--bin", suite.program]);
    });
    let built = cargo.current_dir(&copy).env("CARGO_TARGET_DIR", target).output();
    let built = built.expect("cargo runs");
    assert!(
        built.status.success(),
        "the mutants do not build:\n{}",
        text(&built)
    );
    target.join("debug")
}

/// The files of a part, relative to the root.
fn list(root: &Path, part: &Path, files: &mut BTreeSet<PathBuf>) {
    let path = root.join(part);
    if path.is_file() {
        files.insert(part.to_owned());
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        list(root, &part.join(entry.file_name()), files);
    }
}

/// A file as the copy has it.
fn change(file: &Path, bytes: Vec<u8>, mutants: &[&Mutant]) -> Vec<u8> {
    let replacements: Vec<(String, String)> = match file.to_str() {
        Some("Cargo.toml") => vec![(
            "version = \"0.1.0\"\n".into(),
            "version = \"0.1.0-mutants\"\n".into(),
        )],
        Some("tests/Cargo.toml") => vec![(
            "\n[lints]\n".into(),
            format!("autobins = false\n\n{}\n[lints]\n", binaries()),
        )],
        _ => edits_of(file, mutants),
    };
    let is_root = file == Path::new("proto/src/lib.rs");
    if replacements.is_empty() && !is_root {
        return bytes;
    }
    let mut text = String::from_utf8(bytes).expect("source text");
    for (find, replace) in replacements {
        let found = text.matches(&find).count();
        assert_eq!(
            found,
            1,
            "{} has this {found} times, not once: {find}",
            file.display()
        );
        text = text.replacen(&find, &replace, 1);
    }
    if is_root {
        text += &switch();
    }
    text.into_bytes()
}

/// Only the simulations are built, under names of their own.
fn binaries() -> String {
    let binary = |suite: &Suite| {
        format!(
            "[[bin]]\nname = \"{}\"\npath = \"{}\"\n\n",
            suite.program, suite.source
        )
    };
    SUITES.iter().map(binary).collect()
}

fn edits_of(file: &Path, mutants: &[&Mutant]) -> Vec<(String, String)> {
    let edits = mutants
        .iter()
        .flat_map(|mutant| mutant.edit.iter().map(move |edit| (&mutant.name, edit)));
    let mine = edits.filter(|(_, edit)| edit.file == file);
    mine.map(|(name, edit)| {
        let is_on = format!("holdfast_proto::is_mutant(\"{name}\")");
        (edit.find.clone(), edit.replace.replace("MUTANT", &is_on))
    })
    .collect()
}

/// What tells whether a mutant is on.
fn switch() -> String {
    format!(
        "extern crate self as holdfast_proto;\n\
         /// Whether this mutant is on.\n\
         pub fn is_mutant(name: &str) -> bool {{\n\
             static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();\n\
             ON.get_or_init(|| std::env::var(\"{SWITCH}\").ok()).as_deref() == Some(name)\n\
         }}\n"
    )
}

#[test]
fn a_verdict_is_read() {
    let line = "seed 5 step 358 at 0.380681s: InOrder is broken: PipeId(1): reply 4: it seems: late";
    assert_eq!(read_failure(line), Some((5, "InOrder".to_owned())));
    assert_eq!(read_failure("200 seeds from 5, 0 failed"), None);
}
