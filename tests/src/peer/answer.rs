//! What a backend answers, frame by frame.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use holdfast_proto::Sequence;
use holdfast_proto::event::{ReplyHeader, parse_text, render_reply_text};
use holdfast_proto::link::Command;
use holdfast_proto::link::frames::{
    Admitted, Bind, BlobWrite, Bound, Close, ControlReply, LoggedIn, LoggedOut, Login, Reply, Request,
    SessionId, Updated, Welcomed, bound as bound_result, close, logged_in,
};
use serde_json::Value;

/// The answer to a command, if it wants one.
pub(super) fn answer(command: &Command) -> Option<Command> {
    Some(match command {
        Command::Bind(bind) => bound(bind),
        Command::Login(login) => welcomed(login),
        Command::Logout(logout) => logged_out(logout.session.as_ref()?.id),
        Command::TextMessage(request) => reply(request),
        Command::Update(update) => updated(update.session.as_ref()?.id, update.number, None),
        Command::Control(control) => Command::ControlReply(ControlReply {
            id: control.session.as_ref()?.id,
            number: control.number,
            reply: Bytes::new(),
        }),
        _ => return None,
    })
}

/// Lets the device in that its token names, whoever signed it.
pub fn bound(bind: &Bind) -> Command {
    let token = String::from_utf8_lossy(&bind.credential).into_owned();
    let claims = token.split('.').nth(1).unwrap_or_default();
    let claims: Value = URL_SAFE_NO_PAD
        .decode(claims)
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .expect("a test's token");
    let device = claims["sub"]
        .as_str()
        .expect("a token names its device")
        .to_owned();
    Command::Bound(Bound {
        id: bind.id,
        result: Some(bound_result::Result::Admitted(Admitted {
            device: device.into(),
            principal: Bytes::from_static(b"principal"),
            challenge: None,
        })),
    })
}

pub fn welcomed(login: &Login) -> Command {
    let welcomed = Welcomed {
        welcome: Bytes::from_static(
            b"@welcome {\"session\":\"of a test\",\"heartbeat_ms\":30000,\"max_message\":1048576,\"window\":32}",
        ),
        login_ms: 1,
        blob: None,
    };
    Command::LoggedIn(LoggedIn {
        id: login.session.as_ref().and_then(|s| s.id),
        result: Some(logged_in::Result::Welcomed(welcomed)),
    })
}

pub fn logged_out(id: Option<SessionId>) -> Command {
    Command::LoggedOut(LoggedOut { id })
}

/// The request's payload back, in the connection's order.
pub fn reply(request: &Request) -> Command {
    let event = parse_text(&request.payload).expect("a test's event");
    let header = ReplyHeader {
        namespace: &event.namespace,
        name: &event.name,
        reply_to: event.id.as_deref(),
        seq: Sequence(request.sequence),
    };
    let payload = render_reply_text(&header, &event.payload_in(&request.payload));
    let before = request.sequence - 1;
    Command::Reply(Reply {
        id: request.session.as_ref().and_then(|s| s.id),
        sequence: request.sequence,
        r#final: true,
        after: if before >= request.floor { before } else { 0 },
        payload: payload.into(),
        ..Default::default()
    })
}

/// An `@update` answered, with a blob that was made from the version given.
pub fn updated(id: Option<SessionId>, number: u64, blob: Option<(&'static str, u32)>) -> Command {
    Command::Updated(Updated {
        id,
        number,
        reply: Bytes::from_static(b"@updated {}"),
        blob: blob.map(|(blob, base_version)| BlobWrite {
            blob: blob.into(),
            base_version,
        }),
    })
}

/// Closes one session.
pub fn closed(id: SessionId, code: u16) -> Command {
    Command::Close(Close {
        target: Some(close::Target::Session(id)),
        code: code.into(),
        ..Default::default()
    })
}
