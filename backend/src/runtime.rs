//! The threads of a backend: one for the link and the core, some for calls to services, one for the HTTP API.
//!
//! A panic anywhere ends the process: half a backend would keep its link alive and answer nothing. A supervisor starts it
//! again, and meanwhile the frontends give its work to another one.

mod gateway;
mod hub;
mod start;
mod supervisor;
mod worker;

pub use gateway::{ApiCommand, HubGateway, HubMember, ShareCommand, Snapshot};
pub use hub::{Hub, HubInputs, HubOutputs};
pub use start::{StartError, check, run};
pub use worker::{Job, JobResult, Workers};
