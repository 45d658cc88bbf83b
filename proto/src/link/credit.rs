//! Credits: how much one end may have outstanding at the other, in messages and bytes, per class.

use super::frames::{self, frame::Command};

/// What a frame is charged to. Frames about the link itself are charged to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    Requests = 0,
    Replies = 1,
    Lifecycle = 2,
    Push = 3,
}

impl Class {
    pub const ALL: [Self; 4] = [Self::Requests, Self::Replies, Self::Lifecycle, Self::Push];

    pub fn label(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Replies => "replies",
            Self::Lifecycle => "lifecycle",
            Self::Push => "push",
        }
    }

    /// `None` for frames that need no credit.
    pub fn of(command: &Command) -> Option<Self> {
        use Command as C;
        match command {
            C::Hello(_)
            | C::Refused(_)
            | C::Ready(_)
            | C::Draining(_)
            | C::Done(_)
            | C::DrainMark(_)
            | C::Fenced(_) => None,
            C::TextMessage(_) | C::BinaryMessage(_) => Some(Self::Requests),
            C::Reply(_) => Some(Self::Replies),
            C::Push(_) | C::PushResult(_) => Some(Self::Push),
            C::Bind(_)
            | C::Login(_)
            | C::Logout(_)
            | C::Update(_)
            | C::Ping(_)
            | C::Control(_)
            | C::QueryResult(_)
            | C::SyncPage(_)
            | C::Bound(_)
            | C::LoggedIn(_)
            | C::LoggedOut(_)
            | C::Updated(_)
            | C::ControlReply(_)
            | C::Close(_)
            | C::Join(_)
            | C::Leave(_)
            | C::Query(_)
            | C::Sync(_) => Some(Self::Lifecycle),
        }
    }
}

/// An amount of credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grant {
    pub messages: u64,
    pub bytes: u64,
}

/// How much the other end may have outstanding here, per class, indexed by `Class as usize`.
///
/// The sum of messages stays far below the 100,000 at which ZeroMQ's own queue would block its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grants(pub [Grant; 4]);

impl Default for Grants {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self([
            Grant {
                messages: 512,
                bytes: 2 * MIB,
            },
            Grant {
                messages: 512,
                bytes: 2 * MIB,
            },
            Grant {
                messages: 512,
                bytes: MIB,
            },
            Grant {
                messages: 256,
                bytes: 2 * MIB,
            },
        ])
    }
}

/// A sender's account with one class.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spending {
    spent: Grant,
    granted: Grant,
    /// The first total granted: with that much unspent nothing is outstanding.
    limit: Option<Grant>,
}

impl Spending {
    /// Takes the other end's absolute total. Totals never shrink: an older one is ignored.
    pub(crate) fn handle_grant(&mut self, total: Grant) {
        self.limit.get_or_insert(total);
        self.granted.messages = self.granted.messages.max(total.messages);
        self.granted.bytes = self.granted.bytes.max(total.bytes);
    }

    /// A frame larger than the whole limit passes when nothing else is outstanding, or it would wait for ever.
    pub(crate) fn allows(&self, bytes: u64) -> bool {
        let Some(limit) = self.limit else { return false };
        if self.spent.messages >= self.granted.messages {
            return false;
        }
        let within = |bytes: u64| self.spent.bytes.saturating_add(bytes) <= self.granted.bytes;
        within(bytes) || within(limit.bytes)
    }

    pub(crate) fn spend(&mut self, bytes: u64) {
        self.spent.messages += 1;
        self.spent.bytes += bytes;
    }

    #[cfg(test)]
    fn outstanding_messages(&self) -> u64 {
        let limit = self.limit.map_or(0, |l| l.messages);
        (self.spent.messages + limit).saturating_sub(self.granted.messages)
    }
}

/// A receiver's account with one class.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Granting {
    limit: Grant,
    received: Grant,
    released: Grant,
}

impl Granting {
    pub(crate) fn new(limit: Grant) -> Self {
        Self {
            limit,
            received: Grant::default(),
            released: Grant::default(),
        }
    }

    /// Charges a received frame; false when the other end had no credit for it.
    pub(crate) fn charge(&mut self, bytes: u64) -> bool {
        let outstanding = self.received.bytes - self.released.bytes;
        let within = self.received.messages < self.released.messages + self.limit.messages
            && (outstanding + bytes <= self.limit.bytes || outstanding == 0);
        self.received.messages += 1;
        self.received.bytes += bytes;
        within
    }

    /// Gives credit back. More than was received is a defect of the caller and is not granted.
    pub(crate) fn release(&mut self, amount: Grant) -> bool {
        let messages = self.released.messages + amount.messages;
        let bytes = self.released.bytes + amount.bytes;
        if messages > self.received.messages || bytes > self.received.bytes {
            return false;
        }
        self.released = Grant { messages, bytes };
        true
    }

    pub(crate) fn total(&self) -> Grant {
        Grant {
            messages: self.released.messages + self.limit.messages,
            bytes: self.released.bytes + self.limit.bytes,
        }
    }

    pub(crate) fn outstanding(&self) -> Grant {
        Grant {
            messages: self.received.messages - self.released.messages,
            bytes: self.received.bytes - self.released.bytes,
        }
    }
}

impl From<Grant> for frames::Credit {
    fn from(grant: Grant) -> Self {
        Self {
            messages: grant.messages,
            bytes: grant.bytes,
        }
    }
}

impl From<frames::Credit> for Grant {
    fn from(credit: frames::Credit) -> Self {
        Self {
            messages: credit.messages,
            bytes: credit.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_spent_before_the_first_grant() {
        assert!(!Spending::default().allows(0));
    }

    #[test]
    fn a_frame_over_the_limit_passes_alone() {
        let mut spending = Spending::default();
        spending.handle_grant(Grant {
            messages: 4,
            bytes: 100,
        });
        assert!(spending.allows(1000));
        spending.spend(1000);
        assert!(!spending.allows(1));
        spending.handle_grant(Grant {
            messages: 5,
            bytes: 1100,
        });
        assert!(spending.allows(1));
    }

    #[test]
    fn the_largest_grant_is_survived() {
        let mut spending = Spending::default();
        spending.handle_grant(Grant {
            messages: u64::MAX,
            bytes: u64::MAX,
        });
        spending.spend(10);
        assert!(spending.allows(u64::MAX));
    }

    proptest! {
        /// Whatever is sent when allowed is never found to exceed the receiver's account, and all is sent in the end.
        #[test]
        fn both_accounts_agree(sizes in prop::collection::vec(0u64..300, 1..200), messages in 1u64..8) {
            let limit = Grant { messages, bytes: 200 };
            let (mut spending, mut granting) = (Spending::default(), Granting::new(limit));
            spending.handle_grant(granting.total());
            let mut unreleased = Vec::new();
            for size in sizes {
                while !spending.allows(size) {
                    let bytes: u64 = unreleased.pop().expect("with nothing outstanding everything is allowed");
                    let held = granting.release(Grant { messages: 1, bytes });
                    prop_assert!(held);
                    spending.handle_grant(granting.total());
                }
                spending.spend(size);
                prop_assert!(granting.charge(size));
                unreleased.push(size);
                prop_assert!(unreleased.len() as u64 <= messages);
                prop_assert_eq!(spending.outstanding_messages(), unreleased.len() as u64);
            }
        }
    }

    #[test]
    fn what_exceeds_the_credit_is_noticed() {
        let mut granting = Granting::new(Grant {
            messages: 1,
            bytes: 10,
        });
        assert!(granting.charge(5));
        assert!(!granting.charge(1));
        let mut granting = Granting::new(Grant {
            messages: 9,
            bytes: 10,
        });
        assert!(granting.charge(5));
        assert!(!granting.charge(6));
    }

    #[test]
    fn a_credit_is_not_returned_twice() {
        let mut granting = Granting::new(Grant {
            messages: 1,
            bytes: 10,
        });
        assert!(granting.charge(5));
        assert!(granting.release(Grant {
            messages: 1,
            bytes: 5
        }));
        assert!(!granting.release(Grant {
            messages: 1,
            bytes: 5
        }));
    }
}
