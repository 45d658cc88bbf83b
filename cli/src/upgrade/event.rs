//! What `holdfast up` tells of an upgrade while it works: one JSON object a line. Both ends.

use serde::{Deserialize, Serialize};

use super::report::Report;

/// One line of the answer to `POST /v1/upgrades`. The last one is [`Event::End`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A phase began.
    Phase {
        at_ms: u64,
        phase: Phase,
        text: String,
    },
    /// How both do in the watch.
    Watch(Watch),
    /// Something that who watches should know.
    Note {
        at_ms: u64,
        text: String,
    },
    End(Box<End>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Starting,
    Ready,
    Canary,
    Promoting,
    Draining,
    RollingBack,
    Done,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Watch {
    pub(crate) at_ms: u64,
    pub(crate) elapsed_ms: u64,
    pub(crate) watch_ms: u64,
    pub(crate) share_percent: f64,
    pub(crate) old: Sight,
    pub(crate) new: Sight,
}

/// What one backend did since the watch began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sight {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) p95_us: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) at_ms: u64,
    /// `promoted`, `rolled_back` or `failed`.
    pub(crate) outcome: String,
    /// A word for programs, such as `errors`; none when it was promoted.
    pub(crate) reason: Option<String>,
    /// The same for people.
    pub(crate) detail: Option<String>,
    pub(crate) report: Report,
}

impl Phase {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Canary => "canary",
            Self::Promoting => "promoting",
            Self::Draining => "draining",
            Self::RollingBack => "rolling back",
            Self::Done => "done",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_form() {
        let phase = Event::Phase {
            at_ms: 5,
            phase: Phase::RollingBack,
            text: "x".into(),
        };
        let text = serde_json::to_string(&phase).unwrap();
        assert_eq!(
            text,
            r#"{"event":"phase","at_ms":5,"phase":"rolling_back","text":"x"}"#
        );
        let watch = Event::Watch(Watch {
            at_ms: 9,
            elapsed_ms: 1,
            watch_ms: 2,
            share_percent: 5.0,
            old: Sight::default(),
            new: Sight {
                requests: 3,
                errors: 1,
                p95_us: Some(700),
            },
        });
        let text = serde_json::to_string(&watch).unwrap();
        assert_eq!(
            text,
            r#"{"event":"watch","at_ms":9,"elapsed_ms":1,"watch_ms":2,"share_percent":5.0,"old":{"requests":0,"errors":0,"p95_us":null},"new":{"requests":3,"errors":1,"p95_us":700}}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), watch);
    }
}
