//! What the end-to-end tests stand on: the real binaries under control ([`gateway`]), a service to answer them
//! ([`service`]), raw devices ([`device`]), backends of the test's own ([`peer`]), and a judge of what the devices saw ([`history`]).

pub mod address;
pub mod device;
pub mod dial;
pub mod gateway;
pub mod history;
pub mod http;
pub mod keys;
pub mod metrics;
pub mod peer;
pub mod service;
pub mod sim;
pub mod traffic;
pub mod wire;
