//! placeholder
use super::report::Report;
use anyhow::Result;
pub(crate) fn page(report: &Report) -> Result<String> {
    Ok(serde_json::to_string(report)?)
}
