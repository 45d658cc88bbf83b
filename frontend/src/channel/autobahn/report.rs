//! What the suite found: `index.json` of its reports.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;

/// By agent, then by case.
pub(super) struct Report(BTreeMap<String, BTreeMap<String, Outcome>>);

#[derive(Deserialize)]
struct Outcome {
    behavior: String,
    #[serde(rename = "behaviorClose")]
    close: String,
}

impl Report {
    pub(super) fn read(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).expect("the suite wrote its reports");
        Self(serde_json::from_str(&text).expect("the reports' index is as it was"))
    }

    pub(super) fn cases(&self, agent: &str) -> usize {
        self.0.get(agent).map_or(0, BTreeMap::len)
    }

    /// Whatever failed, in its behaviour or in its close.
    pub(super) fn faults(&self) -> Vec<String> {
        self.list(|outcome| !outcome.is_good())
    }

    fn list(&self, wanted: impl Fn(&Outcome) -> bool) -> Vec<String> {
        let mut list = Vec::new();
        for (agent, cases) in &self.0 {
            for (case, outcome) in cases.iter().filter(|(_, outcome)| wanted(outcome)) {
                let Outcome { behavior, close } = outcome;
                list.push(format!("{agent} {case}: {behavior}, close {close}"));
            }
        }
        list
    }
}

impl Outcome {
    fn is_good(&self) -> bool {
        let good = |word: &str| matches!(word, "OK" | "NON-STRICT" | "INFORMATIONAL");
        good(&self.behavior) && good(&self.close)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (agent, cases) in &self.0 {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for outcome in cases.values() {
                *counts.entry(&outcome.behavior).or_default() += 1;
            }
            write!(f, "autobahn over {agent}: {} cases", cases.len())?;
            for (behavior, count) in counts {
                write!(f, ", {count} {behavior}")?;
            }
            writeln!(f)?;
        }
        for line in self.list(|outcome| outcome.behavior != "OK" || !outcome.is_good()) {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}
