//! Valid histories from a list of choices, so that a property test can shrink them.

use holdfast_proto::ErrorCode;

use super::{Conn, Domain, Event, Expectations, Form, Outcome, digest};

/// Connections in a generated history.
const CONNECTIONS: usize = 4;
/// Unanswered requests of one connection, as the gateway's window has it.
const WINDOW: usize = 32;

/// One choice: which connection, what to do there, and which of several things.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub conn: u8,
    pub act: u8,
    pub which: u8,
}

struct Device {
    conn: Conn,
    sent: u32,
    waiting: Vec<Event>,
    /// Asked and not yet seen.
    pushes: Vec<u64>,
}

/// A history that keeps every promise, with what it takes for granted. Ends with everything answered.
pub fn generate(steps: &[Step]) -> (Vec<Event>, Expectations) {
    let mut events = Vec::new();
    let mut devices: Vec<Device> = (0..CONNECTIONS as u32)
        .map(|n| Device {
            conn: Conn(n),
            sent: 0,
            waiting: Vec::new(),
            pushes: Vec::new(),
        })
        .collect();
    events.extend(devices.iter().map(|d| Event::Opened { conn: d.conn }));
    for step in steps {
        let device = &mut devices[usize::from(step.conn) % CONNECTIONS];
        match step.act % 8 {
            0..=2 if device.waiting.len() < WINDOW => device.send(step.which, &mut events),
            3 => device.ask(&mut events),
            4 => device.see_push(&mut events),
            _ => device.answer(step.which, &mut events),
        }
    }
    for device in &mut devices {
        while !device.waiting.is_empty() {
            device.answer(0, &mut events);
        }
        while !device.pushes.is_empty() {
            device.see_push(&mut events);
        }
    }
    (
        events,
        Expectations {
            errors: vec![ErrorCode::UpstreamTimeout],
            ..Expectations::default()
        },
    )
}

impl Device {
    fn send(&mut self, which: u8, events: &mut Vec<Event>) {
        self.sent += 1;
        let (conn, seq) = (self.conn, self.sent);
        let domain = match which % 4 {
            0 | 1 => Domain::CONNECTION,
            2 => Domain(7),
            _ => Domain::UNORDERED,
        };
        let form = match which / 4 % 8 {
            0 => Form::OneWay,
            1..=3 => Form::Binary,
            _ => Form::Text,
        };
        let id = digest(format!("{}-{seq}", conn.0).as_bytes());
        let event = Event::Sent {
            conn,
            seq,
            domain,
            form,
            id,
            body: id.rotate_left(7),
        };
        events.push(event);
        if form != Form::OneWay {
            self.waiting.push(event);
        }
    }

    /// Answers one of the requests that may be answered now: the first of each domain, any of the unordered ones.
    fn answer(&mut self, which: u8, events: &mut Vec<Event>) {
        let domain = |e: &Event| match e {
            Event::Sent { domain, .. } => *domain,
            _ => Domain::UNORDERED,
        };
        let ready: Vec<usize> = (0..self.waiting.len())
            .filter(|&i| {
                let own = domain(&self.waiting[i]);
                own == Domain::UNORDERED || self.waiting[..i].iter().all(|earlier| domain(earlier) != own)
            })
            .collect();
        if ready.is_empty() {
            return;
        }
        let request = self.waiting.remove(ready[usize::from(which) % ready.len()]);
        let Event::Sent {
            conn,
            seq,
            form,
            id,
            body,
            ..
        } = request
        else {
            return;
        };
        let outcome = if which > 240 {
            Outcome::Error(ErrorCode::UpstreamTimeout)
        } else {
            Outcome::Body(body)
        };
        events.push(Event::Replied {
            conn,
            seq,
            binary: form == Form::Binary,
            id,
            outcome,
        });
    }

    fn ask(&mut self, events: &mut Vec<Event>) {
        let conn = self.conn;
        let id = digest(&events.len().to_le_bytes());
        events.push(Event::PushAsked { conn, id });
        events.push(Event::PushWritten { conn, id });
        self.pushes.push(id);
    }

    fn see_push(&mut self, events: &mut Vec<Event>) {
        if let Some(id) = self.pushes.pop() {
            events.push(Event::Pushed { conn: self.conn, id });
        }
    }
}
