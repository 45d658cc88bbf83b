//! How connections end. Pure.

use std::time::{Duration, Instant};

use holdfast_proto::codes::CloseCode;

use crate::Error;
use crate::message::Goodbye;

/// Why a connection ended, and what may follow.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) error: Error,
    pub(crate) hint: Option<Duration>,
    pub(crate) may_reconnect: bool,
}

impl End {
    pub(super) fn broken(error: Error) -> Self {
        Self {
            error,
            hint: None,
            may_reconnect: true,
        }
    }

    /// However it ended: what the server had said before still holds.
    pub(super) fn heed(&mut self, goodbye: Goodbye) {
        self.may_reconnect &= goodbye.reconnect;
        self.hint = self.hint.or(goodbye.retry_after);
    }
}

/// What a close frame and the `@goodbye` before it mean together.
pub(super) fn closed_by_server(code: u16, reason: String, goodbye: Option<Goodbye>) -> End {
    let by_code = CloseCode::from_u16(code).is_none_or(CloseCode::may_reconnect);
    let (may, hint, word) = match goodbye {
        Some(goodbye) => (goodbye.reconnect, goodbye.retry_after, goodbye.code),
        None => (true, None, String::new()),
    };
    let reason = if reason.is_empty() { word } else { reason };
    End {
        error: Error::ClosedByServer { code, reason },
        hint,
        may_reconnect: may && by_code,
    }
}

/// When a connection or an attempt was last lost without the server's word.
///
/// Its server may not know that it was, and its login may come through late and replace the session that came after it: then
/// `replaced` is not about a rival, and the device comes back. As often as that happens: several attempts may have been lost, and
/// each may come through. Two rivals that both lost a connection replace each other for this minute at most.
#[derive(Debug, Default)]
pub(crate) struct LastLoss(Option<Instant>);

/// How long what was lost may still come through: the server gives up a login that is not there after some ten seconds.
const LATE: Duration = Duration::from_secs(60);

impl LastLoss {
    /// Notes how a connection ended, and corrects what follows from it.
    pub(crate) fn judge(&mut self, end: &mut End, now: Instant) {
        match end.error {
            Error::ClosedByServer { code, .. } if code == CloseCode::Replaced as u16 => {
                let late = self.0.is_some_and(|at| now.saturating_duration_since(at) < LATE);
                end.may_reconnect |= late;
            }
            Error::ClosedByServer { code, .. } if code != ABNORMAL_CLOSURE => {}
            Error::Refused(_) | Error::Config(_) | Error::Closed => {}
            _ => self.0 = Some(now),
        }
    }
}

/// RFC 6455 section 7.4.1: no close frame at all.
pub(super) const ABNORMAL_CLOSURE: u16 = 1006;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn being_replaced_after_a_loss_is_no_last_word_and_otherwise_is() {
        let (mut last, start) = (LastLoss::default(), Instant::now());
        let replaced = |seconds: u64, last: &mut LastLoss| {
            let mut end = closed_by_server(4000, String::new(), None);
            last.judge(&mut end, start + Duration::from_secs(seconds));
            end.may_reconnect
        };
        assert!(!replaced(0, &mut last));
        last.judge(&mut End::broken(Error::Connect("lost".into())), start);
        assert!(replaced(1, &mut last));
        assert!(
            replaced(59, &mut last),
            "more than one attempt may have been lost"
        );
        assert!(!replaced(60, &mut last));
    }

    #[test]
    fn a_goodbye_holds_however_the_connection_ends() {
        let goodbye = |reconnect| Goodbye {
            code: "x".into(),
            retry_after: Some(Duration::from_secs(3)),
            reconnect,
        };
        for reconnect in [true, false] {
            let mut end = End::broken(Error::HeartbeatTimeout);
            end.heed(goodbye(reconnect));
            assert_eq!(end.may_reconnect, reconnect);
            assert_eq!(end.hint, Some(Duration::from_secs(3)));
            assert_eq!(end.error, Error::HeartbeatTimeout);
        }
        let mut end = closed_by_server(4000, String::new(), None);
        end.heed(goodbye(true));
        assert!(!end.may_reconnect);
    }

    #[test]
    fn codes_and_goodbyes_say_whether_to_come_back() {
        for (code, may) in [
            (1000, false),
            (1001, true),
            (1013, true),
            (4000, false),
            (4001, false),
            (4004, false),
        ] {
            assert_eq!(
                closed_by_server(code, String::new(), None).may_reconnect,
                may,
                "{code}"
            );
        }
        assert!(closed_by_server(4999, String::new(), None).may_reconnect);
        let goodbye = |reconnect| Goodbye {
            code: "going_away".into(),
            retry_after: Some(Duration::from_secs(3)),
            reconnect,
        };
        assert!(!closed_by_server(1001, String::new(), Some(goodbye(false))).may_reconnect);
        let end = closed_by_server(1001, String::new(), Some(goodbye(true)));
        assert_eq!(
            (end.may_reconnect, end.hint),
            (true, Some(Duration::from_secs(3)))
        );
        assert_eq!(
            end.error,
            Error::ClosedByServer {
                code: 1001,
                reason: "going_away".into()
            }
        );
    }
}
