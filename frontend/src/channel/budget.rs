//! A shared allowance of bytes with exact accounting: what is charged is given back when its [`Charge`] is dropped.
//!
//! One budget bounds a whole shard, or all of them, so that many peers cannot do together what each alone may not (promise P7).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Which part of the budget of input those get who have not been let in.
const STRANGERS_PART: usize = 4;

/// What the channels of one shard may hold.
#[derive(Debug, Clone)]
pub struct Budgets {
    /// What came and could not be decoded yet, of those who have been let in.
    pub input: Arc<Budget>,
    /// The same of those who have not.
    pub strangers: Strangers,
    /// What sockets have not taken.
    pub output: Arc<Budget>,
}

/// The input of those who have not been let in: a quarter of all input and no more, so that no number of them takes what sessions need.
/// Shared by all shards: in one shard's part a single source would have room for little else.
#[derive(Debug, Clone)]
pub struct Strangers(pub Arc<Budget>);

impl Strangers {
    /// Their part of `input_bytes`.
    pub fn of(input_bytes: usize) -> Self {
        Self(Budget::new(input_bytes / STRANGERS_PART))
    }

    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("frontend");
        r.register_collector(Box::new(self.clone()));
    }
}

impl Budgets {
    /// For one of `shards` that have `input_bytes` together.
    pub fn new((input_bytes, shards): (usize, usize), output_bytes: usize, strangers: Strangers) -> Self {
        Self {
            input: Budget::new(input_bytes.saturating_sub(strangers.0.cap()) / shards.max(1)),
            strangers,
            output: Budget::new(output_bytes),
        }
    }

    /// Those of a shard that is alone.
    pub fn alone(input_bytes: usize, output_bytes: usize) -> Self {
        Self::new((input_bytes, 1), output_bytes, Strangers::of(input_bytes))
    }

    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("frontend");
        r.register_collector(Box::new(self.clone()));
    }
}

/// What is read when somebody asks for it, since it changes with every piece that waits.
impl Collector for Budgets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Bytes of sessions' input that is not whole, over streams";
        self.input.encode(&mut encoder, ("input_bytes", help))?;
        let help = "Bytes that sockets have not taken";
        self.output.encode(&mut encoder, ("output_bytes", help))
    }
}

impl Collector for Strangers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Bytes of input that is not whole, of connections that have not been let in";
        self.0.encode(&mut encoder, ("stranger_bytes", help))
    }
}

/// Bytes in use, out of a fixed number.
#[derive(Debug)]
pub struct Budget {
    cap: usize,
    used: AtomicUsize,
    refused: AtomicU64,
}

impl Budget {
    /// A budget of `cap` bytes.
    pub fn new(cap: usize) -> Arc<Self> {
        Arc::new(Self {
            cap,
            used: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// Bytes that may be in use at once.
    pub fn cap(&self) -> usize {
        self.cap
    }

    /// Bytes in use now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How many times something did not fit.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn encode(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
    ) -> Result<(), std::fmt::Error> {
        let used = i64::try_from(self.used()).unwrap_or(i64::MAX);
        ConstGauge::new(used).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        let name = format!("{name}_refused");
        let refused = encoder.encode_descriptor(
            &name,
            "Times that such bytes had no room, and their connection was closed",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(self.refused()).encode(refused)
    }

    fn take(&self, bytes: usize) -> Result<(), OverBudget> {
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= self.cap);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(_) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(OverBudget)
            }
        }
    }

    fn give_back(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "a budget gave out less than it got back");
    }
}

/// The budget has no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("over the shard's budget of bytes")]
pub struct OverBudget;

/// Bytes charged to a budget until this is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Charges `bytes`, or nothing at all.
    pub fn new(budget: &Arc<Budget>, bytes: usize) -> Result<Self, OverBudget> {
        budget.take(bytes)?;
        Ok(Self {
            budget: Arc::clone(budget),
            bytes,
        })
    }

    /// Bytes charged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes the charge `bytes`; on an error it stays what it was.
    pub fn resize(&mut self, bytes: usize) -> Result<(), OverBudget> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.budget.take(more)?,
            None => self.budget.give_back(self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_charged_comes_back() {
        let budget = Budget::new(100);
        let mut first = Charge::new(&budget, 60).unwrap();
        assert_eq!(Charge::new(&budget, 41).unwrap_err(), OverBudget);
        let second = Charge::new(&budget, 40).unwrap();
        assert_eq!(budget.used(), 100);
        assert_eq!(first.resize(61), Err(OverBudget));
        assert_eq!(first.bytes(), 60);
        drop(second);
        first.resize(100).unwrap();
        first.resize(10).unwrap();
        assert_eq!(budget.used(), 10);
        drop(first);
        assert_eq!((budget.used(), budget.refused()), (0, 2));
    }

    #[test]
    fn a_sum_that_would_overflow_is_refused() {
        let budget = Budget::new(usize::MAX);
        let _one = Charge::new(&budget, 1).unwrap();
        assert!(Charge::new(&budget, usize::MAX).is_err());
    }

    #[test]
    fn what_is_held_and_what_was_refused_can_be_read() {
        let budgets = Budgets::alone(400, 50);
        let mut registry = Registry::default();
        budgets.register(&mut registry);
        budgets.strangers.register(&mut registry);
        let _held = Charge::new(&budgets.strangers.0, 60).unwrap();
        Charge::new(&budgets.strangers.0, 60).unwrap_err();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "frontend_input_bytes 0",
            "frontend_input_bytes_refused_total 0",
            "frontend_output_bytes 0",
            "frontend_stranger_bytes 60",
            "frontend_stranger_bytes_refused_total 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn strangers_have_a_quarter_whatever_the_number_of_shards() {
        let strangers = Strangers::of(400);
        let shards: Vec<_> = (0..3)
            .map(|_| Budgets::new((400, 3), 0, strangers.clone()))
            .collect();
        assert!(shards.iter().all(|shard| shard.input.cap() == 100));
        let _held = Charge::new(&shards[0].strangers.0, 60).unwrap();
        Charge::new(&shards[1].strangers.0, 41).unwrap_err();
        Charge::new(&shards[2].strangers.0, 40).unwrap();
    }
}
