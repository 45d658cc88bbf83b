//! The gateway's promises while its processes are killed, hung, stopped and joined by others.

mod absence;
mod crash;
mod datagrams;
mod hang;
mod shutdown;
mod topology;
