//! Devices that are connected.
