//! Which life of a link's end a batch belongs to.

use std::fmt;

use super::frames;

/// A process's boot uuid and how often it has attached: one per link and end, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch {
    pub boot: u128,
    pub attach: u32,
}

impl From<Epoch> for frames::Epoch {
    fn from(epoch: Epoch) -> Self {
        Self {
            boot_high: (epoch.boot >> 64) as u64,
            boot_low: epoch.boot as u64,
            attach: epoch.attach,
        }
    }
}

impl From<frames::Epoch> for Epoch {
    fn from(epoch: frames::Epoch) -> Self {
        Self {
            boot: u128::from(epoch.boot_high) << 64 | u128::from(epoch.boot_low),
            attach: epoch.attach,
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}.{}", self.boot, self.attach)
    }
}
