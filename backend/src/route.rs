//! Where requests go: the table of routes and the rules for a service that fails.
//!
//! The table and the breaker are pure. [`watch`] is the edge: it reads the file again when it changed, and publishes tables.

pub mod breaker;
mod parse;
mod table;
pub mod watch;

pub use parse::{
    DEFAULT_CONCURRENCY, DEFAULT_MAX_REPLY_BYTES, DEFAULT_QUEUE, DEFAULT_TIMEOUT, MAX_ROUTES, RouteError,
};
pub use table::{Order, Route, RouteKey, RouteTable};
