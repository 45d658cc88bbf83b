//! What part of the sessions a backend takes.

use std::fmt;
use std::str::FromStr;

/// Hundredths of a percent of the sessions: nothing (a standby), a part (a canary), or a full member, which shares what
/// canaries leave with the other full ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u16);

/// A share that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed is 0% to 100%, with two decimals at most")]
pub struct ShareError;

const WHOLE: u16 = 10_000;

impl Share {
    /// A standby: attached, without work.
    pub const NONE: Self = Self(0);
    /// A full member.
    pub const FULL: Self = Self(WHOLE);

    /// The share of so many hundredths of a percent; what is above the whole counts as the whole.
    pub fn clamped(hundredths: u32) -> Self {
        Self(u16::try_from(hundredths).unwrap_or(WHOLE).min(WHOLE))
    }

    /// # Errors
    /// Below 0, above 100, or with more than two decimals.
    pub fn from_percent(percent: f64) -> Result<Self, ShareError> {
        let hundredths = percent * 100.0;
        let nearest = hundredths.round();
        let close = (hundredths - nearest).abs() < 1e-6;
        if close && (0.0..=f64::from(WHOLE)).contains(&nearest) {
            Ok(Self(nearest as u16))
        } else {
            Err(ShareError)
        }
    }

    pub fn hundredths(self) -> u16 {
        self.0
    }

    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    pub fn is_full(self) -> bool {
        self == Self::FULL
    }

    /// A part, and not the whole.
    pub fn is_canary(self) -> bool {
        !self.is_none() && !self.is_full()
    }
}

/// As people write it: `5%`, `0.25%`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.percent())
    }
}

/// Takes `5%`, `0.5%` and `5`.
impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        let number = text.strip_suffix('%').unwrap_or(text).trim_end();
        // Rust reads more than people write as a number: "inf", "1e1", "+5".
        if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(ShareError);
        }
        Self::from_percent(number.parse().map_err(|_| ShareError)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_read_and_written() {
        for (text, hundredths, written) in [
            ("5%", 500, "5%"),
            ("0.5%", 50, "0.5%"),
            ("0.07 %", 7, "0.07%"),
            ("100", 10_000, "100%"),
            ("0%", 0, "0%"),
            ("33.33%", 3_333, "33.33%"),
        ] {
            let share: Share = text.parse().unwrap();
            assert_eq!(
                (share.hundredths(), share.to_string().as_str()),
                (hundredths, written)
            );
            assert_eq!(Share::from_percent(share.percent()), Ok(share));
        }
        for bad in [
            "", "%", "-1%", "100.01%", "0.001%", "5%%", "inf", "NaN", "1e1", "five", "5 5",
        ] {
            assert_eq!(bad.parse::<Share>(), Err(ShareError), "{bad}");
        }
        assert_eq!(Share::from_percent(f64::NAN), Err(ShareError));
    }

    #[test]
    fn a_share_is_nothing_a_part_or_the_whole() {
        let kinds = |s: Share| (s.is_none(), s.is_canary(), s.is_full());
        assert_eq!(kinds(Share::NONE), (true, false, false));
        assert_eq!(kinds(Share::clamped(1)), (false, true, false));
        assert_eq!(kinds(Share::clamped(9_999)), (false, true, false));
        assert_eq!(kinds(Share::clamped(20_000)), (false, false, true));
    }
}
