//! `holdfast upgrade backend` and what stands beside it, as an operator would use them: real processes, real signals.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests")]

mod interrupted;
mod load;
mod promoted;
mod refused;
mod rolled_back;
mod supervisor;
mod watched;
