//! Who sits between a device and the gateway, or comes to the gateway as somebody else: what they can do, and what is seen of it.

mod downgrade;
mod flood;
mod middle;
mod replay;
mod strangers;
mod tampering;
mod victim;
