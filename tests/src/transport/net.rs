//! What a datagram meets on its way: one direction of a path, and its weather.

use std::time::Duration;

use crate::sim::queue::Time;
use crate::sim::rng::Rng;

/// The longest UDP payload that an ordinary path carries.
pub(crate) const USUAL_MTU: usize = 1_472;

/// What one direction of a path does to datagrams. Chances are per mille.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Weather {
    pub(crate) loss: u32,
    /// Loss while a burst lasts, and how likely the next datagram begins or ends one (Gilbert's model).
    pub(crate) burst: Option<Burst>,
    pub(crate) duplicate: u32,
    /// So many come late by up to three times the delay.
    pub(crate) reorder: u32,
    pub(crate) flip: u32,
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    /// None overtakes another, whatever the jitter.
    pub(crate) in_order: bool,
    /// Bits per second and the bytes that may wait; `None` is as fast as one likes.
    pub(crate) limit: Option<Limit>,
    /// Longer UDP payloads vanish.
    pub(crate) mtu: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Burst {
    pub(crate) begin: u32,
    pub(crate) end: u32,
    pub(crate) loss: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Limit {
    pub(crate) bits_per_second: u64,
    pub(crate) queue_bytes: u64,
}

/// UDP's and IPv4's headers: they take their share of the bandwidth.
pub(crate) const HEADER_BYTES: u64 = 28;

impl Weather {
    /// Nothing happens but that it takes time.
    pub(crate) fn calm(delay: Duration) -> Self {
        Self {
            loss: 0,
            burst: None,
            duplicate: 0,
            reorder: 0,
            flip: 0,
            delay,
            jitter: Duration::ZERO,
            in_order: true,
            limit: None,
            mtu: USUAL_MTU,
        }
    }

    /// Anything up to what is survivable.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut weather = Self::calm(rng.micros(100..=150_000));
        if rng.chance(600) {
            weather.loss = rng.range(1..=300) as u32;
        }
        if rng.chance(200) {
            weather.burst = Some(Burst {
                begin: rng.range(1..=20) as u32,
                end: rng.range(50..=500) as u32,
                loss: rng.range(500..=1000) as u32,
            });
        }
        if rng.chance(300) {
            weather.duplicate = rng.range(1..=200) as u32;
        }
        if rng.chance(300) {
            weather.reorder = rng.range(1..=300) as u32;
        }
        if rng.chance(200) {
            weather.flip = rng.range(1..=50) as u32;
        }
        if rng.chance(500) {
            weather.jitter = rng.micros(0..=60_000);
            weather.in_order = rng.chance(500);
        }
        if rng.chance(400) {
            let bits_per_second = rng.range(100_000..=20_000_000);
            // From 10 ms of a full link to a bloated second, but never less than a few datagrams.
            let queue_bytes = (bits_per_second / 8 * rng.range(10..=1000) / 1000).max(6_000);
            weather.limit = Some(Limit {
                bits_per_second,
                queue_bytes,
            });
        }
        weather
    }

    /// Whether nobody could be blamed for giving up in it: so much is lost that a minute of bad luck can be.
    pub(crate) fn is_rough(&self) -> bool {
        self.loss > 100 || self.burst.is_some() || self.flip > 20 || self.mtu < USUAL_MTU
    }
}

/// One direction of a path.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) weather: Weather,
    /// Nothing comes through until then.
    pub(crate) dark_until: Time,
    in_burst: bool,
    /// When what waits for the bandwidth is out.
    free_at: Time,
    last_arrival: Time,
}

/// A datagram that gets through: when, and which of its bits is flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passage {
    pub(crate) at: Time,
    pub(crate) flip: Option<usize>,
}

impl Way {
    pub(crate) fn new(weather: Weather) -> Self {
        Self {
            weather,
            dark_until: Time::ZERO,
            in_burst: false,
            free_at: Time::ZERO,
            last_arrival: Time::ZERO,
        }
    }

    /// Takes a datagram of so many bytes of payload: none, one or two arrive.
    pub(crate) fn carry(&mut self, rng: &mut Rng, now: Time, bytes: usize) -> [Option<Passage>; 2] {
        let Some(out) = self.queue(now, bytes) else {
            return [None; 2];
        };
        if bytes > self.weather.mtu || now < self.dark_until || self.loses(rng) {
            return [None; 2];
        }
        let second = rng.chance(self.weather.duplicate);
        let first = self.arrive(rng, out, bytes);
        [Some(first), second.then(|| self.arrive(rng, out, bytes))]
    }

    /// When it has left the bottleneck; `None` when there is no room in front of it.
    fn queue(&mut self, now: Time, bytes: usize) -> Option<Time> {
        let Some(limit) = self.weather.limit else {
            return Some(now);
        };
        let nanos = |bytes: u64| Duration::from_nanos(bytes * 8 * 1_000_000_000 / limit.bits_per_second);
        let begin = self.free_at.max(now);
        if begin - now > nanos(limit.queue_bytes) {
            return None;
        }
        self.free_at = begin + nanos(bytes as u64 + HEADER_BYTES);
        Some(self.free_at)
    }

    fn loses(&mut self, rng: &mut Rng) -> bool {
        if let Some(burst) = self.weather.burst {
            let turn = if self.in_burst { burst.end } else { burst.begin };
            self.in_burst ^= rng.chance(turn);
            if self.in_burst && rng.chance(burst.loss) {
                return true;
            }
        }
        rng.chance(self.weather.loss)
    }

    fn arrive(&mut self, rng: &mut Rng, out: Time, bytes: usize) -> Passage {
        let weather = &self.weather;
        let jitter = rng.micros(0..=weather.jitter.as_micros() as u64);
        let mut at = out + weather.delay + jitter;
        if rng.chance(weather.reorder) {
            at += rng.micros(0..=3 * weather.delay.as_micros() as u64);
        } else if weather.in_order {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        let flip = rng.chance(weather.flip).then(|| rng.below(bytes * 8));
        Passage { at, flip }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(20);

    fn arrivals(way: &mut Way, count: usize) -> Vec<Passage> {
        let mut rng = Rng::new(1);
        (0..count)
            .flat_map(|_| way.carry(&mut rng, Time::ZERO, 972))
            .flatten()
            .collect()
    }

    #[test]
    fn calm_weather_only_takes_time() {
        let mut way = Way::new(Weather::calm(DELAY));
        let passage = Passage {
            at: DELAY,
            flip: None,
        };
        assert_eq!(arrivals(&mut way, 3), vec![passage; 3]);
    }

    #[test]
    fn a_limit_spaces_datagrams_out_and_drops_what_finds_no_room() {
        let mut way = Way::new(Weather::calm(DELAY));
        // 1,000 bytes with the headers take 1 ms; beside the one under way five can wait.
        way.weather.limit = Some(Limit {
            bits_per_second: 8_000_000,
            queue_bytes: 5_000,
        });
        let at: Vec<Duration> = arrivals(&mut way, 10).iter().map(|p| p.at - DELAY).collect();
        assert_eq!(at, (1..=6).map(Duration::from_millis).collect::<Vec<_>>());
    }

    #[test]
    fn weather_comes_as_often_as_it_says() {
        let mut way = Way::new(Weather {
            loss: 250,
            duplicate: 500,
            flip: 100,
            ..Weather::calm(DELAY)
        });
        let passages = arrivals(&mut way, 10_000);
        assert!((11_000..11_500).contains(&passages.len()), "{}", passages.len());
        let flipped = passages.iter().filter(|p| p.flip.is_some()).count();
        assert!((1_000..1_250).contains(&flipped), "{flipped}");
    }

    #[test]
    fn the_dark_and_the_mtu_let_nothing_through() {
        let mut way = Way::new(Weather::calm(DELAY));
        way.dark_until = DELAY;
        assert!(arrivals(&mut way, 3).is_empty());
        way.dark_until = Time::ZERO;
        way.weather.mtu = 971;
        assert!(arrivals(&mut way, 3).is_empty());
    }
}
