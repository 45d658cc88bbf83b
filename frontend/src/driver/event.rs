//! What channels have for their sessions, the same for all kinds.

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::MessageKind;

use super::shard::Shard;
use crate::channel::{ChannelError, ChannelEvent};
use crate::session::{SessionKey, Stalled};

impl Shard {
    /// Tells the session what its channel said.
    ///
    /// # Errors
    /// The message for which its window has no room, to be kept until it has.
    pub(super) fn tell_session(
        &mut self,
        now: Instant,
        key: SessionKey,
        event: ChannelEvent,
    ) -> Result<(), Box<(MessageKind, Bytes)>> {
        match event {
            ChannelEvent::Message(kind, payload) => {
                let taken = self.sessions.handle_message(now, key, kind, payload);
                return taken.map_err(|Stalled(payload)| Box::new((kind, payload)));
            }
            ChannelEvent::Delivered(messages) => self.sessions.handle_written(now, key, messages),
            ChannelEvent::Alive => self.sessions.handle_alive(now, key),
            ChannelEvent::Upgrade(request) => self.sessions.handle_upgrade(now, key, request.credential),
            ChannelEvent::Moved(address) => self.sessions.handle_moved(key, address),
            ChannelEvent::Closed { code, authentic } => {
                if authentic {
                    self.sessions.handle_last_word(code);
                }
                self.sessions.handle_closed(now, key, authentic);
            }
            ChannelEvent::Lost => self.sessions.handle_closed(now, key, false),
        }
        Ok(())
    }

    /// The channel of this session cannot go on: it is closed.
    pub(super) fn channel_failed(&mut self, now: Instant, key: SessionKey, error: &ChannelError) {
        let level = error.level();
        if level == tracing::Level::DEBUG {
            tracing::debug!(%error, "a channel failed");
        } else {
            tracing::error!(%error, "a channel failed");
        }
        if let ChannelError::Upgrade { code, .. } = error {
            self.sessions.handle_turned_away(code);
        }
        self.sessions
            .close_as(now, key, error.close_code(), error.label());
    }
}
