//! The backend's program: whether this machine can run it, and a name for it that stays when the file is replaced.
//!
//! A backend is started again from the same program for as long as it is in service. Without a name of its own for it, a
//! build that replaces the file would slip a new version in at the next crash, and rolling back to the old one could not last.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::{AccessFlags, access};

use crate::files;
use crate::layout::Layout;

/// A program that can be started as often as need be.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// As the operator named it.
    pub(super) named: PathBuf,
    /// What is started.
    pub(super) started: PathBuf,
    /// Why it is started from where it is, though it should not be.
    pub(super) warning: Option<String>,
}

/// Why a file cannot be run.
#[derive(Debug, thiserror::Error)]
pub(super) enum BinaryError {
    #[error("there is no {0}")]
    Missing(PathBuf),
    #[error("{0} is not a file")]
    NotAFile(PathBuf),
    #[error("{0} is not executable")]
    NotExecutable(PathBuf),
    #[error("{0} is neither a program (ELF) nor a script (#!)")]
    NotAProgram(PathBuf),
    #[error("{path} is a program for {theirs}; this machine runs {ours}")]
    OtherMachine {
        path: PathBuf,
        theirs: String,
        ours: String,
    },
    #[error("{path} cannot be read: {error}")]
    Unreadable { path: PathBuf, error: std::io::Error },
}

impl Program {
    /// Checks the file and makes a second name for it, for the backend called `name`.
    pub(super) fn pin(layout: &Layout, named: &Path, name: &str) -> Result<Self> {
        let kind = check(named)?;
        match kind {
            // A script may look for what lies beside it.
            Kind::Script => Ok(Self {
                named: named.to_owned(),
                started: named.to_owned(),
                warning: None,
            }),
            Kind::Elf(_) => pin(layout, named, name, is_startable),
        }
    }

    /// Removes the second name, when the backend called `name` is gone for good.
    pub(super) fn unpin(layout: &Layout, name: &str) {
        // What cannot be removed is removed at the next start.
        let _ = fs::remove_dir_all(layout.pinned(name));
    }

    /// Removes what an earlier `up` left.
    pub(super) fn unpin_all(layout: &Layout) -> Result<()> {
        match fs::remove_dir_all(layout.pins()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot clear {}", layout.pins().display()))
            }
            _ => Ok(()),
        }
    }
}

/// A hard link where the file system allows one, else a copy; the name that there is where neither could be started.
fn pin(layout: &Layout, named: &Path, name: &str, is_startable: fn(&Path) -> bool) -> Result<Program> {
    let directory = layout.pinned(name);
    files::private_dir(&directory)?;
    let real = fs::canonicalize(named).with_context(|| format!("{}", named.display()))?;
    // `ps` and the crash reports show this name.
    let started = directory.join(named.file_name().unwrap_or_else(|| "holdfast-backend".as_ref()));
    let _ = fs::remove_file(&started);
    let linked = fs::hard_link(&real, &started).is_ok() && same_file(&real, &started);
    if !linked {
        let _ = fs::remove_file(&started);
        fs::copy(&real, &started)
            .with_context(|| format!("cannot copy {} to {}", real.display(), directory.display()))?;
    }
    let named = named.to_owned();
    if is_startable(&started) {
        return Ok(Program {
            named,
            started,
            warning: None,
        });
    }
    let _ = fs::remove_dir_all(&directory);
    let warning = format!(
        "no program can be started in {} (is it mounted noexec?): {} is started from where it is, and after a crash whatever \
         file is there then",
        layout.root().display(),
        named.display()
    );
    Ok(Program {
        started: named.clone(),
        named,
        warning: Some(warning),
    })
}

/// The mount may forbid what the file's mode allows.
fn is_startable(path: &Path) -> bool {
    access(path, AccessFlags::X_OK).is_ok()
}

fn same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    id(one).is_some() && id(one) == id(other)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Script,
    Elf(Machine),
}

/// ELF's class and `e_machine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Machine {
    class: u8,
    machine: u16,
}

fn check(path: &Path) -> Result<Kind, BinaryError> {
    let named = || path.to_owned();
    let unreadable = |error| BinaryError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => BinaryError::Missing(named()),
        _ => unreadable(error),
    })?;
    if !metadata.is_file() {
        return Err(BinaryError::NotAFile(named()));
    }
    if access(path, AccessFlags::X_OK).is_err() {
        return Err(BinaryError::NotExecutable(named()));
    }
    let kind = kind(&head(path).map_err(unreadable)?).ok_or_else(|| BinaryError::NotAProgram(named()))?;
    let own = head(Path::new("/proc/self/exe"))
        .ok()
        .and_then(|head| self::kind(&head));
    match (kind, own) {
        (Kind::Elf(theirs), Some(Kind::Elf(ours))) if theirs != ours => Err(BinaryError::OtherMachine {
            path: named(),
            theirs: theirs.to_string(),
            ours: ours.to_string(),
        }),
        _ => Ok(kind),
    }
}

fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(head)
}

/// Reads the first bytes of elf(5)'s header.
fn kind(head: &[u8]) -> Option<Kind> {
    if head.starts_with(b"#!") {
        return Some(Kind::Script);
    }
    let machine: [u8; 2] = head.get(18..20)?.try_into().ok()?;
    let (magic, class, order) = (head.get(..4)?, head[4], head[5]);
    let machine = match order {
        1 => u16::from_le_bytes(machine),
        2 => u16::from_be_bytes(machine),
        _ => return None,
    };
    (magic == b"\x7fELF").then_some(Kind::Elf(Machine { class, machine }))
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bits = if self.class == 1 { 32 } else { 64 };
        match self.machine {
            3 => f.write_str("x86"),
            40 => f.write_str("arm"),
            62 => f.write_str("x86_64"),
            183 => f.write_str("aarch64"),
            243 => write!(f, "riscv{bits}"),
            other => write!(f, "ELF machine {other} ({bits} bit)"),
        }
    }
}

/// Up to and with `e_machine`.
const HEAD_BYTES: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(dir: &Path, name: &str, contents: &[u8], mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Our own header with another machine in it.
    fn of_other_machine() -> Vec<u8> {
        let mut head = head(Path::new("/proc/self/exe")).unwrap();
        let other: u16 = if head[18] == 183 { 62 } else { 183 };
        head[18..20].copy_from_slice(&other.to_le_bytes());
        head
    }

    #[test]
    fn what_cannot_run_is_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for (path, reason) in [
            (dir.join("missing"), "there is no"),
            (dir.to_owned(), "is not a file"),
            (file(dir, "plain", b"#!/bin/sh\n", 0o644), "is not executable"),
            (
                file(dir, "text", b"hello, this is text", 0o755),
                "neither a program",
            ),
            (file(dir, "empty", b"", 0o755), "neither a program"),
            (file(dir, "other", &of_other_machine(), 0o755), "is a program for"),
        ] {
            let error = check(&path).unwrap_err().to_string();
            let named = error.contains(path.to_str().unwrap());
            assert!(named && error.contains(reason), "{error}");
        }
        assert!(check(Path::new("/proc/self/exe")).is_ok());
        let script = file(dir, "script", b"#!/bin/sh\n", 0o755);
        assert_eq!(check(&script).unwrap(), Kind::Script);
    }

    #[test]
    fn a_pinned_program_outlives_the_file_that_it_came_from() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        let mut contents = head(Path::new("/proc/self/exe")).unwrap();
        contents.push(1);
        let named = file(dir.path(), "holdfast-backend", &contents, 0o755);
        let program = Program::pin(&layout, &named, "backend-1").unwrap();
        assert_eq!(program.named, named);
        assert!(program.started.ends_with("backend-1/holdfast-backend"));
        // As `cargo build` and package managers do it.
        fs::remove_file(&named).unwrap();
        file(dir.path(), "holdfast-backend", b"another", 0o755);
        assert_eq!(fs::read(&program.started).unwrap(), contents);
        Program::unpin(&layout, "backend-1");
        assert!(!program.started.exists());
        Program::unpin_all(&layout).unwrap();
        Program::unpin_all(&layout).unwrap();
    }

    #[test]
    fn where_nothing_can_be_started_the_program_is_started_from_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        let contents = head(Path::new("/proc/self/exe")).unwrap();
        let named = file(dir.path(), "holdfast-backend", &contents, 0o755);
        let program = pin(&layout, &named, "backend-1", |_| false).unwrap();
        assert_eq!((&program.started, &program.named), (&named, &named));
        assert!(program.warning.unwrap().contains("noexec"));
        assert!(!layout.pinned("backend-1").exists(), "nothing useless is left");
        assert!(is_startable(&named));
        assert!(!is_startable(&file(dir.path(), "plain", &contents, 0o644)));
    }

    #[test]
    fn a_script_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        let script = file(dir.path(), "script", b"#!/bin/sh\n", 0o755);
        assert_eq!(Program::pin(&layout, &script, "b").unwrap().started, script);
    }
}
