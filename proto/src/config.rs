//! Configuration values that parse into valid types, with errors that say what is allowed.

use std::fmt;
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

#[cfg(test)]
mod tests {
    use super::*;

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
