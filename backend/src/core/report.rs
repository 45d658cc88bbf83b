//! Which losses of a link are worth a line in the log: each change once, and a link that comes and goes only now and then.

use std::time::{Duration, Instant};

/// Least time between two lines about losses of one link. One that lasts longer is said then.
const PAUSE: Duration = Duration::from_secs(10);

/// What was said of one link.
#[derive(Debug, Default)]
pub(super) struct LossReport {
    /// The label of the loss that was said since the link was attached.
    lost: Option<&'static str>,
    said: Option<Instant>,
    was_attached: bool,
}

impl LossReport {
    /// Whether to say this loss.
    pub(super) fn on_loss(&mut self, label: &'static str, now: Instant) -> bool {
        let recently = self.said.is_some_and(|at| now < at + PAUSE);
        if self.lost == Some(label) || recently {
            return false;
        }
        (self.lost, self.said) = (Some(label), Some(now));
        true
    }

    /// Whether to say that the link is attached: after each loss that was said, and the first time.
    pub(super) fn on_attached(&mut self) -> bool {
        let first = !std::mem::replace(&mut self.was_attached, true);
        self.lost.take().is_some() || first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_said_once() {
        let (mut report, start) = (LossReport::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(report.on_loss("disconnected", at(0)), "it cannot connect");
        assert!((1..100).all(|n| !report.on_loss("disconnected", at(n))));
        assert!(report.on_loss("refused", at(100)));
        assert!(report.on_attached());
        assert!(!report.on_attached());
        assert!(report.on_loss("silent", at(200)));
    }

    #[test]
    fn a_link_that_comes_and_goes_is_said_now_and_then() {
        let (mut report, start) = (LossReport::default(), Instant::now());
        assert!(report.on_attached());
        let said = (0..100).filter(|n| {
            let now = start + Duration::from_secs(*n);
            let lost = report.on_loss("fenced", now);
            assert_eq!(report.on_attached(), lost);
            lost
        });
        assert_eq!(said.count(), 10);
        assert!(!report.on_loss("silent", start + Duration::from_secs(95)));
        let lasting = report.on_loss("silent", start + Duration::from_secs(100));
        assert!(lasting, "what lasts is said in the end");
    }
}
