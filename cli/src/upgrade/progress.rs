//! How an upgrade looks while it works: on a terminal a bar below the lines of the phases, elsewhere lines alone.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::event::{Event, Phase, Watch};
use super::verdict::micros;

/// Shows the events of one upgrade on stderr.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// When figures were last shown as a line.
    last_line: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
            // The template is ours: it is checked by a test.
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self { bar, last_line: None }
    }

    /// Also for what the command itself has to say.
    pub(crate) fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{line}")),
            None => say!("{line}"),
        }
    }

    pub(crate) fn handle(&mut self, event: &Event, now: Instant) {
        match event {
            // The end is told with its report.
            Event::End(_)
            | Event::Phase {
                phase: Phase::Done, ..
            } => self.finish(),
            Event::Phase { at_ms, phase, text } => {
                self.line(&phase_line(*at_ms, *phase, text));
            }
            Event::Note { at_ms, text } => self.line(&format!("{} {text}", time(*at_ms))),
            Event::Watch(watch) => self.watch(watch, now),
        }
    }

    fn watch(&mut self, watch: &Watch, now: Instant) {
        let Some(bar) = &self.bar else {
            let due = self
                .last_line
                .is_none_or(|last| now.saturating_duration_since(last) >= LINE_EVERY);
            if due || watch.elapsed_ms >= watch.watch_ms {
                self.last_line = Some(now);
                say!("{} {}", time(watch.at_ms), watch_line(watch));
            }
            return;
        };
        bar.set_length(watch.watch_ms.max(1));
        bar.set_position(watch.elapsed_ms.min(watch.watch_ms));
        bar.set_message(watch_line(watch));
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn phase_line(at_ms: u64, phase: Phase, text: &str) -> String {
    format!("{} {:<12} {text}", time(at_ms), phase.label())
}

/// `12/60 s at 5 %: old 1140 requests, 0 errors, p95 2.1 ms | new 60 requests, 0 errors, p95 2.2 ms`
fn watch_line(watch: &Watch) -> String {
    let side = |side: &super::event::Sight| {
        let p95 = side.p95_us.map_or("-".into(), |p95| micros(p95 as f64));
        format!("{} requests, {} errors, p95 {p95}", side.requests, side.errors)
    };
    format!(
        "{}/{} s at {} %: old {} | new {}",
        watch.elapsed_ms / 1000,
        watch.watch_ms / 1000,
        watch.share_percent,
        side(&watch.old),
        side(&watch.new)
    )
}

fn time(at_ms: u64) -> String {
    format!("{:>6.1}s", at_ms as f64 / 1e3)
}

const TEMPLATE: &str = "        [{bar:20}] {wide_msg}";
/// Where there is no terminal, a log is kept: it need not be long.
const LINE_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::super::event::Sight;
    use super::*;

    #[test]
    fn a_watch_fits_on_a_line() {
        let watch = Watch {
            at_ms: 12_340,
            elapsed_ms: 12_000,
            watch_ms: 60_000,
            share_percent: 5.0,
            old: Sight {
                requests: 1_140,
                errors: 2,
                p95_us: Some(2_100),
            },
            new: Sight {
                requests: 60,
                errors: 0,
                p95_us: None,
            },
        };
        assert_eq!(
            watch_line(&watch),
            "12/60 s at 5 %: old 1140 requests, 2 errors, p95 2.1 ms | new 60 requests, 0 errors, p95 -"
        );
        assert_eq!(
            phase_line(12_340, Phase::RollingBack, "why"),
            "  12.3s rolling back why"
        );
    }

    #[test]
    fn the_bar_s_template_is_one() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
