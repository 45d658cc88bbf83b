//! Noticing that a small file has changed, for whoever reads it from time to time.
//!
//! What is compared is a hash of the text: a time stamp can miss a change. A change counts when two reads in a row agree, so that
//! a file that is just being written is not taken half.

use std::time::Duration;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Time between two looks at a file.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a changed file is read again, to see whether it is complete.
pub const SETTLE_INTERVAL: Duration = Duration::from_millis(100);

/// What a watched file said.
#[derive(Debug)]
pub struct Watch {
    /// The last content that was judged.
    judged: Content,
    /// A content seen once.
    settling: Option<Content>,
}

/// The hash of a file's text; `None` when it cannot be read.
type Content = Option<[u8; 32]>;

/// What one look at a file showed.
#[derive(Debug)]
pub enum Look<E> {
    Unchanged,
    /// It changed; the next look, after [`SETTLE_INTERVAL`], tells whether it is complete.
    Settling,
    /// Another text, or that it cannot be read any more. Told once.
    Changed(Result<Zeroizing<String>, E>),
}

impl Watch {
    /// `text` is what the file says and what is in force.
    pub fn new(text: &str) -> Self {
        Self {
            judged: Some(hash(text)),
            settling: None,
        }
    }

    /// Takes what a read of the file gave.
    pub fn look<E>(&mut self, read: Result<Zeroizing<String>, E>) -> Look<E> {
        let content = read.as_ref().ok().map(|text| hash(text));
        if content == self.judged {
            self.settling = None;
            return Look::Unchanged;
        }
        if self.settling != Some(content) {
            self.settling = Some(content);
            return Look::Settling;
        }
        self.settling = None;
        self.judged = content;
        Look::Changed(read)
    }
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_when_two_reads_agree_and_is_told_once() {
        let mut watch = Watch::new("a");
        let mut look = |read: Result<&str, ()>| match watch.look(read.map(|text| text.to_owned().into())) {
            Look::Unchanged => "unchanged".to_owned(),
            Look::Settling => "settling".to_owned(),
            Look::Changed(read) => read.map_or("gone".to_owned(), |text| text.to_string()),
        };
        assert_eq!(look(Ok("a")), "unchanged");
        assert_eq!(
            [look(Ok("b")), look(Ok("bc")), look(Ok("bc"))],
            ["settling", "settling", "bc"]
        );
        assert_eq!(look(Ok("bc")), "unchanged");
        assert_eq!(
            [look(Ok("d")), look(Ok("bc")), look(Ok("d"))],
            ["settling", "unchanged", "settling"]
        );
        assert_eq!(
            [look(Err(())), look(Err(())), look(Err(()))],
            ["settling", "gone", "unchanged"]
        );
        assert_eq!([look(Ok("bc")), look(Ok("bc"))], ["settling", "bc"]);
    }
}
