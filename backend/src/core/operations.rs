//! What the HTTP API asks: pushes, presence and closes.

use std::time::{Duration, Instant, SystemTime};

use holdfast_proto::link::frames::{self, Channel, Close, MessageKind, Push, Query, close, push};
use holdfast_proto::link::{Class, Command, Origin, session_id};
use holdfast_proto::{CloseCode, DeviceId, SessionId};

use super::{Action, Backend, SOURCE_PUSH, Stop};
use crate::api::{
    self, GatewayError, PresenceState, PushMessage, PushReport, PushResult, PushStatus, PushTarget,
};
use crate::link::{LinkIndex, LinkState};
use crate::push::{Asked, Outcome, Presence, Question, Ticket};

/// Bytes of pushes that wait for credit, over all links; one push passes whatever its size when nothing waits.
const MAX_PUSH_BYTES: usize = 64 * 1024 * 1024;
/// Push frames that wait on one link.
const MAX_QUEUED_PUSHES: usize = 4096;
/// Hint to callers that find no room or no frontend.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const MAX_ADDRESS_CHARS: usize = 64;

/// What the API asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiRequest {
    Push {
        target: PushTarget,
        message: PushMessage,
    },
    Presence(DeviceId),
    Close(DeviceId),
}

/// What it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAnswer {
    Push(PushReport),
    Presence(api::Presence),
    /// How many sessions were closed.
    Closed(u64),
}

impl Backend {
    /// Begins an operation that ends with [`Action::ApiDone`] of the same ticket, maybe in this turn.
    pub fn handle_api(&mut self, ticket: Ticket, request: ApiRequest, now: Instant) {
        let begun = match request {
            ApiRequest::Push { target, message } => self.begin_push(ticket, target, message, now),
            ApiRequest::Presence(device) => self.begin_query(ticket, device, now),
            ApiRequest::Close(device) => self.begin_close(ticket, &device, now),
        };
        if let Err(error) = begun {
            self.actions.push_back(Action::ApiDone {
                ticket,
                result: Err(error),
            });
        }
        self.after_input();
    }

    fn begin_push(
        &mut self,
        ticket: Ticket,
        target: PushTarget,
        message: PushMessage,
        now: Instant,
    ) -> Result<(), GatewayError> {
        let mut asked = self.ask_all()?;
        if let PushTarget::Session(session) = target {
            match self.ask_owner(session) {
                Some(owner) => asked = owner,
                None => return self.answer_unknown(ticket, session),
            }
        }
        let (kind, payload) = match message {
            PushMessage::Text(payload) => (MessageKind::Text, payload),
            PushMessage::Binary(payload) => (MessageKind::Binary, payload),
        };
        self.check_room(&asked, payload.len())?;
        let frame_target = match &target {
            PushTarget::Device(device) => push::Target::Device(device.as_bytes().clone()),
            PushTarget::Session(session) => push::Target::Session((*session).into()),
            PushTarget::All => push::Target::All(true),
        };
        let links = asked.links.clone();
        let number = self.begin(
            ticket,
            Question::Push(target),
            asked,
            now + self.settings.push_timeout,
        )?;
        let bytes = payload.len();
        let frame = Push {
            number,
            target: Some(frame_target),
            kind: kind as i32,
            payload,
        };
        for link in links {
            let origin = Origin {
                source: SOURCE_PUSH,
                ticket: bytes as u64,
            };
            if self.enqueue(link, Command::Push(frame.clone()), Some(origin)) {
                self.links[link.get()].push_bytes += bytes;
            }
        }
        Ok(())
    }

    fn begin_query(&mut self, ticket: Ticket, device: DeviceId, now: Instant) -> Result<(), GatewayError> {
        let asked = self.ask_all()?;
        let links = asked.links.clone();
        let name = device.as_bytes().clone();
        let number = self.begin(
            ticket,
            Question::Presence(device),
            asked,
            now + self.settings.query_timeout,
        )?;
        for link in links {
            self.enqueue(
                link,
                Command::Query(Query {
                    number,
                    device: name.clone(),
                }),
                None,
            );
        }
        Ok(())
    }

    fn begin_close(&mut self, ticket: Ticket, device: &DeviceId, now: Instant) -> Result<(), GatewayError> {
        let asked = self.ask_all()?;
        let links = asked.links.clone();
        let number = self.begin(ticket, Question::Close, asked, now + self.settings.push_timeout)?;
        let frame = Close {
            number,
            target: Some(close::Target::Device(device.as_bytes().clone())),
            code: CloseCode::ClosedByOperator as u32,
            ..Default::default()
        };
        for link in links {
            self.enqueue(link, Command::Close(frame.clone()), None);
        }
        Ok(())
    }

    fn begin(
        &mut self,
        ticket: Ticket,
        question: Question,
        asked: Asked,
        until: Instant,
    ) -> Result<u64, GatewayError> {
        let begun = self.tracker.begin(ticket, question, asked, until);
        begun.map(|id| id.0).map_err(|_| overloaded())
    }

    /// All frontends that can be asked; those that cannot count as missing. When a link has said its last word, another
    /// backend is in charge already.
    fn ask_all(&self) -> Result<Asked, GatewayError> {
        let left = self.stop != Stop::No
            && self
                .links
                .iter()
                .any(|link| link.attachment.state() == LinkState::Finished);
        let links: Vec<LinkIndex> = self
            .link_indexes()
            .filter(|link| self.links[link.get()].attachment.is_open())
            .collect();
        if links.is_empty() || left {
            return Err(GatewayError::Unavailable {
                retry_after: RETRY_AFTER,
            });
        }
        let missing = self.links.len() - links.len();
        Ok(Asked { links, missing })
    }

    /// The frontend that a session's uuid names, if it may be one of ours.
    fn ask_owner(&self, session: SessionId) -> Option<Asked> {
        let owner = session.parts().frontend;
        let mut unnamed = false;
        for link in self.link_indexes() {
            let attachment = &self.links[link.get()].attachment;
            match attachment.frontend() {
                Some(frontend) if frontend.id == owner && attachment.is_open() => {
                    return Some(Asked {
                        links: vec![link],
                        missing: 0,
                    });
                }
                Some(frontend) => unnamed |= frontend.id == owner,
                None => unnamed = true,
            }
        }
        unnamed.then(|| Asked {
            links: Vec::new(),
            missing: 1,
        })
    }

    fn answer_unknown(&mut self, ticket: Ticket, session: SessionId) -> Result<(), GatewayError> {
        let result = PushResult {
            device: None,
            session: Some(session),
            status: PushStatus::Unknown,
            reason: None,
        };
        let answer = ApiAnswer::Push(PushReport::Results(vec![result]));
        self.actions.push_back(Action::ApiDone {
            ticket,
            result: Ok(answer),
        });
        Ok(())
    }

    fn check_room(&self, asked: &Asked, bytes: usize) -> Result<(), GatewayError> {
        let waiting: usize = self.links.iter().map(|link| link.push_bytes).sum();
        let full =
            |link: &LinkIndex| self.links[link.get()].attachment.queued(Class::Push) >= MAX_QUEUED_PUSHES;
        let too_much = waiting > 0 && waiting + bytes * asked.links.len() > MAX_PUSH_BYTES;
        if too_much || asked.links.iter().any(full) {
            Err(overloaded())
        } else {
            Ok(())
        }
    }

    /// An operation's outcome as the API says it.
    pub(super) fn report(&self, outcome: Outcome) -> Result<ApiAnswer, GatewayError> {
        match outcome {
            Outcome::All(counts) => Ok(ApiAnswer::Push(PushReport::Counts(counts))),
            Outcome::Push(target, result) => {
                let result = self.name_target(target, result);
                Ok(ApiAnswer::Push(PushReport::Results(vec![result])))
            }
            Outcome::Presence(device, presence) => {
                self.report_presence(device, presence).map(ApiAnswer::Presence)
            }
            Outcome::Closed {
                sessions,
                complete: true,
            } => Ok(ApiAnswer::Closed(sessions)),
            Outcome::Closed { sessions: closed, .. } => Err(GatewayError::Unconfirmed {
                closed,
                retry_after: RETRY_AFTER,
            }),
        }
    }

    fn name_target(&self, target: PushTarget, mut result: PushResult) -> PushResult {
        match target {
            PushTarget::Device(device) => {
                if result.status == PushStatus::Offline && !self.lifecycle.was_seen(&device) {
                    result.status = PushStatus::Unknown;
                }
                result.device = Some(device);
            }
            PushTarget::Session(session) => result.session = Some(session),
            PushTarget::All => {}
        }
        result
    }

    fn report_presence(&self, device: DeviceId, presence: Presence) -> Result<api::Presence, GatewayError> {
        let sessions: Vec<api::SessionInfo> =
            presence.sessions.into_iter().filter_map(session_info).collect();
        let state = if !sessions.is_empty() {
            PresenceState::Online
        } else if !presence.complete {
            PresenceState::Unknown
        } else if self.lifecycle.was_seen(&device) {
            PresenceState::Offline
        } else {
            return Err(GatewayError::UnknownDevice);
        };
        Ok(api::Presence {
            device,
            presence: state,
            sessions,
        })
    }
}

/// `None` when the frontend's entry has no session id of ours.
fn session_info(info: frames::SessionInfo) -> Option<api::SessionInfo> {
    let channel = match info.channel() {
        Channel::Wss => "wss",
        Channel::Ws => "ws",
        Channel::Udp => "udp",
        Channel::Unspecified => "unknown",
    };
    Some(api::SessionInfo {
        session: session_id(info.id).ok()?,
        channel: channel.to_owned(),
        address: info.address.chars().take(MAX_ADDRESS_CHARS).collect(),
        since: SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(info.since_ms))?,
    })
}

fn overloaded() -> GatewayError {
    GatewayError::Overloaded {
        retry_after: RETRY_AFTER,
    }
}
