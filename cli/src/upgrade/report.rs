//! What an upgrade saw, for programs and for people. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::event::Sight;
use super::figures::{Figures, Tally};
use super::losses::Losses;
use super::reason::times;
use super::verdict::{MIN_REQUESTS, MIN_TIMED, Verdict, micros, percent};

/// The figures of one upgrade.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) old: Side,
    pub(crate) new: Side,
    /// 0 without a canary.
    pub(crate) canary_percent: f64,
    /// How long both were watched.
    pub(crate) watched_ms: u64,
    /// Whether there were enough requests to compare errors, and times; none without a canary.
    pub(crate) compared: Option<Compared>,
    /// How the old one left; none if it did not.
    pub(crate) hand_over: Option<HandOver>,
    pub(crate) notes: Vec<String>,
    pub(crate) took_ms: u64,
}

/// One of the two backends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) binary: PathBuf,
    pub(crate) pid: Option<u32>,
    pub(crate) version: Option<String>,
    /// What it did in the watch.
    #[serde(flatten)]
    pub(crate) sight: Sight,
    /// Its error replies in the watch by code.
    pub(crate) errors_by_code: BTreeMap<String, u64>,
    /// How often it was started again in the watch.
    pub(crate) restarts: u32,
    /// How often the frontend lost it in the watch: it crashed, hung, or its link broke.
    #[serde(default)]
    pub(crate) lost: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compared {
    pub(crate) errors: bool,
    pub(crate) times: bool,
    /// How often the frontend lost each of them: it may not have answered.
    #[serde(default)]
    pub(crate) losses: bool,
}

/// How a backend left its frontend, as that one says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HandOver {
    /// `graceful`, `grace_over`, `crash`, `hang` or `fenced`.
    pub(crate) kind: String,
    /// Graceful: those that it had still to finish. Else those that were given to others.
    pub(crate) requests: u64,
    pub(crate) duration_ms: u64,
}

impl Sight {
    pub(crate) fn of(figures: &Figures) -> Self {
        Self {
            requests: figures.answered,
            errors: figures.error_count(),
            p95_us: figures.duration_us.quantile(0.95).map(|us| us.round() as u64),
        }
    }

    /// `1200 requests, 3 errors (0.25 %), p95 1.2 ms`
    pub(crate) fn line(&self) -> String {
        let mut line = format!("{} requests", self.requests);
        if self.requests > 0 {
            let share = self.errors as f64 / self.requests as f64;
            let _ = write!(line, ", {} errors ({})", self.errors, percent(share));
        }
        if let Some(p95) = self.p95_us {
            let _ = write!(line, ", p95 {}", micros(p95 as f64));
        }
        line
    }
}

impl Side {
    pub(crate) fn note_tally(&mut self, tally: &Tally) {
        let figures = tally.figures();
        self.sight = Sight::of(&figures);
        self.errors_by_code = figures.errors;
        self.restarts = tally.restarts();
    }

    fn title(&self) -> String {
        let version = self.version.as_deref().map_or(String::new(), |v| format!(" {v}"));
        let pid = self.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
        format!("{}{version} ({}{pid})", self.name, self.binary.display())
    }
}

impl Report {
    pub(crate) fn note_verdict(&mut self, verdict: &Verdict, losses: &Losses) {
        (self.old.lost, self.new.lost) = (losses.old(), losses.new_one());
        self.compared = Some(Compared {
            errors: verdict.errors_compared,
            times: verdict.times_compared,
            losses: losses.are_known(),
        });
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str("  ");
            text.push_str(&line);
            text.push('\n');
        };
        line(format!("old  {}", self.old.title()));
        line(format!("new  {}", self.new.title()));
        if let Some(compared) = self.compared {
            let seconds = self.watched_ms as f64 / 1e3;
            line(format!(
                "watched for {seconds:.1} s with {} % of the devices at the new one:",
                self.canary_percent
            ));
            for (word, side) in [("old", &self.old), ("new", &self.new)] {
                line(format!("  {word}  {}", side.sight.line()));
                for (code, count) in side.errors_by_code.iter().take(MAX_CODES) {
                    line(format!("       {code} {count}"));
                }
            }
            for missing in compared.missing() {
                line(missing);
            }
            if self.old.restarts > 0 {
                let times = times(self.old.restarts);
                line(format!("the old one was started again {times} meanwhile"));
            }
            for (word, side) in [("old", &self.old), ("new", &self.new)] {
                if side.lost > 0 {
                    let times = times(side.lost);
                    line(format!("the frontend lost the {word} one {times} meanwhile"));
                }
            }
        }
        if let Some(hand_over) = &self.hand_over {
            line(hand_over.line());
        }
        self.notes.iter().for_each(|note| line(note.clone()));
        text
    }
}

impl Compared {
    fn missing(self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.errors {
            lines.push(format!(
                "too few requests to compare errors (at least {MIN_REQUESTS} at each)"
            ));
        }
        if !self.times {
            lines.push(format!(
                "too few requests to compare times (at least {MIN_TIMED} at each)"
            ));
        }
        if !self.losses {
            lines.push("the frontend did not say whether it lost one of them".into());
        }
        lines
    }
}

impl HandOver {
    fn line(&self) -> String {
        let Self {
            kind,
            requests,
            duration_ms,
        } = self;
        match kind.as_str() {
            "graceful" => {
                format!(
                    "the old one finished the {requests} requests that it still had, and left after {duration_ms} ms"
                )
            }
            "grace_over" => format!(
                "the old one's grace was over before it was done: {requests} requests were given to the new one (a \
                 service may have got them twice, with the same Idempotency-Key)"
            ),
            kind => format!(
                "the old one was lost while it left ({kind}): {requests} requests were given to the new one (a service \
                 may have got them twice, with the same Idempotency-Key)"
            ),
        }
    }
}

/// Error codes shown per side; there are about ten.
const MAX_CODES: usize = 12;

#[cfg(test)]
mod tests {
    use super::super::figures::tests::{figures, status};
    use super::super::losses::{Loss, Which};
    use super::super::verdict::{Look, judge};
    use super::*;

    fn watched() -> Report {
        let (mut old, mut new) = (Tally::default(), Tally::default());
        for (tally, answered, errors) in [(&mut old, 1_000, 5), (&mut new, 50, 50)] {
            tally.handle_status(&status(1, figures(0, 0, &[0; 5])));
            tally.handle_status(&status(1, figures(answered, errors, &[answered, 0, 0, 0, 0])));
        }
        let mut report = Report {
            canary_percent: 5.0,
            watched_ms: 2_500,
            ..Report::default()
        };
        report.old.note_tally(&old);
        report.new.note_tally(&new);
        let mut losses = Losses::default();
        losses.handle_look(&[]);
        let epoch = "e".to_owned();
        losses.handle_look(&[Loss {
            which: Which::New,
            epoch,
        }]);
        report.note_verdict(&judge(&old.figures(), &new.figures(), Look::Last), &losses);
        report
    }

    #[test]
    fn the_figures_of_both_are_told() {
        let mut report = watched();
        (report.old.name, report.old.binary) = ("backend-1".into(), "/bin/b".into());
        report.old.version = Some("0.1.0".into());
        report.hand_over = Some(HandOver {
            kind: "graceful".into(),
            requests: 3,
            duration_ms: 12,
        });
        let text = report.text();
        for part in [
            "old  backend-1 0.1.0 (/bin/b)",
            "watched for 2.5 s with 5 % of the devices",
            "1000 requests, 5 errors (0.50 %), p95 950 µs",
            "50 requests, 50 errors (100.00 %)",
            "upstream_error 50",
            "too few requests to compare times (at least 100 at each)",
            "the frontend lost the new one once meanwhile",
            "finished the 3 requests that it still had, and left after 12 ms",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("compare errors") && !text.contains("did not say"));
    }

    #[test]
    fn a_report_survives_the_wire() {
        let report = watched();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(text.contains(r#""requests":50,"errors":50,"p95_us":"#), "{text}");
    }

    #[test]
    fn a_hand_over_that_was_not_graceful_says_so() {
        for kind in ["grace_over", "crash", "hang", "fenced"] {
            let report = Report {
                hand_over: Some(HandOver {
                    kind: kind.into(),
                    requests: 7,
                    duration_ms: 1,
                }),
                ..Report::default()
            };
            assert!(
                report.text().contains("7 requests were given to the new one"),
                "{kind}"
            );
        }
    }
}
