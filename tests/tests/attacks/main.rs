//! Who sits between a device and the gateway, or comes to the gateway as somebody else: what they can do, and what is seen of it.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests")]

mod downgrade;
mod flood;
mod held_back;
mod middle;
mod moments;
mod replay;
mod stranger;
mod strangers;
mod tampering;
mod udp_cookies;
mod udp_flood;
mod udp_forged;
mod udp_liars;
mod udp_replay;
mod udp_strangers;
mod upgrades;
mod victim;
mod ws_flood;
