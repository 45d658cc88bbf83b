//! All figures of a run, as they are written to JSON and drawn. Pure.

use std::time::Duration;

use serde::Serialize;

use super::channel::Channel;
use super::cpu::Cpu;
use super::phase::{Kind, Stage};
use super::service::Calls;
use super::tally::{Counts, Requests, Tally};
use super::timeline::{Latencies, Point, Quantiles};
use super::verdict::Verdict;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) settings: Settings,
    pub(crate) machine: Machine,
    /// Whether it was ended before all events had been.
    pub(crate) interrupted: bool,
    pub(crate) verdict: Verdict,
    pub(crate) connections: Connections,
    pub(crate) requests: Requests,
    pub(crate) service: Calls,
    pub(crate) rate: Rate,
    pub(crate) latency: Vec<StageLatency>,
    pub(crate) kinds: Vec<KindReport>,
    pub(crate) events: Vec<EventReport>,
    /// Over the time in which requests were sent.
    pub(crate) cpu_seconds: Cpu,
    /// What stands behind the figures, in sentences.
    pub(crate) limits: Vec<String>,
    pub(crate) timeline: Vec<Point>,
    pub(crate) cpu_timeline: Vec<CpuPoint>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settings {
    pub(crate) version: &'static str,
    pub(crate) profile: &'static str,
    pub(crate) seed: u64,
    pub(crate) devices: u32,
    pub(crate) channels: Vec<Channel>,
    pub(crate) rate: f64,
    pub(crate) threads: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) service_delay_ms: [f64; 2],
    pub(crate) spacing_s: f64,
    pub(crate) quiet_s: f64,
    pub(crate) hang_for_s: f64,
    pub(crate) max_wait_s: f64,
    pub(crate) watch_s: f64,
    pub(crate) canary_share: String,
    pub(crate) events: u32,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Connections {
    pub(crate) opened: u32,
    /// By close code or cause.
    pub(crate) dropped: Counts,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Rate {
    pub(crate) asked: f64,
    /// Sent per second of the time in which requests were sent.
    pub(crate) reached: f64,
    /// That time.
    pub(crate) seconds: f64,
    /// How late the generator handed requests over, in the 99th percentile.
    pub(crate) late_p99_ms: f64,
    /// Requests that waited because their device had as many in flight as it may.
    pub(crate) held_back: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct StageLatency {
    pub(crate) stage: &'static str,
    pub(crate) kind: Option<Kind>,
    pub(crate) requests: u64,
    #[serde(flatten)]
    pub(crate) latency: Quantiles,
}

/// How long the events of a kind took: an upgrade its command, a kill or hang until a backend was ready again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct KindReport {
    pub(crate) kind: Kind,
    pub(crate) events: u32,
    pub(crate) not_as_planned: u32,
    pub(crate) took_p50_ms: u64,
    pub(crate) took_max_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct EventReport {
    pub(crate) kind: Kind,
    pub(crate) at_ms: u64,
    pub(crate) took_ms: u64,
    /// Until all that was in flight was answered.
    pub(crate) settled_ms: u64,
    pub(crate) as_planned: bool,
    pub(crate) outcome: String,
    /// Requests that met it.
    pub(crate) requests: u64,
    #[serde(flatten)]
    pub(crate) latency: Quantiles,
}

/// Cores in use over an interval that ended at `at_ms`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct CpuPoint {
    pub(crate) at_ms: u64,
    #[serde(flatten)]
    pub(crate) cores: Cpu,
}

/// Quiet time first, then during and after each kind that there was.
pub(crate) fn stages(tally: &Tally) -> Vec<StageLatency> {
    let row = |stage: &'static str, kind: Option<Kind>, latencies: &Latencies| StageLatency {
        stage,
        kind,
        requests: latencies.count(),
        latency: Quantiles::of(latencies),
    };
    let mut rows = Vec::new();
    for (stage, latencies) in tally.stages() {
        match stage {
            Stage::Warmup => {}
            Stage::Quiet => rows.push(row("before", None, latencies)),
            Stage::During(kind) => rows.push(row("during", Some(kind), latencies)),
            Stage::After(kind) => rows.push(row("after", Some(kind), latencies)),
        }
    }
    // `during` of all kinds comes before `after` of any: sort by kind, which keeps the two in order.
    rows.sort_by_key(|row| row.kind);
    rows
}

pub(crate) fn kinds(events: &[EventReport]) -> Vec<KindReport> {
    let of_kind = |kind: Kind| {
        let mut took: Vec<u64> = events
            .iter()
            .filter(|e| e.kind == kind)
            .map(|e| e.took_ms)
            .collect();
        took.sort_unstable();
        let not_as_planned = events.iter().filter(|e| e.kind == kind && !e.as_planned).count();
        Some(KindReport {
            kind,
            events: took.len() as u32,
            not_as_planned: not_as_planned as u32,
            took_p50_ms: *took.get(took.len().saturating_sub(1) / 2)?,
            took_max_ms: *took.last()?,
        })
    };
    Kind::ALL.into_iter().filter_map(of_kind).collect()
}

/// Everything that [`limits`] judges by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strain {
    pub(crate) rate: Rate,
    pub(crate) cpu: Cpu,
    pub(crate) cores: usize,
    pub(crate) threads: u32,
}

/// What stands behind the figures: the generator, the machine, or neither.
pub(crate) fn limits(strain: &Strain) -> Vec<String> {
    let Strain { rate, cpu, .. } = strain;
    let mut found = Vec::new();
    let time = Duration::from_secs_f64(rate.seconds.max(f64::EPSILON));
    let share = |seconds: f64, cores: usize| super::cpu::busy_share(seconds, time, cores);
    let of_thread = share(cpu.generator, strain.threads as usize);
    if rate.late_p99_ms > LATE_MS {
        found.push(format!(
            "The generator itself fell behind: 1 % of the requests were handed to their connections more than {:.1} ms late \
             (its {} thread(s) were {:.0} % busy), which is part of their latency.",
            rate.late_p99_ms,
            strain.threads,
            100.0 * of_thread
        ));
    }
    if rate.reached < SHORT_OF * rate.asked {
        found.push(format!(
            "The rate was not reached: {:.0} of {:.0} requests a second were sent.",
            rate.reached, rate.asked
        ));
    }
    if rate.held_back > 0 {
        found.push(format!(
            "{} requests waited because their device had as many in flight as it may; their latency counts from when they \
             were due.",
            rate.held_back
        ));
    }
    let ours = cpu.frontend + cpu.backend + cpu.service + cpu.generator;
    // The machine's figure is counted by clock ticks, which miss short turns; that of processes is exact.
    let busy = share(cpu.machine.max(ours), strain.cores);
    let others = share((cpu.machine - ours).max(0.0), strain.cores);
    let mut machine = format!(
        "The machine's {} cores were {:.0} % busy, {:.0} % with other things than this run",
        strain.cores,
        100.0 * busy.min(1.0),
        100.0 * others.min(1.0)
    );
    if busy > BUSY {
        machine.push_str(": latency is for the most part that of waiting for a core");
    }
    machine.push('.');
    found.push(machine);
    found
}

const LATE_MS: f64 = 5.0;
const SHORT_OF: f64 = 0.99;
const BUSY: f64 = 0.85;

#[cfg(test)]
mod tests {
    use super::*;

    fn strain() -> Strain {
        Strain {
            rate: Rate {
                asked: 100.0,
                reached: 99.9,
                seconds: 10.0,
                late_p99_ms: 0.3,
                held_back: 0,
            },
            cpu: Cpu {
                frontend: 1.0,
                backend: 2.0,
                service: 1.0,
                generator: 1.0,
                machine: 6.0,
            },
            cores: 2,
            threads: 1,
        }
    }

    #[test]
    fn a_run_without_strain_says_only_how_busy_it_was() {
        let text = limits(&strain());
        assert_eq!(
            text,
            ["The machine's 2 cores were 30 % busy, 5 % with other things than this run."]
        );
    }

    #[test]
    fn a_machine_is_at_least_as_busy_as_the_run_itself() {
        let mut strain = strain();
        strain.cpu.machine = 2.0;
        assert_eq!(
            limits(&strain),
            ["The machine's 2 cores were 25 % busy, 0 % with other things than this run."]
        );
    }

    #[test]
    fn each_limit_is_said() {
        let mut strain = strain();
        strain.rate.late_p99_ms = 20.0;
        strain.rate.reached = 90.0;
        strain.rate.held_back = 7;
        strain.cpu.machine = 19.0;
        let text = limits(&strain).join("\n");
        for part in [
            "fell behind",
            "90 of 100",
            "7 requests waited",
            "waiting for a core",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn events_are_summed_up_by_kind() {
        let event = |kind, took_ms, as_planned| EventReport {
            kind,
            at_ms: 0,
            took_ms,
            settled_ms: took_ms,
            as_planned,
            outcome: String::new(),
            requests: 0,
            latency: Quantiles::default(),
        };
        let events = [
            event(Kind::Kill, 300, true),
            event(Kind::Kill, 100, false),
            event(Kind::Kill, 200, true),
            event(Kind::Upgrade, 5, true),
        ];
        let kinds = kinds(&events);
        assert_eq!(kinds.len(), 2);
        assert_eq!(
            (kinds[0].kind, kinds[0].events, kinds[0].took_max_ms),
            (Kind::Upgrade, 1, 5)
        );
        let kill = &kinds[1];
        assert_eq!(
            (
                kill.events,
                kill.not_as_planned,
                kill.took_p50_ms,
                kill.took_max_ms
            ),
            (3, 1, 200, 300)
        );
    }
}
