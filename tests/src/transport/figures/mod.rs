//! How fast the transport is.
