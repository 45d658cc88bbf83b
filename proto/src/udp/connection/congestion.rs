//! The congestion window: NewReno as in RFC 9002 section 7 and its appendix B, in bytes.

use std::time::Instant;

/// Datagrams that may be in flight at first.
pub(super) const INITIAL_WINDOW_DATAGRAMS: u32 = 10;
/// Datagrams that may always be in flight.
pub(super) const MINIMUM_WINDOW_DATAGRAMS: u32 = 2;
/// No window grows beyond this: what is in flight is kept.
pub(super) const MAX_WINDOW_BYTES: u32 = 1 << 20;

/// What of it outlasts a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Congestion {
    window: u32,
    /// Below it the window doubles per round trip, above it grows by one datagram.
    threshold: u32,
}

impl Congestion {
    pub(super) fn new(datagram: u32) -> Self {
        Self {
            window: INITIAL_WINDOW_DATAGRAMS * datagram,
            threshold: u32::MAX,
        }
    }

    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// After a rest the path is no longer known to bear more than a beginning's window (RFC 5681 section 4.1).
    pub(super) fn on_rest(&mut self, datagram: u32) {
        self.window = self.window.min(INITIAL_WINDOW_DATAGRAMS * datagram);
    }

    /// `bytes` of a packet that was sent outside a recovery, and when the window was the limit, are acknowledged.
    pub(super) fn on_acknowledged(&mut self, bytes: u32, datagram: u32) {
        let growth = if self.window < self.threshold {
            bytes
        } else {
            (u64::from(datagram) * u64::from(bytes) / u64::from(self.window)) as u32
        };
        self.window = (self.window + growth).min(MAX_WINDOW_BYTES);
    }

    /// Something sent after the last reduction is lost.
    pub(super) fn on_loss(&mut self, datagram: u32) {
        self.window = (self.window / 2).max(MINIMUM_WINDOW_DATAGRAMS * datagram);
        self.threshold = self.window;
    }

    /// All over a long time was lost.
    pub(super) fn on_persistent_congestion(&mut self, datagram: u32) {
        self.window = MINIMUM_WINDOW_DATAGRAMS * datagram;
    }
}

/// Since when the window is being recovered: what was sent before neither reduces it again nor lets it grow.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Recovery {
    since: Option<Instant>,
}

impl Recovery {
    pub(super) fn begin(&mut self, now: Instant) {
        self.since = Some(now);
    }

    pub(super) fn end(&mut self) {
        self.since = None;
    }

    pub(super) fn covers(&self, sent: Instant) -> bool {
        self.since.is_some_and(|since| sent <= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_then_grows_by_a_datagram_per_round_trip() {
        let mut congestion = Congestion::new(1_000);
        assert_eq!(congestion.window(), 10_000);
        (0..10).for_each(|_| congestion.on_acknowledged(1_000, 1_000));
        assert_eq!(congestion.window(), 20_000);
        congestion.on_loss(1_000);
        assert_eq!(congestion.window(), 10_000);
        (0..10).for_each(|_| congestion.on_acknowledged(1_000, 1_000));
        assert!(
            (10_900..=11_000).contains(&congestion.window()),
            "{}",
            congestion.window()
        );
        congestion.on_persistent_congestion(1_000);
        assert_eq!(congestion.window(), 2_000);
        // Up to the threshold it doubles again.
        congestion.on_acknowledged(1_000, 1_000);
        assert_eq!(congestion.window(), 3_000);
    }

    #[test]
    fn it_has_a_least_and_a_most() {
        let mut congestion = Congestion::new(1_200);
        (0..50).for_each(|_| congestion.on_loss(1_200));
        assert_eq!(congestion.window(), 2_400);
        let mut congestion = Congestion::new(1_200);
        (0..2_000).for_each(|_| congestion.on_acknowledged(1_200, 1_200));
        assert_eq!(congestion.window(), MAX_WINDOW_BYTES);
        congestion.on_rest(1_200);
        assert_eq!(congestion.window(), 12_000);
    }
}
