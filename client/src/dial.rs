//! From a URL to a channel.

mod udp;
mod web_socket;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_proto::secure::HandshakeError;
use tokio::net::lookup_host;

use crate::Error;
use crate::builder::{Builder, Credentials, Scheme, Target};
use crate::channel::Channel;

/// Makes one connection, or says why not; bounded by the builder's `connect_timeout`.
pub(crate) async fn dial(settings: &Builder, target: &Target) -> Result<Box<Channel>, Error> {
    let attempt = Box::pin(attempt(settings, target));
    match tokio::time::timeout(settings.connect_timeout, attempt).await {
        Ok(result) => result.map(Box::new),
        Err(_) => Err(Error::Connect(format!(
            "no connection to {} in time",
            target.host
        ))),
    }
}

async fn attempt(settings: &Builder, target: &Target) -> Result<Channel, Error> {
    match (&settings.credentials, &target.scheme) {
        (Credentials::Token { provider, .. }, _) => {
            let token = provider().map_err(|e| Error::Token(e.to_string()))?;
            let channel = web_socket::dial_plain(settings, target, token).await?;
            Ok(Channel::WebSocket(channel))
        }
        (Credentials::Key(identity), Scheme::Udp) => {
            let channel = udp::dial(settings, target, identity).await?;
            Ok(Channel::Udp(channel))
        }
        (Credentials::Key(identity), Scheme::Ws | Scheme::Wss(_)) => {
            let channel = web_socket::dial_records(settings, target, identity).await?;
            Ok(Channel::WebSocket(channel))
        }
    }
}

/// The addresses of the target's name, to be tried one after the other, and how long each may take: one that answers nothing must
/// leave time for those behind it.
async fn candidates(settings: &Builder, target: &Target) -> io::Result<Vec<(SocketAddr, Duration)>> {
    let fits = |address: &SocketAddr| {
        let local = settings.local_address;
        local.is_none_or(|local| local.is_ipv4() == address.is_ipv4())
    };
    let found = lookup_host((target.host.as_str(), target.port)).await?;
    let addresses: Vec<SocketAddr> = found.filter(fits).take(MAX_ADDRESSES).collect();
    let left = (1..=addresses.len() as u32).rev();
    let shares = left.map(|left| settings.connect_timeout / left);
    Ok(addresses.into_iter().zip(shares).collect())
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}

fn silent(address: SocketAddr) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer"))
}

/// Milliseconds since 1970, unless the device's clock is not to be relied on.
fn clock(settings: &Builder) -> Option<u64> {
    (!settings.clockless).then(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    })
}

fn bad_key(error: HandshakeError) -> Error {
    Error::Config(format!("the device's key: {error}"))
}

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
