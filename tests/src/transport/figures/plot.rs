//! The figures as a drawing.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Point, Setting, Transport, Workload};

type Trouble = Box<dyn std::error::Error>;

/// One panel for each load and number; logarithmic, since the transports differ by orders of magnitude. Gives SVG.
///
/// # Errors
/// When the plotting library cannot draw it.
pub fn draw(setting: &Setting, points: &[Point]) -> Result<String, Trouble> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (1_200, 820)).into_drawing_area();
        root.fill(&WHITE)?;
        let title = format!(
            "Goodput and delivery time against loss: round trip {:.0} ms, {:.0} Mbit/s, datagrams of {} bytes",
            setting.rtt.as_secs_f64() * 1e3,
            setting.bits_per_second as f64 / 1e6,
            setting.datagram
        );
        let root = root.titled(&title, ("sans-serif", 20))?;
        for (area, panel) in root.split_evenly((2, 2)).iter().zip(&PANELS) {
            draw_panel(area, panel, points)?;
        }
        root.present()?;
    }
    Ok(svg)
}

struct Panel {
    title: &'static str,
    unit: &'static str,
    workload: Workload,
    value: fn(&Point) -> f64,
}

const PANELS: [Panel; 4] = [
    Panel {
        title: "1 MiB messages: goodput",
        unit: "Mbit/s",
        workload: Workload::Bulk,
        value: |p| p.goodput / 1e6,
    },
    Panel {
        title: "1 MiB messages: delivery time, p99",
        unit: "ms",
        workload: Workload::Bulk,
        value: |p| p.p99_ms,
    },
    Panel {
        title: "128-byte messages: delivery time, p50",
        unit: "ms",
        workload: Workload::Small,
        value: |p| p.p50_ms,
    },
    Panel {
        title: "128-byte messages: delivery time, p99",
        unit: "ms",
        workload: Workload::Small,
        value: |p| p.p99_ms,
    },
];

fn colour(transport: Transport) -> RGBColor {
    match transport {
        Transport::Ours => RGBColor(0x00, 0x72, 0xb2),
        Transport::StopAndWait => RGBColor(0xd5, 0x5e, 0x00),
        Transport::Best => RGBColor(0x00, 0x9e, 0x73),
    }
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    panel: &Panel,
    points: &[Point],
) -> Result<(), Trouble> {
    let mine: Vec<&Point> = points.iter().filter(|p| p.workload == panel.workload).collect();
    let values = || mine.iter().map(|p| (panel.value)(p));
    let (low, high) = values().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let most_loss = mine.iter().map(|p| p.loss_percent).max().unwrap_or(0);
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..f64::from(most_loss), (low * 0.7..high * 1.4).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("loss in each direction, %")
        .y_desc(panel.unit)
        .light_line_style(WHITE)
        .draw()?;
    for transport in Transport::ALL {
        let line = mine.iter().filter(|p| p.transport == transport);
        let line: Vec<(f64, f64)> = line
            .map(|p| (f64::from(p.loss_percent), (panel.value)(p)))
            .collect();
        let colour = colour(transport);
        chart
            .draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?
            .label(transport.label())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(line.into_iter().map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}
