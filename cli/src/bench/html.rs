//! A report as one HTML file that needs nothing else: tables written here, curves drawn by a script of its own from the
//! report's JSON inside the page. Pure.

#![deny(clippy::disallowed_methods)]

use std::fmt::Write;

use anyhow::{Context, Result};

use super::report::{EventReport, Report, StageLatency};
use super::table::grouped;

pub(crate) fn page(report: &Report) -> Result<String> {
    // What stands in a script element must not look like its end, whatever strings hold.
    let data = serde_json::to_string(report)
        .context("the report")?
        .replace('<', "\\u003c");
    let parts = [
        ("@HEAD@", head(report)),
        ("@VERDICT@", verdict(report)),
        ("@CARDS@", cards(report)),
        ("@LATENCY@", latency(report)),
        ("@EVENTS@", events(report)),
        ("@LIMITS@", limits(report)),
        ("@DATA@", data),
        ("@SCRIPT@", SCRIPT.to_owned()),
    ];
    let mut page = String::with_capacity(PAGE.len() + SCRIPT.len() + parts[6].1.len() + 64 * 1024);
    let mut rest = PAGE;
    for (mark, part) in &parts {
        let (before, after) = rest.split_once(mark).context("a mark is missing in the page")?;
        page.push_str(before);
        page.push_str(part);
        rest = after;
    }
    page.push_str(rest);
    Ok(page)
}

fn head(report: &Report) -> String {
    let (settings, machine) = (&report.settings, &report.machine);
    let channels: Vec<_> = settings.channels.iter().map(|channel| channel.label()).collect();
    format!(
        "<p class=\"soft\">{} devices over {}, {} requests a second asked, {} reached, for {:.0} s; {} bytes each; the service takes \
         {} to {} ms; seed {}.</p>\n<p class=\"soft\">holdfast {} ({}) on {} cores, {}, Linux {}.</p>",
        grouped(settings.devices.into()),
        channels.join(", "),
        report.rate.asked,
        grouped(report.rate.reached.round() as u64),
        report.rate.seconds,
        settings.payload_bytes,
        settings.service_delay_ms[0],
        settings.service_delay_ms[1],
        settings.seed,
        escape(settings.version),
        escape(settings.profile),
        machine.cores,
        escape(&machine.cpu),
        escape(&machine.kernel)
    )
}

fn verdict(report: &Report) -> String {
    let done = report.events.len();
    let mut text = if report.verdict.clean {
        format!("<div class=\"verdict clean\">Nothing was noticed in {done} events.")
    } else {
        let items: String = report
            .verdict
            .noticed
            .iter()
            .map(|what| format!("<li>{}</li>", escape(what)))
            .collect();
        format!("<div class=\"verdict broken\">Noticed:<ul>{items}</ul>")
    };
    if report.interrupted {
        let asked = report.settings.events;
        // Writing to a String cannot fail.
        let _ = write!(text, "<p>Interrupted after {done} of {asked} events.</p>");
    }
    text.push_str("</div>");
    text
}

fn cards(report: &Report) -> String {
    let (requests, service) = (&report.requests, &report.service);
    let replies =
        requests.wrong_body + requests.crossed + requests.unasked + requests.misnamed + requests.unreadable;
    let wrong = replies + requests.pushed;
    let overlong = format!(
        "answered after more than {} s (the longest: {} ms)",
        report.settings.max_wait_s,
        grouped(requests.longest_wait_ms)
    );
    let faults = [
        (report.connections.dropped.total(), "connections dropped"),
        (requests.lost.total(), "requests lost"),
        (requests.doubled, "answered twice"),
        (requests.misordered, "out of order"),
        (wrong, "wrong or another’s reply, or a push"),
        (requests.overlong, overlong.as_str()),
        (requests.error_replies.total(), "error replies"),
        (
            service.again.in_graceful + service.again.in_quiet + service.again.not_in_flight,
            "calls doubled without a crash",
        ),
    ];
    let facts = [
        (requests.sent, "requests sent"),
        (requests.answered, "answered"),
        (service.side_effects, "side effects at the service"),
        (
            service.again.after_crashes,
            "calls repeated after crashes (allowed)",
        ),
    ];
    let mut text = String::from("<div class=\"cards\">");
    let mut card = |class: &str, count: u64, name: &str| {
        let count = grouped(count);
        let _ = write!(
            text,
            "<div class=\"card{class}\"><b>{count}</b><span>{name}</span></div>"
        );
    };
    for (count, name) in faults {
        card(if count > 0 { " broken" } else { "" }, count, name);
    }
    for (count, name) in facts {
        card("", count, name);
    }
    text.push_str("</div>");
    text
}

fn latency(report: &Report) -> String {
    let mut text = String::from(
        "<div class=\"scroll\"><table><thead><tr><th></th><th>events</th><th>requests</th><th>p50 ms</th><th>p99 ms</th>\
         <th>max ms</th><th>took p50</th><th>took max</th></tr></thead><tbody>",
    );
    for row in &report.latency {
        text.push_str(&latency_row(report, row));
    }
    text.push_str("</tbody></table></div>");
    text
}

fn latency_row(report: &Report, row: &StageLatency) -> String {
    let kind = row
        .kind
        .filter(|_| row.stage == "during")
        .and_then(|kind| report.kinds.iter().find(|found| found.kind == kind));
    let (events, took_p50, took_max) = match kind {
        Some(kind) => (
            grouped(kind.events.into()),
            format!("{} ms", grouped(kind.took_p50_ms)),
            format!("{} ms", grouped(kind.took_max_ms)),
        ),
        None => Default::default(),
    };
    let name = match row.kind {
        Some(kind) => format!("{}{} {}", dot(kind.label()), row.stage, kind.label()),
        None => row.stage.to_owned(),
    };
    format!(
        "<tr><td>{name}</td><td>{events}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{took_p50}</td><td>{took_max}</td></tr>",
        grouped(row.requests),
        ms(row.latency.p50_ms),
        ms(row.latency.p99_ms),
        ms(row.latency.max_ms)
    )
}

fn events(report: &Report) -> String {
    let mut text = String::from(
        "<div class=\"scroll tall\"><table><thead><tr><th>event</th><th>at</th><th>took</th><th>settled</th><th>requests</th>\
         <th>p50 ms</th><th>p99 ms</th><th>max ms</th><th class=\"text\">outcome</th></tr></thead><tbody>",
    );
    for event in &report.events {
        text.push_str(&event_row(event));
    }
    text.push_str("</tbody></table></div>");
    text
}

fn event_row(event: &EventReport) -> String {
    let kind = event.kind.label();
    let class = if event.as_planned { "text" } else { "text broken" };
    format!(
        "<tr><td>{}{kind}</td><td>{:.1} s</td><td>{} ms</td><td>{} ms</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
         <td class=\"{class}\">{}</td></tr>",
        dot(kind),
        event.at_ms as f64 / 1000.0,
        grouped(event.took_ms),
        grouped(event.settled_ms),
        grouped(event.requests),
        ms(event.latency.p50_ms),
        ms(event.latency.p99_ms),
        ms(event.latency.max_ms),
        escape(&event.outcome)
    )
}

fn limits(report: &Report) -> String {
    let cpu = &report.cpu_seconds;
    let mut text: String = report
        .limits
        .iter()
        .map(|line| format!("<p>{}</p>", escape(line)))
        .collect();
    let _ = write!(
        text,
        "<p>CPU seconds while requests were sent: frontend {:.1}, backends {:.1}, service {:.1}, this generator {:.1}.</p>",
        cpu.frontend, cpu.backend, cpu.service, cpu.generator
    );
    text
}

fn dot(kind: &str) -> String {
    format!("<i class=\"dot\" style=\"background:var(--{kind})\"></i>")
}

fn ms(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |ms| format!("{ms:.1}"))
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::report;

    /// The elements of a page, checked to be closed in the order in which they were opened.
    fn elements(page: &str) -> Vec<String> {
        let (mut open, mut all, mut rest) = (Vec::<String>::new(), Vec::new(), page);
        while let Some(start) = rest.find('<') {
            let tag_end = rest[start..].find('>').expect("a tag ends") + start;
            let tag = &rest[start + 1..tag_end];
            rest = &rest[tag_end + 1..];
            let name: String = tag
                .trim_start_matches('/')
                .chars()
                .take_while(|c| c.is_alphanumeric())
                .collect();
            if tag.starts_with('!') || tag.ends_with('/') {
                continue;
            }
            if tag.starts_with('/') {
                assert_eq!(
                    open.pop().as_deref(),
                    Some(name.as_str()),
                    "closed at …{rest:.60}"
                );
                continue;
            }
            if name == "script" || name == "style" {
                let end = rest.find(&format!("</{name}>")).expect("it ends");
                rest = &rest[end..];
            }
            all.push(name.clone());
            open.push(name);
        }
        assert!(open.is_empty(), "left open: {open:?}");
        all
    }

    fn data(page: &str) -> serde_json::Value {
        let (_, rest) = page.split_once("id=\"data\">").unwrap();
        serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
    }

    #[test]
    fn the_page_is_well_formed_and_holds_the_figures() {
        for clean in [true, false] {
            let report = report(clean);
            let page = page(&report).unwrap();
            let elements = elements(&page);
            let rows = elements.iter().filter(|name| *name == "tr").count();
            assert_eq!(rows, 2 + report.latency.len() + report.events.len());
            let written = serde_json::to_string(&report).unwrap();
            assert!(data(&page) == serde_json::from_str::<serde_json::Value>(&written).unwrap());
            assert!(page.contains("A &lt;CPU&gt; &amp; more"));
            assert_eq!(page.contains("Nothing was noticed in 3 events."), clean);
        }
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        let page = page(&report(true)).unwrap();
        let page = page.replace("http://www.w3.org/2000/svg", "");
        for foreign in ["http:", "https:", "src=", "href=", "@import", "url(", "fetch("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn marks_in_strings_are_left_alone() {
        let mut report = report(false);
        report.events[1].outcome = "@DATA@ </script>".into();
        let page = page(&report).unwrap();
        elements(&page);
        assert_eq!(data(&page)["events"][1]["outcome"], "@DATA@ </script>");
    }

    /// For the eye: HOLDFAST_PAGE=FILE cargo test -p holdfast-cli written
    #[test]
    fn a_page_can_be_written() {
        if let Some(path) = std::env::var_os("HOLDFAST_PAGE") {
            std::fs::write(path, page(&report(true)).unwrap()).unwrap();
        }
    }
}
