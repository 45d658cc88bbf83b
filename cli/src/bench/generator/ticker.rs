//! A timer finer than the runtime's, whose millisecond would show in every latency.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

pub(super) struct Ticker {
    timer: TimerFd,
    /// The same timer, under a descriptor that the runtime may hold.
    readable: AsyncFd<OwnedFd>,
}

impl Ticker {
    pub(super) fn new() -> Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("timerfd")?;
        let twin = timer.as_fd().try_clone_to_owned().context("timerfd")?;
        #[expect(
            deprecated,
            reason = "the descriptor stays open as long as it is registered: both end together"
        )]
        let readable = AsyncFd::new(twin).context("timerfd")?;
        Ok(Self { timer, readable })
    }

    /// Waits that long; may be dropped and called again.
    pub(super) async fn wait(&mut self, time: Duration) -> Result<()> {
        if time.is_zero() {
            return Ok(());
        }
        let once = Expiration::OneShot(TimeSpec::from_duration(time));
        self.timer
            .set(once, TimerSetTimeFlags::empty())
            .context("timerfd")?;
        loop {
            let mut ready = self.readable.readable().await.context("timerfd")?;
            ready.clear_ready();
            match self.timer.wait() {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error).context("timerfd"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn it_waits_as_long_as_told_also_when_told_anew() {
        let mut ticker = Ticker::new().unwrap();
        let begun = Instant::now();
        tokio::select! {
            biased;
            waited = ticker.wait(Duration::from_secs(3600)) => panic!("{waited:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        ticker.wait(Duration::from_millis(20)).await.unwrap();
        ticker.wait(Duration::ZERO).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(25));
    }
}
