//! The figures as a table.

use std::fmt::Write as _;

use super::{Point, Setting, Transport, Workload};

/// One block for each load, one line for each loss.
pub fn table(setting: &Setting, points: &[Point]) -> String {
    let mut out = format!(
        "round trip {:.0} ms, {:.1} Mbit/s, {} bytes of queue, datagrams of {} bytes; {} courses for each number\n",
        setting.rtt.as_secs_f64() * 1e3,
        setting.bits_per_second as f64 / 1e6,
        setting.queue_bytes,
        setting.datagram,
        setting.courses,
    );
    for workload in Workload::ALL {
        let title = match workload {
            Workload::Small => format!("128-byte messages, {} per second", setting.small_per_second),
            Workload::Bulk => format!("{} messages of 1 MiB, two under way", setting.bulk_messages),
        };
        let _ = writeln!(out, "\n{title}");
        write_header(&mut out);
        for &loss in &setting.losses {
            let of = |transport| {
                let mut all = points.iter();
                all.find(|p| p.workload == workload && p.loss_percent == loss && p.transport == transport)
            };
            let row: Vec<&Point> = Transport::ALL.into_iter().filter_map(of).collect();
            write_row(&mut out, loss, &row);
        }
    }
    out
}

/// How a number is written.
type Show = fn(&Point) -> String;

const COLUMNS: [(&str, Show); 4] = [
    ("goodput, Mbit/s", |p| format!("{:.3}", p.goodput / 1e6)),
    ("p50, ms", |p| milliseconds(p.p50_ms)),
    ("p99, ms", |p| milliseconds(p.p99_ms)),
    ("wire bytes per byte", |p| format!("{:.2}", p.overhead)),
];
const WIDTH: usize = 14;

fn milliseconds(ms: f64) -> String {
    if ms < 1_000.0 {
        format!("{ms:.1}")
    } else {
        format!("{ms:.0}")
    }
}

fn write_header(out: &mut String) {
    let _ = write!(out, "{:>5}", "loss");
    for (title, _) in COLUMNS {
        let _ = write!(out, " | {title:^width$}", width = WIDTH * Transport::ALL.len());
    }
    let _ = write!(out, "\n{:>5}", "");
    for _ in COLUMNS {
        out.push_str(" | ");
        for transport in Transport::ALL {
            let _ = write!(out, "{:>WIDTH$}", transport.label());
        }
    }
    out.push('\n');
}

fn write_row(out: &mut String, loss: u32, row: &[&Point]) {
    let _ = write!(out, "{loss:>4}%");
    for (_, show) in COLUMNS {
        out.push_str(" | ");
        for point in row {
            let _ = write!(out, "{:>WIDTH$}", show(point));
        }
    }
    out.push('\n');
}
