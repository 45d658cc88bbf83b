//! Two ends on virtual time over a network that loses, doubles, delays, reorders and changes datagrams.

mod exchange;
mod pair;
