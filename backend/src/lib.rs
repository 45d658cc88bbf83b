//! The backend: everything that Holdfast decides. It keeps nothing that it cannot lose and may be killed at any instant.
//!
//! `auth` says who a device is, `route` where its requests go, `service` calls there, `api` is what services and operators
//! call, `control` what whoever runs it asks. None of them knows the link to the frontends: they meet it in traits and plain values.

pub mod api;
pub mod auth;
pub mod config;
pub mod control;
pub mod core;
pub mod dispatch;
pub mod link;
pub mod metrics;
pub mod push;
mod rfc3339;
pub mod route;
pub mod runtime;
pub mod sequence;
pub mod service;
