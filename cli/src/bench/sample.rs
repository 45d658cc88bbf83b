//! A report for tests of how reports are shown.

use super::channel::Channel;
use super::cpu::Cpu;
use super::phase::Kind;
use super::report::{
    Connections, CpuPoint, EventReport, KindReport, Machine, Rate, Report, Settings, StageLatency,
};
use super::service::{Again, Calls};
use super::tally::{Counts, Requests};
use super::timeline::{Point, Quantiles};
use super::verdict::{Evidence, Verdict};

pub(crate) fn report(clean: bool) -> Report {
    let connections = Connections {
        opened: 200,
        dropped: dropped(clean),
    };
    let requests = Requests {
        sent: 60_000,
        answered: 60_000,
        longest_wait_ms: 410,
        ..Requests::default()
    };
    let service = Calls {
        calls: 60_012,
        side_effects: 60_000,
        again: Again {
            after_crashes: 12,
            ..Again::default()
        },
        bad_keys: 0,
    };
    let events = events(clean);
    let verdict = Verdict::on(&Evidence {
        connections: &connections,
        requests: &requests,
        service: &service,
        events: &events,
        max_wait: std::time::Duration::from_secs(5),
    });
    Report {
        settings: settings(),
        machine: Machine {
            cores: 2,
            cpu: "A <CPU> & more".into(),
            kernel: "6.18".into(),
        },
        interrupted: false,
        verdict,
        connections,
        requests,
        service,
        rate: Rate {
            asked: 3000.0,
            reached: 2999.6,
            seconds: 20.0,
            late_p99_ms: 0.4,
            held_back: 0,
        },
        latency: latency(),
        kinds: vec![KindReport {
            kind: Kind::Upgrade,
            events: 4,
            not_as_planned: 0,
            took_p50_ms: 400,
            took_max_ms: 700,
        }],
        events,
        cpu_seconds: cpu(3.0),
        limits: vec!["The machine's 2 cores were 40 % busy.".into()],
        timeline: (0..80).map(point).collect(),
        cpu_timeline: (1..20)
            .map(|s| CpuPoint {
                at_ms: s * 1000,
                cores: cpu(0.1 + s as f64 / 50.0),
            })
            .collect(),
    }
}

fn events(clean: bool) -> Vec<EventReport> {
    vec![
        event(Kind::Upgrade, 5_000, true, "promoted"),
        event(
            Kind::Kill,
            9_000,
            clean,
            if clean {
                "started again"
            } else {
                "it did not come back <&>"
            },
        ),
        event(Kind::Hang, 14_000, true, "woken"),
    ]
}

fn dropped(clean: bool) -> Counts {
    let mut dropped = Counts::default();
    if !clean {
        dropped.add("1006 broken");
    }
    dropped
}

fn settings() -> Settings {
    Settings {
        version: "0.1.0",
        profile: "release",
        seed: 7,
        devices: 200,
        channels: Channel::ALL.to_vec(),
        rate: 3000.0,
        threads: 1,
        payload_bytes: 200,
        service_delay_ms: [0.0, 50.0],
        spacing_s: 3.0,
        quiet_s: 5.0,
        hang_for_s: 1.5,
        max_wait_s: 5.0,
        watch_s: 3.0,
        canary_share: "20%".into(),
        events: 3,
    }
}

fn latency() -> Vec<StageLatency> {
    let row = |stage, kind, max_ms| StageLatency {
        stage,
        kind,
        requests: 20_000,
        latency: quantiles(max_ms),
    };
    vec![
        row("before", None, 55.0),
        row("during", Some(Kind::Upgrade), 60.0),
        row("after", Some(Kind::Upgrade), 56.0),
        row("during", Some(Kind::Kill), 410.0),
        row("after", Some(Kind::Kill), 57.0),
    ]
}

fn quantiles(max_ms: f64) -> Quantiles {
    Quantiles {
        p50_ms: Some(26.0),
        p99_ms: Some((max_ms * 0.9).max(50.0)),
        max_ms: Some(max_ms),
    }
}

fn event(kind: Kind, at_ms: u64, as_planned: bool, outcome: &str) -> EventReport {
    EventReport {
        kind,
        at_ms,
        took_ms: 400,
        settled_ms: 600,
        as_planned,
        outcome: outcome.into(),
        requests: 1800,
        latency: quantiles(410.0),
    }
}

fn cpu(seconds: f64) -> Cpu {
    Cpu {
        frontend: seconds,
        backend: seconds * 2.0,
        service: seconds / 2.0,
        generator: seconds,
        machine: seconds * 5.0,
    }
}

fn point(quarter: u64) -> Point {
    let spike = if (36..39).contains(&quarter) { 400.0 } else { 52.0 };
    Point {
        at_ms: quarter * 250,
        sent: 750,
        answered: 750,
        replies: 750,
        latency: quantiles(spike),
    }
}
