//! When to send `@ping`, and when to give the connection up. Pure: time comes in as `now`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The clocks of one connection.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    last_heard: Instant,
    last_sent: Instant,
    last_ping: Instant,
    /// When each `@ping` went out that was not answered yet; at most one for each interval until one is given up.
    asked: VecDeque<Instant>,
    /// When [`Heartbeat::poll`] last asked to be called again.
    promised: Instant,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    Wait { until: Instant },
    SendPing,
    Dead,
}

impl Heartbeat {
    pub(crate) fn new(interval: Duration, now: Instant) -> Self {
        let interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        Self {
            interval,
            last_heard: now,
            last_sent: now,
            last_ping: now,
            asked: VecDeque::new(),
            promised: now + interval,
        }
    }

    pub(crate) fn handle_heard(&mut self, now: Instant) {
        self.last_heard = now;
    }

    pub(crate) fn handle_sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// `@ping` was sent, which the server answers in the order of what it says.
    pub(crate) fn handle_asked(&mut self, now: Instant) {
        self.asked.push_back(now);
    }

    /// An answer came, to the first that had none. Who holds the server's messages back, and lets one through at times, holds it back
    /// as well: what is heard proves that the server lived when it said it, the answer that it lives now.
    pub(crate) fn handle_answered(&mut self) {
        self.asked.pop_front();
    }

    /// `stalled`: the server's window is full, so it may have stopped reading us, and answers no ping; or what we send is slow to go
    /// out. That can last as long as its backend is away, and is no reason to give up soon.
    ///
    /// To be called after all input was handled. A call that comes much later than was asked for means that this process
    /// was paused: the clocks start again, so that a laptop's sleep does not look like a dead server.
    pub(crate) fn poll(&mut self, now: Instant, stalled: bool) -> Beat {
        if now.saturating_duration_since(self.promised) > self.interval / 2 {
            self.last_heard = now;
            self.asked.iter_mut().for_each(|asked| *asked = now);
        }
        let halves = if stalled {
            DEAD_AFTER_HALVES_STALLED
        } else {
            DEAD_AFTER_HALVES
        };
        let silent = self.last_heard + self.interval * halves / 2;
        // The answer may stand behind much that the server has to say, over a slow network.
        let late = self
            .asked
            .front()
            .map(|at| *at + self.interval * DEAD_AFTER_HALVES_STALLED / 2);
        let dead_at = late.map_or(silent, |late| late.min(silent));
        if now >= dead_at {
            return Beat::Dead;
        }
        let ping_at = self.last_heard.min(self.last_sent).max(self.last_ping) + self.interval;
        if now >= ping_at {
            self.last_ping = now;
            self.last_sent = now;
            self.promised = now + self.interval;
            return Beat::SendPing;
        }
        self.promised = dead_at.min(ping_at);
        Beat::Wait { until: self.promised }
    }
}

/// Nothing heard for 2.5 intervals: two pings went unanswered.
const DEAD_AFTER_HALVES: u32 = 5;
/// With a full window: ten intervals.
const DEAD_AFTER_HALVES_STALLED: u32 = 20;
/// Bounds on the interval that a server may ask for: neither a flood of pings nor a connection that is never judged.
const MIN_INTERVAL: Duration = Duration::from_millis(50);
const MAX_INTERVAL: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Lets time pass in the steps that `poll` asks for; gives the times of the pings, and of death.
    fn run(beat: &mut Heartbeat, start: Instant, stalled: bool) -> (Vec<u64>, Option<u64>) {
        let (mut now, mut pings) = (start, Vec::new());
        while now <= start + 500 * SECOND {
            match beat.poll(now, stalled) {
                Beat::Wait { until } => now = until,
                Beat::SendPing => pings.push((now - start).as_secs()),
                Beat::Dead => return (pings, Some((now - start).as_millis() as u64)),
            }
        }
        (pings, None)
    }

    #[test]
    fn a_silent_server_is_pinged_twice_then_given_up() {
        let start = Instant::now();
        let mut beat = Heartbeat::new(30 * SECOND, start);
        assert_eq!(run(&mut beat, start, false), (vec![30, 60], Some(75_000)));
    }

    #[test]
    fn a_server_that_has_stopped_reading_us_gets_more_time() {
        let start = Instant::now();
        let mut beat = Heartbeat::new(30 * SECOND, start);
        assert_eq!(run(&mut beat, start, true).1, Some(300_000));
    }

    #[test]
    fn traffic_both_ways_needs_no_ping() {
        let start = Instant::now();
        let mut beat = Heartbeat::new(30 * SECOND, start);
        for second in 1..300 {
            let now = start + second * SECOND;
            beat.handle_heard(now);
            beat.handle_sent(now);
            assert!(matches!(beat.poll(now, false), Beat::Wait { .. }));
        }
    }

    #[test]
    fn pushes_alone_do_not_keep_the_server_from_judging_us_so_we_ping() {
        let start = Instant::now();
        let mut beat = Heartbeat::new(30 * SECOND, start);
        let mut pings = 0;
        for second in 1..=120 {
            let now = start + second * SECOND;
            beat.handle_heard(now);
            while beat.poll(now, false) == Beat::SendPing {
                pings += 1;
            }
        }
        assert_eq!(pings, 4);
    }

    /// The server's messages come, but each answer so long after its ping; gives the second at which it is given up.
    fn lag(lag: u64) -> Option<u64> {
        let start = Instant::now();
        let mut beat = Heartbeat::new(30 * SECOND, start);
        let mut answers = VecDeque::new();
        for second in 1..=2000 {
            let now = start + second as u32 * SECOND;
            beat.handle_heard(now);
            if answers.front() == Some(&second) {
                answers.pop_front();
                beat.handle_answered();
            }
            match beat.poll(now, false) {
                Beat::SendPing => {
                    beat.handle_asked(now);
                    answers.push_back(second + lag);
                }
                Beat::Dead => return Some(second),
                Beat::Wait { .. } => {}
            }
        }
        None
    }

    #[test]
    fn a_server_whose_messages_are_held_back_is_given_up_although_some_come() {
        assert_eq!(lag(1), None);
        assert_eq!(lag(299), None, "a slow network, or much to say");
        assert_eq!(lag(301), Some(30 + 300), "answers that come later and later");
    }

    #[test]
    fn a_paused_process_starts_its_clocks_again() {
        let start = Instant::now();
        let mut beat = Heartbeat::new(30 * SECOND, start);
        assert!(matches!(beat.poll(start, false), Beat::Wait { .. }));
        let woken = start + 3600 * SECOND;
        assert_eq!(beat.poll(woken, false), Beat::SendPing);
        assert_eq!(run(&mut beat, woken, false).1, Some(75_000));
    }
}
