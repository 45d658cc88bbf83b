//! Configuration values that parse into valid types, with errors that say what is allowed; and who may use files with secrets.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};

/// A duration written as text with a unit, such as `"250ms"` or `"30s"`, of at least one millisecond and at most a year.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(pub Duration);

const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

impl Interval {
    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    pub const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    pub fn get(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad = || {
            D::Error::custom(format!(
                "{text:?} is not a duration from 1ms to 1y such as \"250ms\" or \"30s\""
            ))
        };
        let duration = humantime::parse_duration(&text).map_err(|_| bad())?;
        if duration < Duration::from_millis(1) || duration > LONGEST {
            return Err(bad());
        }
        Ok(Self(duration))
    }
}

/// Judges who may use a file that holds a secret; gives a warning to log with the file's path.
///
/// The group may: so systemd and containers hand files to a service. That others can read it is only warned of, since containers mount
/// secrets so (Docker with mode 0444, Kubernetes with 0644), where there is nobody else to read them.
///
/// # Errors
/// Others can write it. Nobody mounts secrets so, and who writes it puts in a key that he knows.
pub fn check_secret_file(file: &Metadata) -> io::Result<Option<String>> {
    const READ: u32 = 0o004;
    const WRITE: u32 = 0o002;
    let mode = file.permissions().mode() & 0o7777;
    if mode & WRITE != 0 {
        return Err(io::Error::other(format!(
            "it holds a secret and has mode {mode:04o}: others can write it; chmod 600 or 640 it"
        )));
    }
    let warning = || {
        format!(
            "this file holds a secret and has mode {mode:04o}: everybody can read it; chmod 600 or 640 it"
        )
    };
    Ok((mode & READ != 0).then(warning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_others_can_write_is_refused_and_one_that_they_can_read_is_warned_of() {
        let path = std::env::temp_dir().join(format!("holdfast-secret-{}", std::process::id()));
        std::fs::write(&path, "secret").unwrap();
        let judge = |mode| {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            check_secret_file(&std::fs::metadata(&path).unwrap()).map_err(|error| error.to_string())
        };
        for mode in [0o400, 0o600, 0o440, 0o640, 0o660, 0o700] {
            assert_eq!(judge(mode), Ok(None), "{mode:o}");
        }
        for mode in [0o444, 0o604, 0o644, 0o755] {
            let warning = judge(mode).unwrap().unwrap();
            assert!(
                warning.contains(&format!("mode {mode:04o}: everybody can read it; chmod")),
                "{warning}"
            );
        }
        for mode in [0o602, 0o606, 0o666, 0o777] {
            let error = judge(mode).unwrap_err();
            assert!(
                error.contains(&format!("mode {mode:04o}: others can write it; chmod")),
                "{error}"
            );
        }
        std::fs::remove_file(&path).unwrap();
    }

    fn parse(text: &str) -> Result<Interval, serde_json::Error> {
        serde_json::from_str(&format!("{text:?}"))
    }

    #[test]
    fn intervals_parse_and_refuse() {
        assert_eq!(parse("250ms").unwrap(), Interval::from_millis(250));
        assert_eq!(parse("1m 30s").unwrap(), Interval::from_secs(90));
        for bad in ["", "5", "-1s", "0s", "3y", "soon"] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("such as"), "{error}");
        }
    }
}
