//! A report as text. Pure.

#![deny(clippy::disallowed_methods)]

use std::fmt::Write;

use super::report::{KindReport, Report, StageLatency};
use super::tally::Counts;
use super::timeline::Quantiles;

pub(crate) fn table(report: &Report) -> String {
    let mut text = String::new();
    head(&mut text, report);
    counts(&mut text, report);
    latency(&mut text, report);
    cpu(&mut text, report);
    text.push_str("\nlimits\n");
    for line in &report.limits {
        put(&mut text, format_args!("  {line}"));
    }
    verdict(&mut text, report);
    text
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

fn head(text: &mut String, report: &Report) {
    let (settings, machine) = (&report.settings, &report.machine);
    let channels: Vec<_> = settings.channels.iter().map(|channel| channel.label()).collect();
    put(
        text,
        format_args!(
            "{} devices over {}, {} requests/s asked, {} reached in {:.0} s, {} B each, service {} to {} ms, seed {}",
            grouped(settings.devices.into()),
            channels.join(", "),
            decimals(report.rate.asked),
            decimals(report.rate.reached),
            report.rate.seconds,
            settings.payload_bytes,
            settings.service_delay_ms[0],
            settings.service_delay_ms[1],
            settings.seed
        ),
    );
    put(
        text,
        format_args!(
            "holdfast {} ({}) on {} cores, {}, Linux {}",
            settings.version, settings.profile, machine.cores, machine.cpu, machine.kernel
        ),
    );
}

fn counts(text: &mut String, report: &Report) {
    let (requests, service) = (&report.requests, &report.service);
    text.push('\n');
    let mut row = |name: &str, count: u64, more: &str| {
        let line = format!("{name:<44}{:>12}  {more}", grouped(count));
        put(text, format_args!("{}", line.trim_end()));
    };
    row("connections opened", report.connections.opened.into(), "");
    row(
        "connections dropped",
        report.connections.dropped.total(),
        &split(&report.connections.dropped),
    );
    row("requests sent", requests.sent, "");
    row("  answered", requests.answered, "");
    row(
        "  answered with an error",
        requests.error_replies.total(),
        &split(&requests.error_replies),
    );
    row("  answered with a wrong body", requests.wrong_body, "");
    row("  answered with another device's reply", requests.crossed, "");
    row(
        &format!("  answered after more than {} s", report.settings.max_wait_s),
        requests.overlong,
        &format!("(the longest: {} ms)", grouped(requests.longest_wait_ms)),
    );
    row("  lost", requests.lost.total(), &split(&requests.lost));
    row("  answered twice", requests.doubled, "");
    row("  answered out of order", requests.misordered, "");
    row("  never sent, but answered", requests.unasked, "");
    row("  answered under another's name", requests.misnamed, "");
    row("  answered unreadably", requests.unreadable, "");
    row("pushes that nobody sent", requests.pushed, "");
    row("calls at the service", service.calls, "");
    row("  doubled by graceful events", service.again.in_graceful, "");
    row("  doubled without an event", service.again.in_quiet, "");
    row(
        "  doubled without being in flight at a crash",
        service.again.not_in_flight,
        "",
    );
    row(
        "  repeated after crashes",
        service.again.after_crashes,
        "(allowed, under the same Idempotency-Key)",
    );
    row("  under a wrong key", service.bad_keys, "");
    row("side effects (calls with a new key)", service.side_effects, "");
}

fn latency(text: &mut String, report: &Report) {
    text.push('\n');
    put(
        text,
        format_args!(
            "{:<20}{:>7}{:>12}{:>10}{:>10}{:>10}   took p50 / max",
            "latency, ms", "events", "requests", "p50", "p99", "max"
        ),
    );
    for row in &report.latency {
        let kind = row
            .kind
            .and_then(|kind| report.kinds.iter().find(|found| found.kind == kind));
        put(text, format_args!("{}", latency_row(row, kind).trim_end()));
    }
}

fn latency_row(row: &StageLatency, kind: Option<&KindReport>) -> String {
    let Quantiles {
        p50_ms,
        p99_ms,
        max_ms,
    } = row.latency;
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.1}"));
    let name = match row.kind {
        Some(kind) => format!("{} {}", row.stage, kind.label()),
        None => row.stage.to_owned(),
    };
    let (events, took) = match kind.filter(|_| row.stage == "during") {
        Some(kind) => (
            kind.events.to_string(),
            format!("{} / {} ms", grouped(kind.took_p50_ms), grouped(kind.took_max_ms)),
        ),
        None => (String::new(), String::new()),
    };
    format!(
        "{name:<20}{events:>7}{:>12}{:>10}{:>10}{:>10}   {took}",
        grouped(row.requests),
        ms(p50_ms),
        ms(p99_ms),
        ms(max_ms)
    )
}

fn cpu(text: &mut String, report: &Report) {
    let cpu = &report.cpu_seconds;
    let rows = [
        ("frontend", cpu.frontend),
        ("backends", cpu.backend),
        ("service", cpu.service),
        ("this generator", cpu.generator),
    ];
    text.push('\n');
    put(
        text,
        format_args!("{:<20}{:>19}{:>20}", "CPU", "seconds", "µs per request"),
    );
    for (name, seconds) in rows {
        let each = seconds * 1e6 / report.requests.sent.max(1) as f64;
        put(text, format_args!("{name:<20}{seconds:>19.1}{each:>20.0}"));
    }
}

fn verdict(text: &mut String, report: &Report) {
    text.push('\n');
    let done = report.events.len();
    let asked = report.settings.events;
    if report.interrupted {
        put(text, format_args!("interrupted after {done} of {asked} events"));
    }
    for event in report.events.iter().filter(|event| !event.as_planned) {
        let at = event.at_ms as f64 / 1000.0;
        put(
            text,
            format_args!("{} at {at:.1} s: {}", event.kind.label(), event.outcome),
        );
    }
    if report.verdict.clean {
        put(text, format_args!("NOTHING WAS NOTICED in {done} events."));
    } else {
        put(
            text,
            format_args!("NOTICED: {}.", report.verdict.noticed.join("; ")),
        );
    }
}

fn split(counts: &Counts) -> String {
    let each: Vec<_> = counts
        .iter()
        .map(|(name, count)| format!("{name}: {count}"))
        .collect();
    each.join(", ")
}

/// With a comma between thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn decimals(number: f64) -> String {
    if number >= 100.0 {
        grouped(number.round() as u64)
    } else {
        format!("{number:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::report;

    fn squeezed(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn numbers_are_grouped() {
        let found = [0, 999, 1_000, 12_345, 1_234_567].map(grouped);
        assert_eq!(found, ["0", "999", "1,000", "12,345", "1,234,567"]);
    }

    #[test]
    fn the_table_says_all_that_was_counted() {
        let text = table(&report(true));
        for part in [
            "200 devices over ws, wss, udp",
            "requests sent 60,000",
            "answered after more than 5 s 0 (the longest: 410 ms)",
            "pushes that nobody sent 0",
            "doubled without being in flight at a crash 0",
            "before 20,000 26.0 50.0 55.0",
            "during upgrade 4 20,000",
            "after kill",
            "took p50 / max",
            "60.0 400 / 700 ms",
            "frontend 3.0 50",
            "NOTHING WAS NOTICED in 3 events.",
        ] {
            assert!(squeezed(&text).contains(part), "{part}\n{text}");
        }
        assert!(
            text.lines()
                .all(|line| line == line.trim_end() && line.len() <= 140),
            "{text}"
        );
    }

    #[test]
    fn what_was_noticed_is_the_last_word() {
        let text = table(&report(false));
        assert!(
            squeezed(&text).contains("connections dropped 1 1006 broken: 1"),
            "{text}"
        );
        assert!(text.contains("kill at 9.0 s: it did not come back"), "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("NOTICED: 1 connections dropped; "), "{last}");
    }
}
