//! What a run found: one table per scenario, as text or JSON.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::machine::Machine;
use crate::stats::Sample;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// Where the gateway's binaries are.
    pub(crate) binaries: String,
    pub(crate) tables: Vec<Table>,
}

/// One scenario.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) rows: Vec<Row>,
    /// Conditions, and where the figures come from.
    pub(crate) notes: Vec<String>,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) figure: String,
    pub(crate) unit: &'static str,
    pub(crate) value: Sample,
    pub(crate) baseline: Option<Baseline>,
    pub(crate) limit: Option<Limit>,
}

/// The same thing done barely, in the same run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Baseline {
    pub(crate) name: &'static str,
    pub(crate) value: Sample,
    /// The figure over this, round by round.
    pub(crate) ratio: Sample,
}

/// What the design allows and what it wishes for.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Limit {
    pub(crate) of: Of,
    pub(crate) budget: f64,
    pub(crate) goal: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Of {
    Value,
    Ratio,
}

impl Row {
    pub(crate) fn new(figure: impl Into<String>, unit: &'static str, rounds: Vec<f64>) -> Self {
        Self {
            figure: figure.into(),
            unit,
            value: Sample::new(rounds),
            baseline: None,
            limit: None,
        }
    }

    pub(crate) fn against(mut self, name: &'static str, rounds: Vec<f64>) -> Self {
        let value = Sample::new(rounds);
        let ratio = self.value.ratio(&value);
        self.baseline = Some(Baseline { name, value, ratio });
        self
    }

    pub(crate) fn limit(mut self, of: Of, budget: f64, goal: f64) -> Self {
        self.limit = Some(Limit { of, budget, goal });
        self
    }

    fn cells(&self) -> [String; 7] {
        let ratio = self.baseline.as_ref().map(|b| &b.ratio);
        let baseline = |b: &Baseline| format!("{} {}", Spread(&b.value), b.name);
        let bound = |f: fn(&Limit) -> f64| {
            self.limit.as_ref().map_or_else(String::new, |l| match l.of {
                Of::Value => number(f(l)),
                Of::Ratio => format!("{}×", number(f(l))),
            })
        };
        [
            format!("{}, {}", self.figure, self.unit),
            Spread(&self.value).to_string(),
            self.baseline.as_ref().map_or_else(String::new, baseline),
            ratio.map_or_else(String::new, |r| format!("{:.2}×", r.median)),
            bound(|l| l.budget),
            bound(|l| l.goal),
            self.verdict(),
        ]
    }

    fn verdict(&self) -> String {
        let Some(limit) = self.limit else {
            return String::new();
        };
        let actual = match (limit.of, &self.baseline) {
            (Of::Ratio, Some(baseline)) => baseline.ratio.median,
            _ => self.value.median,
        };
        let percent = |bound: f64| format!("{:.0} %", (actual / bound - 1.0).abs() * 100.0);
        if actual <= limit.goal {
            format!("goal met, {} below", percent(limit.goal))
        } else if actual <= limit.budget {
            format!(
                "budget met, {} below; goal missed by {}",
                percent(limit.budget),
                percent(limit.goal)
            )
        } else {
            format!("BUDGET MISSED by {}", percent(limit.budget))
        }
    }
}

/// Median, and in parentheses the smallest and the largest round.
struct Spread<'a>(&'a Sample);

impl Display for Spread<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Sample { median, min, max, .. } = self.0;
        if self.0.rounds.len() == 1 {
            return f.write_str(&number(*median));
        }
        write!(f, "{} ({}–{})", number(*median), number(*min), number(*max))
    }
}

/// Three or four figures that mean something.
fn number(value: f64) -> String {
    let text = match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    // 15 and 1.5 rather than 15.0 and 1.50.
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

const HEADINGS: [&str; 7] = [
    "figure",
    "median (min–max)",
    "baseline, same run",
    "ratio",
    "budget",
    "goal",
    "",
];

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut lines = vec![HEADINGS.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let widths: Vec<usize> = (0..HEADINGS.len())
            .map(|column| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0))
            .collect();
        writeln!(f, "\n{}", self.title)?;
        for (number, cells) in lines.iter().enumerate() {
            let mut line = String::from(" ");
            for (cell, width) in cells.iter().zip(&widths) {
                line += &format!(" {cell:<width$} ");
            }
            writeln!(f, "{}", line.trim_end())?;
            if number == 0 {
                let rules: Vec<String> = widths.iter().map(|w| "─".repeat(*w)).collect();
                writeln!(f, "  {}", rules.join("  "))?;
            }
        }
        for note in &self.notes {
            writeln!(f, "  · {note}")?;
        }
        Ok(())
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let m = &self.machine;
        writeln!(
            f,
            "\n{} cores, {}, {:.0} GiB, Linux {}; load average before the run {}; baselines built as {}; gateway: {}",
            m.cores, m.cpu, m.memory_gib, m.kernel, m.load_before, m.profile, self.binaries
        )?;
        if m.profile != "release" {
            writeln!(f, "NOT A RELEASE BUILD: figures and ratios mean nothing.")?;
        }
        for table in &self.tables {
            write!(f, "{table}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.123, 1.5, 12.34, 10.0, 5120.4, 100.0].map(number);
        assert_eq!(shown, ["0.12", "1.5", "12.3", "10", "5120", "100"]);
    }

    #[test]
    fn verdicts_name_the_distance() {
        let row = |rounds| Row::new("f", "µs", rounds).limit(Of::Value, 200.0, 100.0);
        assert_eq!(row(vec![80.0]).verdict(), "goal met, 20 % below");
        assert_eq!(
            row(vec![150.0]).verdict(),
            "budget met, 25 % below; goal missed by 50 %"
        );
        assert_eq!(row(vec![300.0]).verdict(), "BUDGET MISSED by 50 %");
        let ratio = Row::new("f", "µs", vec![30.0])
            .against("bare", vec![10.0])
            .limit(Of::Ratio, 2.0, 1.4);
        assert_eq!(ratio.verdict(), "BUDGET MISSED by 50 %");
    }

    #[test]
    fn a_table_names_all_columns() {
        let rows = vec![Row::new("cpu", "µs", vec![3.0, 1.0, 2.0]).against("bare", vec![1.0; 3])];
        let table = Table {
            title: "cpu".to_owned(),
            rows,
            notes: vec!["a note".to_owned()],
        };
        let text = table.to_string();
        assert!(
            text.contains("2 (1–3)") && text.contains("1 (1–1) bare") && text.contains("2.00×"),
            "{text}"
        );
        assert!(text.contains("· a note"), "{text}");
    }
}
