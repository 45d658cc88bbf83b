//! What ends send each other: content that anybody can make again from its seed.

use bytes::Bytes;
use holdfast_proto::MessageKind;

use crate::sim::rng::Rng;

/// One message, but for its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Message {
    pub(crate) kind: MessageKind,
    pub(crate) bytes: usize,
    seed: u64,
}

impl Message {
    pub(crate) fn draw(rng: &mut Rng, bytes: usize) -> Self {
        let kind = rng.pick(&[MessageKind::Text, MessageKind::Binary]);
        let seed = rng.next();
        Self { kind, bytes, seed }
    }

    pub(crate) fn content(&self) -> Bytes {
        let mut content = Vec::with_capacity(self.bytes + 8);
        let mut rng = Rng::new(self.seed);
        while content.len() < self.bytes {
            content.extend_from_slice(&rng.next().to_le_bytes());
        }
        content.truncate(self.bytes);
        content.into()
    }

    /// Whether that is this message, unchanged.
    pub(crate) fn is(&self, kind: MessageKind, content: &[u8]) -> bool {
        self.kind == kind && self.bytes == content.len() && self.content() == content
    }
}

/// How long an application's messages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sizes {
    /// Up to 200 bytes, some of them empty.
    Small,
    /// Up to 20 KiB.
    Medium,
    /// Around a multiple of what fits into a datagram: where pieces are cut.
    Edges,
    /// Up to the longest.
    Large,
    Mixed,
}

impl Sizes {
    pub(crate) fn draw(self, rng: &mut Rng, longest: usize) -> usize {
        let bytes = match self {
            Self::Small => rng.below(200).saturating_sub(20),
            Self::Medium => rng.below(20 << 10),
            Self::Edges => (rng.range(1..=4) * rng.pick(&[450, 1_130, 1_400])) as usize + rng.below(80),
            Self::Large if rng.chance(200) => longest,
            Self::Large => rng.below(longest),
            Self::Mixed => {
                let sizes = [Self::Small, Self::Medium, Self::Edges, Self::Large];
                let which = rng.weighted(&[50, 25, 20, 5]);
                return sizes[which].draw(rng, longest);
            }
        };
        bytes.min(longest)
    }
}
