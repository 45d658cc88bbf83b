//! Devices and gateway in networks of their own, joined by a router that behaves as routers do. Where namespaces are not permitted these
//! tests fail and say so.

mod addresses;
mod common;
mod loss;
mod outage;
mod throughput;
