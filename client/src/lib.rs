//! The device's side of Holdfast: one `wss` connection that stays, comes back by itself, and matches replies to requests.
//!
//! ```no_run
//! # async fn example(token: String, ca: &[u8], payload: &serde_json::value::RawValue) -> Result<(), holdfast_client::Error> {
//! use holdfast_client::{Device, Tls};
//! let device = Device::builder("wss://localhost:7400", token)
//!     .tls(Tls::from_ca_pem(ca)?)
//!     .on_push(|push| println!("{}.{}", push.namespace, push.name))
//!     .connect()
//!     .await?;
//! let reply = device.request("Demo", "Echo", payload).await?;
//! println!("{}", String::from_utf8_lossy(&reply.payload));
//! device.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! How data flows: a [`Device`] is a handle; one task per device (`driver`) dials (`dial`), runs a `connection` until it ends,
//! and waits as [`Backoff`] says before the next. What can be decided without a socket or a clock is in `in_flight`,
//! `heartbeat`, `backoff` and `message`, which are pure.
//!
//! What it deliberately is not: there is no `ws` or `udp` channel, no resume ticket, no acknowledgement of kept pushes, and
//! nothing is stored on disk. A request whose outcome is unknown is reported as that ([`Error::Disconnected`]), and sent again
//! only if it carries a retry key.

mod backoff;
mod builder;
mod connection;
mod device;
mod dial;
mod driver;
mod error;
mod heartbeat;
mod in_flight;
mod message;
mod outbox;
mod state;
mod tls;

pub use backoff::Backoff;
pub use builder::{Builder, TokenError};
pub use device::{Device, PendingReply};
pub use error::{Error, Refusal, Violation};
pub use message::{Body, Push, Reply, Request};
pub use state::{Counters, State, Welcome};
pub use tls::Tls;
