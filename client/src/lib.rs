//! The device's side of Holdfast: one connection that stays, comes back by itself, and matches replies to requests.
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
//! A device with a bearer token goes over `wss`, one with a key ([`Device::builder_with_key`]) over `ws` or `udp`, where the two ends
//! prove to each other who they are and encrypt by themselves. It never changes from one to the other, whatever anybody answers.
//!
//! How data flows: a [`Device`] is a handle; one task per device (`driver`) dials (`dial`), runs a `connection` over a
//! `channel` until it ends, and waits as [`Backoff`] says before the next. Only `dial` and `channel` know what the channels differ in.
//! What can be decided without a socket or a clock is in `in_flight`,
//! `heartbeat`, `backoff` and `message`, which are pure, as is the transport below the `udp` channel ([`holdfast_proto::udp`]).
//!
//! What it deliberately is not: there is no resume ticket, no acknowledgement of kept pushes, and
//! nothing is stored on disk. A request whose outcome is unknown is reported as that ([`Error::Disconnected`]), and sent again
//! only if it carries a retry key.

mod backoff;
mod builder;
mod channel;
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
pub use error::{Disturbance, Error, Refusal, Violation};
pub use holdfast_proto::DeviceId;
pub use holdfast_proto::secure::{DeviceKey, Identity, MasterKey};
pub use message::{Body, Push, Reply, Request};
pub use state::{Counters, State, Welcome};
pub use tls::Tls;
