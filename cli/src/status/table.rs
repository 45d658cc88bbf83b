//! The status as people read it.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::{Attached, Frontend, HandOver, Process, Status};

impl Status {
    /// `now` is the time since 1970.
    pub(super) fn table(&self, now: Duration) -> String {
        let mut text = self.frontend.lines();
        if let Some(backend) = &self.backend {
            let state = health(backend.live, backend.ready);
            let _ = writeln!(
                text,
                "backend   {} {}, {state}, {}",
                backend.name,
                backend.process.words(),
                backend.api
            );
        }
        text.push_str(&backends(&self.backends, now));
        text.push_str(&hand_overs(&self.hand_overs, now));
        if let Some(upgrade) = self.upgrade.as_ref().and_then(upgrade) {
            let _ = write!(text, "\nlast upgrade\n  {upgrade}\n");
        }
        text
    }
}

impl Frontend {
    fn lines(&self) -> String {
        let who = [
            self.id.map(|id| id.to_string()),
            self.version.clone(),
            self.process.as_ref().map(Process::words),
        ];
        let who: Vec<_> = who.into_iter().flatten().collect();
        let words = [
            Some(who.join(" ")),
            Some(health(self.live, self.ready).into()),
            self.wss.clone(),
            self.ws.clone(),
            self.udp.clone(),
        ];
        let words: Vec<_> = words
            .into_iter()
            .flatten()
            .filter(|word| !word.is_empty())
            .collect();
        let mut text = format!("frontend  {}", words.join(", "));
        let count = |n: Option<u64>| n.map_or("?".into(), |n| n.to_string());
        let _ = writeln!(
            text,
            "\n          {} sessions, {} waiting, {} requests in flight",
            count(self.sessions),
            count(self.waiting),
            count(self.in_flight)
        );
        text
    }
}

impl Process {
    fn words(&self) -> String {
        let gone = if self.running { "" } else { ", gone" };
        let restarts = match self.restarts {
            0 => String::new(),
            1 => ", 1 restart".into(),
            n => format!(", {n} restarts"),
        };
        format!("(pid {}{gone}{restarts})", self.pid)
    }
}

fn health(live: bool, ready: bool) -> &'static str {
    match (live, ready) {
        (_, true) => "ready",
        (true, false) => "live, not ready",
        (false, false) => "does not answer",
    }
}

fn backends(attached: &[Attached], now: Duration) -> String {
    if attached.is_empty() {
        return "\nno backend is attached\n".into();
    }
    let mut text = format!(
        "\n{:<16} {:<16} {:<10} {:>8} {:>10} {:>12} {:>10}\n",
        "attached", "version", "state", "share", "in flight", "requests", "since"
    );
    for backend in attached {
        let count = |n: Option<u64>| n.map_or("?".into(), |n| n.to_string());
        let share = backend
            .share_percent
            .map_or("?".into(), |share| format!("{share} %"));
        let since = backend.since_unix_ms.map_or("?".into(), |at| ago(at, now));
        let _ = writeln!(
            text,
            "{:<16} {:<16} {:<10} {share:>8} {:>10} {:>12} {since:>10}",
            backend.name,
            backend.build.as_deref().unwrap_or("?"),
            backend.state,
            count(backend.in_flight),
            count(backend.requests),
        );
    }
    text
}

fn hand_overs(seen: &[HandOver], now: Duration) -> String {
    if seen.is_empty() {
        return String::new();
    }
    let mut text = String::from("\nlast hand-overs\n");
    for hand_over in seen.iter().take(MAX_HAND_OVERS) {
        let took = hand_over
            .duration_ms
            .map_or(String::new(), |ms| format!(" in {ms} ms"));
        let requests = hand_over.requests;
        let what = match hand_over.kind.as_str() {
            "graceful" => format!("finished {requests} requests{took}"),
            _ => format!("{requests} requests given to others{took}"),
        };
        let _ = writeln!(
            text,
            "  {:>10} ago  {:<16} {:<10} {what}",
            ago(hand_over.at_unix_ms, now),
            hand_over.backend,
            hand_over.kind,
        );
    }
    text
}

fn upgrade(record: &Value) -> Option<String> {
    let id = record.get("id")?;
    let backend = record.get("backend")?.as_str()?;
    let Some(end) = record.get("end").filter(|end| !end.is_null()) else {
        let phase = record.get("phase")?.as_str()?.replace('_', " ");
        return Some(format!("{id} to {backend}: under way ({phase})"));
    };
    let outcome = end.get("outcome")?.as_str()?.replace('_', " ");
    let detail = end.get("detail").and_then(Value::as_str);
    let detail = detail.map_or(String::new(), |detail| format!(" ({detail})"));
    Some(format!("{id} to {backend}: {outcome}{detail}"))
}

/// Whole seconds are enough.
fn ago(at_unix_ms: u64, now: Duration) -> String {
    let passed = now.saturating_sub(Duration::from_millis(at_unix_ms));
    let words = humantime::format_duration(Duration::from_secs(passed.as_secs())).to_string();
    // `2days 3h 4m 5s`: the first two words say enough.
    words.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// Of the 32 that a frontend remembers.
const MAX_HAND_OVERS: usize = 10;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Said;
    use super::*;

    fn status() -> Status {
        let said: Said = serde_json::from_value(json!({
            "frontend_id": 1, "epoch": 5, "build": "0.1.0", "version": 1, "sessions": 1000, "waiting": 2, "in_flight": 7,
            "backends": [{"name": "backend-2", "build": "0.1.0+x", "epoch": "e", "state": "active", "share_percent": 5.0,
                          "in_flight": 3, "requests": 12, "replies": 9, "since_unix_ms": 10_000}],
            "hand_overs": [
                {"at_unix_ms": 90_000, "kind": "graceful", "backend": "backend-1", "epoch": "e", "requests": 3, "duration_ms": 14},
                {"at_unix_ms": 80_000, "kind": "crash", "backend": "backend-1", "epoch": "e", "requests": 4, "duration_ms": null}],
        }))
        .unwrap();
        Status {
            frontend: Frontend {
                id: said.frontend_id,
                version: said.build,
                sessions: said.sessions,
                waiting: said.waiting,
                in_flight: said.in_flight,
                live: true,
                ready: true,
                ..Frontend::default()
            },
            backends: said.backends,
            hand_overs: said.hand_overs,
            upgrade: Some(json!({"id": 3, "backend": "backend-2", "phase": "canary", "end": null})),
            ..Status::default()
        }
    }

    #[test]
    fn everything_that_an_operator_asks_is_there() {
        let table = status().table(Duration::from_secs(100));
        for part in [
            "frontend  1 0.1.0, ready",
            "1000 sessions, 2 waiting, 7 requests in flight",
            "backend-2        0.1.0+x          active          5 %          3           12     1m 30s",
            "10s ago  backend-1        graceful   finished 3 requests in 14 ms",
            "20s ago  backend-1        crash      4 requests given to others\n",
            "3 to backend-2: under way (canary)",
        ] {
            assert!(table.contains(part), "{part:?} is not in\n{table}");
        }
    }

    #[test]
    fn an_upgrade_that_ended_says_how() {
        let record = json!({"id": 1, "backend": "b", "phase": "done",
                            "end": {"outcome": "rolled_back", "detail": "why"}});
        assert_eq!(upgrade(&record).unwrap(), "1 to b: rolled back (why)");
    }

    #[test]
    fn what_was_not_said_is_a_question_mark() {
        let table = Status::default().table(Duration::ZERO);
        assert!(table.contains("? sessions") && table.starts_with("frontend  does not answer\n"));
        assert!(table.contains("no backend is attached"));
    }
}
