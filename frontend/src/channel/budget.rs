//! A shared allowance of bytes with exact accounting: what is charged is given back when its [`Charge`] is dropped.
//!
//! One budget bounds a whole shard, so that many peers cannot do together what each alone may not (promise P7). It is
//! atomic only so that the admin thread can read it; a shard is its one writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

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
}
