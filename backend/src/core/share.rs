//! How much of the sessions this backend wants.

use holdfast_proto::Share;

use super::{Backend, Stop};
use crate::link::LinkState;

/// Why a share was not taken; nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareRefused {
    #[error("this backend is leaving")]
    Draining,
    #[error("an attached frontend knows no shares: to it this backend stays a full member")]
    Unsupported,
}

impl Backend {
    /// Tells every frontend, also those that attach later. Frontends move sessions when these have nothing out.
    ///
    /// # Errors
    /// It leaves, or a frontend could not be told.
    pub fn handle_share(&mut self, share: Share) -> Result<(), ShareRefused> {
        if self.stop != Stop::No {
            return Err(ShareRefused::Draining);
        }
        if !self.links.iter().all(|link| link.attachment.allows(share)) {
            return Err(ShareRefused::Unsupported);
        }
        self.share = share;
        self.links
            .iter_mut()
            .for_each(|link| link.attachment.set_share(share));
        Ok(())
    }

    pub fn share(&self) -> Share {
        self.share
    }

    /// Whether every frontend is attached, be it as a standby, and this backend does not leave.
    pub fn is_attached(&self) -> bool {
        self.stop == Stop::No
            && self
                .links
                .iter()
                .all(|link| link.attachment.state() == LinkState::Attached)
    }
}
