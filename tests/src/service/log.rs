//! What the service remembers: every call compactly, the first ones with their headers.

use std::collections::HashMap;
use std::time::Duration;

use http::HeaderMap;
use http::request::Parts;

use super::verify::Facts;
use crate::history::digest;

/// Calls whose headers are kept.
const MAX_HEADERS: usize = 512;
/// Broken promises kept as text.
const MAX_PROBLEMS: usize = 100;

/// One call. Times are since the service's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub arrived: Duration,
    /// `None` while it is open, and for ever when the caller broke off.
    pub left: Option<Duration>,
    /// Digest of the path.
    pub path: u64,
    /// Digest of the whole `Idempotency-Key` header.
    pub key: u64,
    /// Digest of `ce-subject`, the device.
    pub device: u64,
    /// Digest of `ce-hfsession`.
    pub session: u64,
    /// `ce-hfsequence`: the request's number on its connection.
    pub sequence: u64,
    /// `ce-hfattempt`, from 1.
    pub attempt: u32,
    /// Digest of the body.
    pub body: u64,
}

impl Call {
    pub fn is_from(&self, device: &str) -> bool {
        self.device == digest(device.as_bytes())
    }
}

/// All calls in order of arrival.
#[derive(Debug, Default)]
pub struct Log {
    pub calls: Vec<Call>,
    /// Headers of the first calls, by the same index.
    pub headers: Vec<HeaderMap>,
    pub problems: Vec<String>,
}

impl Log {
    /// Calls without an answer, also those whose caller broke off.
    pub fn open(&self) -> usize {
        self.calls.iter().filter(|c| c.left.is_none()).count()
    }

    /// Calls per idempotency key.
    pub fn by_key(&self) -> HashMap<u64, Vec<&Call>> {
        let mut by_key: HashMap<u64, Vec<&Call>> = HashMap::new();
        for call in &self.calls {
            by_key.entry(call.key).or_default().push(call);
        }
        by_key
    }

    /// Keys whose calls differ in body, session or number, or repeat an attempt: none, if keys mean what they say.
    pub fn inconsistent_keys(&self) -> usize {
        let broken = |calls: &Vec<&Call>| {
            let same = |c: &&Call| {
                (c.body, c.session, c.sequence) == (calls[0].body, calls[0].session, calls[0].sequence)
            };
            let mut attempts: Vec<u32> = calls.iter().map(|c| c.attempt).collect();
            attempts.sort_unstable();
            attempts.dedup();
            attempts.len() != calls.len() || !calls.iter().all(same)
        };
        self.by_key().values().filter(|calls| broken(calls)).count()
    }

    pub(super) fn arrive(
        &mut self,
        arrived: Duration,
        head: &Parts,
        body: &[u8],
        facts: Result<Facts, String>,
    ) -> usize {
        let headers = &head.headers;
        let facts = facts.unwrap_or_else(|problem| {
            if self.problems.len() < MAX_PROBLEMS {
                self.problems.push(problem);
            }
            Facts::default()
        });
        let hash = |name: &str| headers.get(name).map_or(0, |v| digest(v.as_bytes()));
        if self.headers.len() < MAX_HEADERS {
            self.headers.push(headers.clone());
        }
        self.calls.push(Call {
            arrived,
            left: None,
            path: digest(head.uri.path().as_bytes()),
            key: hash("idempotency-key"),
            device: hash("ce-subject"),
            session: hash("ce-hfsession"),
            sequence: facts.sequence,
            attempt: facts.attempt,
            body: digest(body),
        });
        self.calls.len() - 1
    }

    pub(super) fn leave(&mut self, index: usize, left: Duration) {
        self.calls[index].left = Some(left);
    }
}
