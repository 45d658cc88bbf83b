//! How connections end. Pure.

use std::time::{Duration, Instant};

use holdfast_proto::codes::{CloseCode, LATEST_LOGIN};

use crate::Error;
use crate::message::Goodbye;

/// Why a connection ended, and what may follow.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) error: Error,
    pub(crate) hint: Option<Duration>,
    pub(crate) may_reconnect: bool,
    /// By a close, or by `@goodbye` alone: who sits between may let that through and then cut or spoil the connection.
    pub(crate) replaced: bool,
}

impl End {
    pub(crate) fn broken(error: Error) -> Self {
        Self {
            error,
            hint: None,
            may_reconnect: true,
            replaced: false,
        }
    }

    /// However it ended: what the server had said before still holds.
    pub(super) fn heed(&mut self, goodbye: Goodbye) {
        self.may_reconnect &= goodbye.reconnect;
        self.hint = self.hint.or(goodbye.retry_after);
        self.replaced |= goodbye.code == CloseCode::Replaced.label();
    }
}

/// What a close frame and the `@goodbye` before it mean together.
pub(super) fn closed_by_server(code: u16, reason: String, goodbye: Option<Goodbye>) -> End {
    let by_code = CloseCode::from_u16(code).is_none_or(CloseCode::may_reconnect);
    let reason = match &goodbye {
        Some(goodbye) if reason.is_empty() => goodbye.code.clone(),
        _ => reason,
    };
    let mut end = End {
        error: Error::ClosedByServer { code, reason },
        hint: None,
        may_reconnect: by_code,
        replaced: code == CloseCode::Replaced as u16,
    };
    if let Some(goodbye) = goodbye {
        end.heed(goodbye);
    }
    end
}

/// When a connection or an attempt was last lost without the server's word.
///
/// Its server may not know that it was, and its login may come through late, at another frontend than the session that came after it,
/// and replace that: then `replaced` is not about a rival, and the device comes back. Of several losses each may do so once.
#[derive(Debug, Default)]
pub(crate) struct LastLoss(Option<Instant>);

impl LastLoss {
    /// Notes how a connection ended, and corrects what follows from it.
    pub(crate) fn judge(&mut self, end: &mut End, now: Instant) {
        if end.replaced {
            let recent = |at: Instant| now.saturating_duration_since(at) < LATEST_LOGIN;
            end.may_reconnect |= self.0.is_some_and(recent);
            return;
        }
        match end.error {
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

    /// The close; the goodbye with the close cut off; the goodbye, and then the connection spoilt.
    fn replaced() -> [End; 4] {
        let goodbye = || Goodbye {
            code: "replaced".into(),
            retry_after: None,
            reconnect: false,
        };
        let mut spoilt = End::broken(Error::HeartbeatTimeout);
        spoilt.heed(goodbye());
        let by = |code, goodbye| closed_by_server(code, String::new(), goodbye);
        [
            by(4000, None),
            by(4000, Some(goodbye())),
            by(ABNORMAL_CLOSURE, Some(goodbye())),
            spoilt,
        ]
    }

    #[test]
    fn being_replaced_soon_after_a_loss_is_no_last_word_and_otherwise_is() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let may_reconnect = |last: &mut LastLoss, mut end: End, seconds: u64| {
            last.judge(&mut end, at(seconds));
            end.may_reconnect
        };
        for end in replaced() {
            let mut last = LastLoss::default();
            assert!(!may_reconnect(&mut last, end.clone(), 1), "{end:?}");
            last.judge(&mut End::broken(Error::Connect("lost".into())), at(400));
            // Several logins may have been held back: each replacement is excused, and none prolongs the time.
            for seconds in [401, 500, 699] {
                assert!(may_reconnect(&mut last, end.clone(), seconds), "{end:?}");
            }
            assert!(!may_reconnect(&mut last, end.clone(), 700), "{end:?}");
        }
        let mut last = LastLoss(Some(start));
        let operator = closed_by_server(4001, String::new(), None);
        assert!(!may_reconnect(&mut last, operator, 1), "that is no replacement");
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
