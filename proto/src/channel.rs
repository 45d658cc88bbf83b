//! The kinds of channel that a device can come over.

use crate::link::frames;
use crate::secure::SecureChannel;

/// What a device's connection runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// WebSocket over TCP, records of ours.
    Ws,
    /// WebSocket over TLS.
    Wss,
    /// Datagrams, packets of ours.
    Udp,
}

impl ChannelKind {
    pub const ALL: [Self; 3] = [Self::Ws, Self::Wss, Self::Udp];
    /// Those that begin with an HTTP upgrade.
    pub const WEB_SOCKET: [Self; 2] = [Self::Ws, Self::Wss];

    /// The word used in URLs, in the HTTP API and in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Udp => "udp",
        }
    }

    /// The handshake's name for it; `None` where TLS encrypts and a bearer token says who the device is.
    ///
    /// With a name the device must prove that it holds its key: its first message is `@hello`, in a record or packet that opens.
    pub fn secure(self) -> Option<SecureChannel> {
        match self {
            Self::Ws => Some(SecureChannel::Ws),
            Self::Wss => None,
            Self::Udp => Some(SecureChannel::Udp),
        }
    }

    /// Whether the server hears the device also while it takes no messages from it, and while its own are not taken: datagrams
    /// are read in any case, so that silence is silence. A stream that is not read, or is full, says nothing.
    pub fn hears_while_stalled(self) -> bool {
        match self {
            Self::Ws | Self::Wss => false,
            Self::Udp => true,
        }
    }

    /// Whether what was sent is kept until the device has acknowledged it. A stream's is written once it is the socket's.
    pub fn acknowledges(self) -> bool {
        match self {
            Self::Ws | Self::Wss => false,
            Self::Udp => true,
        }
    }

    /// How frames name it.
    pub fn frame(self) -> frames::Channel {
        match self {
            Self::Ws => frames::Channel::Ws,
            Self::Wss => frames::Channel::Wss,
            Self::Udp => frames::Channel::Udp,
        }
    }

    /// `None` for a kind that is not known here.
    pub fn from_frame(channel: frames::Channel) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.frame() == channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_name_each_kind() {
        for kind in ChannelKind::ALL {
            assert_eq!(ChannelKind::from_frame(kind.frame()), Some(kind));
        }
        assert_eq!(ChannelKind::from_frame(frames::Channel::Unspecified), None);
    }
}
