//! The services and their routes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_backend::route::RouteTable;
use holdfast_backend::service::{CallOutcome, FailureDetail, ServiceRequest};

use super::request::Domain;
use super::rng::Rng;

/// The routes of every run, each with a namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum RouteKind {
    Fast,
    /// Often slower than its timeout.
    Slow,
    /// One call at a time, two wait.
    Tight,
    Red,
    Blue,
    Free,
    Log,
}

impl RouteKind {
    pub(super) const ALL: [Self; 7] = [
        Self::Fast,
        Self::Slow,
        Self::Tight,
        Self::Red,
        Self::Blue,
        Self::Free,
        Self::Log,
    ];

    pub(super) fn namespace(self) -> &'static str {
        match self {
            Self::Fast => "Fast",
            Self::Slow => "Slow",
            Self::Tight => "Tight",
            Self::Red => "Red",
            Self::Blue => "Blue",
            Self::Free => "Free",
            Self::Log => "Log",
        }
    }

    pub(super) fn timeout(self) -> Duration {
        match self {
            Self::Slow => Duration::from_millis(300),
            _ => Duration::from_millis(1500),
        }
    }

    pub(super) fn domain(self) -> Domain {
        match self {
            Self::Red | Self::Blue => Domain::Namespace(self.namespace()),
            Self::Free => Domain::Unordered,
            Self::Fast | Self::Slow | Self::Tight | Self::Log => Domain::Connection,
        }
    }

    pub(super) fn is_one_way(self) -> bool {
        self == Self::Log
    }

    fn toml(self) -> String {
        let order = match self.domain() {
            Domain::Connection => "connection",
            Domain::Namespace(_) => "namespace",
            Domain::Unordered => "none",
        };
        let limits = match self {
            Self::Tight => "concurrency = 1\nqueue = 2",
            _ => "concurrency = 16\nqueue = 64",
        };
        format!(
            "[[route]]\nnamespace = \"{}\"\nname = \"*\"\nurl = \"http://service/\"\ntimeout = \"{}ms\"\n\
             order = \"{order}\"\n{limits}\none_way = {}\n",
            self.namespace(),
            self.timeout().as_millis(),
            self.is_one_way(),
        )
    }
}

/// The table that every backend has.
pub(super) fn routes() -> Arc<RouteTable> {
    let text: String = RouteKind::ALL.into_iter().map(RouteKind::toml).collect();
    Arc::new(RouteTable::parse(&text).expect("the simulation's routes are valid"))
}

/// How services behave at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Mood {
    /// Everything is answered, and soon.
    Well,
    /// Errors, hanging and slow answers happen.
    Usual,
    /// Nobody can be reached.
    Down,
}

/// How a call will end, and when; `None` when it hangs.
pub(super) fn answer(
    rng: &mut Rng,
    mood: Mood,
    route: RouteKind,
    request: &ServiceRequest,
) -> Option<(Duration, CallOutcome)> {
    let delay = match route {
        RouteKind::Slow if mood != Mood::Well => rng.around(Duration::from_millis(150)),
        _ => rng.around(Duration::from_millis(8)),
    };
    let failed = |detail: FailureDetail| Some((delay, CallOutcome::from(detail)));
    match mood {
        Mood::Well => {}
        Mood::Down if rng.chance(800) => return failed(FailureDetail::Connect),
        Mood::Down => return None,
        Mood::Usual => match rng.weighted(&[900, 30, 20, 20, 10, 20]) {
            0 => {}
            1 => return None,
            2 => return failed(FailureDetail::Status(500)),
            3 => return failed(FailureDetail::Broken),
            4 => return failed(FailureDetail::NotJson),
            _ => return Some((delay, CallOutcome::Empty)),
        },
    }
    let mark = rng.next();
    let padding = if rng.chance(50) {
        rng.below(4000)
    } else {
        rng.below(40)
    };
    let body = match request.binary {
        true => [&mark.to_be_bytes()[..], &vec![7; padding]].concat(),
        false => format!(
            "{{\"mark\":{mark},\"attempt\":{},\"padding\":\"{}\"}}",
            request.attempt,
            "x".repeat(padding)
        )
        .into(),
    };
    Some((delay, CallOutcome::Reply(Bytes::from(body))))
}
