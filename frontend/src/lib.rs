//! The frontend: it terminates device channels, keeps sessions, and forwards frames to backends over the link.
//!
//! `session`, `channel` and `link` know nothing of each other; `driver` joins them.

use std::sync::LazyLock;

pub mod admin;
pub mod channel;
pub mod config;
pub mod driver;
pub mod epoch;
pub mod exchange;
pub mod link;
pub mod session;
mod tally;

/// What was built.
pub static BUILD: LazyLock<String> =
    LazyLock::new(|| holdfast_proto::build_name(env!("CARGO_PKG_VERSION"), option_env!("HOLDFAST_BUILD")));
