//! Admission, login and logout.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::link::Command;
use holdfast_proto::link::frames::{
    self, Admitted, Bind, Bound, Challenge, Channel, Close, LoggedIn, LoggedOut, Login, LoginDenied, Logout,
    Ping, SessionInfo, Welcomed, bound, close, logged_in,
};
use holdfast_proto::link::session_id;
use holdfast_proto::throttle::{self, Source};
use holdfast_proto::{CLOSED_BY_DEVICE, CONNECTION_LOST, CloseCode, DeviceId, SessionId};
use rustc_hash::FxHashMap;
use serde_json::{Map, Value};

use super::control::split_control;
use super::{LastSeen, Malformed};
use crate::auth::{Claimant, Denied, Grant};
use crate::link::{Frontend, Jitter, LinkIndex};

/// Credentials being checked, at most: more wait than the workers can check in the time that a device waits.
pub const MAX_AUTHENTICATIONS: usize = 1024;
/// How long a device is asked to stay away when there is no room or its BIND broke two backends; spread by half.
const RETRY_AFTER: Duration = Duration::from_secs(4);
/// A BIND or LOGIN that was lost with so many backends is not tried again: it may have broken them.
pub(crate) const POISON_ATTEMPTS: u32 = 2;
const MAX_HELLO_BYTES: usize = 4096;
const MAX_INSTANCE_BYTES: usize = 64;

/// A credential being checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BindId(pub u64);

/// Whose credential it is.
#[derive(Debug, Clone, Copy)]
struct Binding {
    link: LinkIndex,
    id: SessionId,
    channel: Channel,
}

/// What a checked credential leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct BindAnswer {
    pub link: LinkIndex,
    pub answer: Command,
    /// The device's channel and [`ADMITTED`] or the refusal's code, for metrics.
    pub channel: Channel,
    pub code: &'static str,
}

/// The outcome of a BIND that is no refusal.
pub const ADMITTED: &str = "admitted";

/// What a BIND leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum BindStep {
    Authenticate {
        bind: BindId,
        claimant: Claimant,
        credential: Bytes,
    },
    /// A refusal; `code` for metrics.
    Refuse { answer: Command, code: &'static str },
}

/// What a LOGIN leads to.
#[derive(Debug, Clone, PartialEq)]
pub struct LoginStep {
    pub answer: Command,
    /// The device's earlier sessions are to be closed; for all other frontends.
    pub replace: Option<Replaced>,
}

/// A device has logged in: its older sessions are over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    pub device: DeviceId,
    /// Those whose login took effect before this, milliseconds since 1970.
    pub before_ms: u64,
    pub except: SessionId,
}

impl Replaced {
    /// What a frontend is told.
    pub fn frame(&self) -> Close {
        Close {
            number: 0,
            target: Some(close::Target::Device(self.device.as_bytes().clone())),
            before_ms: self.before_ms,
            except: Some(self.except.into()),
            code: CloseCode::Replaced as u32,
        }
    }
}

/// Admissions under way, and which devices were seen.
#[derive(Debug)]
pub struct Lifecycle {
    binds: FxHashMap<BindId, Binding>,
    last_bind: u64,
    last_login_ms: u64,
    last_seen: LastSeen,
    jitter: Jitter,
}

impl Lifecycle {
    pub fn new(last_seen_capacity: usize, seed: u64) -> Self {
        Self {
            binds: FxHashMap::default(),
            last_bind: 0,
            last_login_ms: 0,
            last_seen: LastSeen::new(last_seen_capacity),
            jitter: Jitter::new(seed),
        }
    }

    pub fn handle_bind(&mut self, link: LinkIndex, bind: Bind) -> Result<BindStep, Malformed> {
        let id = session_id(bind.id)?;
        if bind.attempt >= POISON_ATTEMPTS {
            return Ok(self.unavailable(id, "backend_failed", "the connection failed twice"));
        }
        let Ok(channel) = Channel::try_from(bind.channel) else {
            return Ok(wrong_channel(id));
        };
        if self.binds.len() >= MAX_AUTHENTICATIONS {
            return Ok(self.unavailable(id, "overloaded", "too many devices are connecting"));
        }
        self.last_bind += 1;
        let bind_id = BindId(self.last_bind);
        self.binds.insert(bind_id, Binding { link, id, channel });
        Ok(BindStep::Authenticate {
            bind: bind_id,
            claimant: Claimant {
                channel,
                source: source_of(&bind.address),
            },
            credential: Bytes::copy_from_slice(&bind.credential),
        })
    }

    /// The answer to a BIND, unless its link was lost.
    pub fn handle_authenticated(
        &mut self,
        bind: BindId,
        result: Result<Grant, Denied>,
    ) -> Option<BindAnswer> {
        let Binding { link, id, channel } = self.binds.remove(&bind)?;
        let (code, result) = match result {
            Ok(grant) => (ADMITTED, bound::Result::Admitted(admitted(grant))),
            Err(refusal) => (refusal.code, bound::Result::Denied(self.refused(&refusal))),
        };
        Some(BindAnswer {
            link,
            answer: bound(id, result),
            channel,
            code,
        })
    }

    fn refused(&mut self, refusal: &Denied) -> frames::Denied {
        let mut denied = denied(refusal.status.into(), refusal.code, &refusal.message);
        denied.retryable = refusal.retryable();
        denied.retry_after_ms = match refusal.retry_after_ms {
            Some(known) => known,
            None if denied.retryable => self.retry_after_ms(),
            None => 0,
        };
        denied
    }

    /// `now_ms` is the wall clock's time. Logins get strictly growing times, whatever that clock does.
    pub fn handle_login(
        &mut self,
        login: Login,
        frontend: &Frontend,
        now_ms: u64,
    ) -> Result<LoginStep, Malformed> {
        let session = login.session.ok_or(Malformed)?;
        let id = session_id(session.id)?;
        let device = DeviceId::from_bytes(session.device)?;
        if login.attempt >= POISON_ATTEMPTS {
            return Ok(self.login_denied(id, "backend_failed", true));
        }
        if !is_good_hello(&login.hello) {
            return Ok(self.login_denied(id, "bad_hello", false));
        }
        self.last_login_ms = now_ms.max(self.last_login_ms + 1);
        self.last_seen.insert(&device);
        let welcome = if login.hello.is_empty() {
            Bytes::new()
        } else {
            render_welcome(id, frontend)
        };
        let welcomed = Welcomed {
            welcome,
            login_ms: self.last_login_ms,
            blob: None,
        };
        let replaced = Replaced {
            device: device.to_owned_bytes(),
            before_ms: self.last_login_ms,
            except: id,
        };
        Ok(LoginStep {
            answer: logged_in(id, logged_in::Result::Welcomed(welcomed)),
            replace: Some(replaced),
        })
    }

    /// Returns the answer and the reason's label for metrics. Safe to repeat.
    pub fn handle_logout(&mut self, logout: Logout) -> Result<(Command, &'static str), Malformed> {
        let session = logout.session.ok_or(Malformed)?;
        let id = session_id(session.id)?;
        if let Ok(device) = DeviceId::from_bytes(session.device) {
            self.last_seen.insert(&device);
        }
        let known = CloseCode::ALL
            .into_iter()
            .map(CloseCode::label)
            .chain([CLOSED_BY_DEVICE, CONNECTION_LOST])
            .find(|label| *label == logout.reason);
        Ok((
            Command::LoggedOut(LoggedOut { id: Some(id.into()) }),
            known.unwrap_or("other"),
        ))
    }

    /// Returns how many sessions are online.
    pub fn handle_ping(&mut self, ping: &Ping) -> u64 {
        self.note_seen(&ping.sessions);
        ping.online
    }

    /// Notes the devices of these sessions as seen.
    pub fn note_seen(&mut self, sessions: &[SessionInfo]) {
        for device in sessions
            .iter()
            .filter_map(|s| DeviceId::from_bytes(s.device.clone()).ok())
        {
            self.last_seen.insert(&device);
        }
    }

    pub fn was_seen(&self, device: &DeviceId) -> bool {
        self.last_seen.contains(device)
    }

    /// Forgets a lost link's admissions; their results will be ignored.
    pub fn remove_link(&mut self, link: LinkIndex) {
        self.binds.retain(|_, binding| binding.link != link);
    }

    pub fn binds_of(&self, link: LinkIndex) -> usize {
        self.binds.values().filter(|binding| binding.link == link).count()
    }

    fn retry_after_ms(&mut self) -> u32 {
        self.jitter.spread(RETRY_AFTER).as_millis() as u32
    }

    fn unavailable(&mut self, id: SessionId, code: &'static str, message: &str) -> BindStep {
        let mut denied = denied(503, code, message);
        denied.retryable = true;
        denied.retry_after_ms = self.retry_after_ms();
        BindStep::Refuse {
            answer: bound(id, bound::Result::Denied(denied)),
            code,
        }
    }

    fn login_denied(&mut self, id: SessionId, code: &str, reconnect: bool) -> LoginStep {
        let retry_after_ms = if reconnect { self.retry_after_ms() } else { 0 };
        let denied = LoginDenied {
            code: code.to_owned(),
            reconnect,
            retry_after_ms,
        };
        LoginStep {
            answer: logged_in(id, logged_in::Result::Denied(denied)),
            replace: None,
        }
    }
}

/// Addresses that cannot be read are one source.
fn source_of(address: &str) -> Source {
    let address: Option<SocketAddr> = address.parse().ok();
    address.map_or([0; 8], |address| throttle::source_of(address.ip()))
}

fn wrong_channel(id: SessionId) -> BindStep {
    let code = "wrong_channel";
    let denied = denied(400, code, "devices are not admitted on this kind of channel");
    BindStep::Refuse {
        answer: bound(id, bound::Result::Denied(denied)),
        code,
    }
}

fn admitted(grant: Grant) -> Admitted {
    let challenge = grant.challenge.map(|challenge| Challenge {
        message: challenge.message,
        to_server: challenge.keys.to_server.into_bytes(),
        to_device: challenge.keys.to_device.into_bytes(),
    });
    Admitted {
        device: grant.device.as_bytes().clone(),
        principal: grant.principal,
        challenge,
    }
}

fn bound(id: SessionId, result: bound::Result) -> Command {
    Command::Bound(Bound {
        id: Some(id.into()),
        result: Some(result),
    })
}

fn logged_in(id: SessionId, result: logged_in::Result) -> Command {
    Command::LoggedIn(LoggedIn {
        id: Some(id.into()),
        result: Some(result),
    })
}

fn denied(status: u32, code: &str, message: &str) -> frames::Denied {
    let (code, message) = (code.to_owned(), message.to_owned());
    frames::Denied {
        status,
        code,
        message,
        retryable: false,
        retry_after_ms: 0,
    }
}

fn render_welcome(id: SessionId, frontend: &Frontend) -> Bytes {
    let Frontend {
        heartbeat_ms,
        max_message_bytes,
        window_requests,
        ..
    } = frontend;
    format!(
        "@welcome {{\"session\":\"{id}\",\"heartbeat_ms\":{heartbeat_ms},\"max_message\":{max_message_bytes},\
         \"window\":{window_requests}}}"
    )
    .into()
}

/// `@hello`, optionally with an object: `instance` and `ticket` are text, other fields are left to later versions.
fn is_good_hello(hello: &[u8]) -> bool {
    if hello.is_empty() {
        return true;
    }
    let Some(("hello", json)) = split_control(hello).filter(|_| hello.len() <= MAX_HELLO_BYTES) else {
        return false;
    };
    if json.is_empty() {
        return true;
    }
    let Ok(fields) = serde_json::from_str::<Map<String, Value>>(json) else {
        return false;
    };
    let text_up_to = |field: &str, limit: usize| match fields.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.len() <= limit,
        Some(_) => false,
    };
    text_up_to("instance", MAX_INSTANCE_BYTES) && text_up_to("ticket", MAX_HELLO_BYTES)
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
pub(super) mod tests;
