//! What is said while a run lasts: on a terminal one line that changes each second, elsewhere lines that stay.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::phase::Stage;
use super::report::EventReport;
use super::table::grouped;

pub(crate) struct Progress {
    is_terminal: bool,
    line_is_open: bool,
    since_line: u32,
    events: usize,
    last_sent: u64,
}

/// The state of a run at one second.
pub(crate) struct Status {
    pub(crate) at: Duration,
    pub(crate) sent: u64,
    pub(crate) unanswered: u64,
    /// Dropped, lost and wrong together.
    pub(crate) noticed: u64,
    pub(crate) events_done: usize,
    pub(crate) stage: Stage,
}

impl Progress {
    pub(crate) fn new(events: usize) -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            line_is_open: false,
            since_line: 0,
            events,
            last_sent: 0,
        }
    }

    /// A line that stays.
    pub(crate) fn say(&mut self, text: &str) {
        self.end_line();
        say!("{text}");
        self.since_line = 0;
    }

    /// Once per second.
    pub(crate) fn tick(&mut self, status: &Status) {
        let rate = status.sent.saturating_sub(self.last_sent);
        self.last_sent = status.sent;
        self.since_line += 1;
        let now = match status.stage {
            Stage::During(kind) => format!("{} …", kind.label()),
            Stage::Warmup | Stage::Quiet | Stage::After(_) => String::new(),
        };
        let line = format!(
            "{:>6.0} s  {:>6}/s  {:>5} in flight  {:>12} sent  noticed {}  events {}/{}  {now}",
            status.at.as_secs_f64(),
            grouped(rate),
            grouped(status.unanswered),
            grouped(status.sent),
            grouped(status.noticed),
            status.events_done,
            self.events
        );
        if self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K{line}");
            let _ = std::io::stderr().flush();
            self.line_is_open = true;
        } else if self.since_line >= PLAIN_EVERY {
            self.say(line.trim_end());
        }
    }

    pub(crate) fn event(&mut self, event: &EventReport) {
        let EventReport {
            kind,
            at_ms,
            took_ms,
            outcome,
            latency,
            ..
        } = event;
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.0}"));
        self.say(&format!(
            "{:>6.1} s  {:<9} {took_ms:>6} ms  p50 {} p99 {} max {} ms  {outcome}",
            *at_ms as f64 / 1000.0,
            kind.label(),
            ms(latency.p50_ms),
            ms(latency.p99_ms),
            ms(latency.max_ms)
        ));
    }

    pub(crate) fn end_line(&mut self) {
        if self.line_is_open {
            say!();
            self.line_is_open = false;
        }
    }
}

/// Seconds between lines where there is no terminal.
const PLAIN_EVERY: u32 = 5;
