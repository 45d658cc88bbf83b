//! Putting a new backend in the old one's place: what is decided ([`machine`], [`verdict`]), what is told ([`event`],
//! [`report`]), and the command that asks `holdfast up` for it ([`ask`]). `up::upgrade` does it.

pub(crate) mod ask;
pub(crate) mod event;
pub(crate) mod figures;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub(crate) mod losses;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub(crate) mod machine;
pub(crate) mod plan;
mod progress;
pub(crate) mod reason;
pub(crate) mod report;
#[cfg_attr(not(test), deny(clippy::disallowed_methods))]
pub(crate) mod verdict;
