//! Two ends on virtual time over a network that loses, doubles, delays, reorders and changes datagrams.

mod attacks;
mod bounds;
mod closing;
mod exchange;
mod give_up;
mod pair;
mod path;
mod recovery;
