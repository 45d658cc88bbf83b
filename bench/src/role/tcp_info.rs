//! What the kernel has counted of a TCP connection.

use anyhow::{Context, Result};
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, libc, sockopt_impl};
use tokio::net::TcpStream;

use crate::protocol::{Flow, Traffic};

sockopt_impl!(
    /// The front of `struct tcp_info` (linux/tcp.h), which only grows at its end.
    Info,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    [u32; INFO_WORDS]
);

/// Up to `tcpi_segs_in`, in words of 32 bits.
const INFO_WORDS: usize = 36;
/// `tcpi_options` is the sixth byte.
const OPTIONS: (usize, usize) = (1, 1);
const OPTION_TIMESTAMPS: u8 = 1;
const BYTES_ACKED: usize = 30;
const BYTES_RECEIVED: usize = 32;
const SEGS_OUT: usize = 34;
const SEGS_IN: usize = 35;

/// Bytes of IPv4's header and TCP's, both without options.
const HEADERS: u64 = 20 + 20;
/// The timestamps option, padded.
const TIMESTAMPS: u64 = 12;

pub(super) fn traffic(stream: &TcpStream) -> Result<Traffic> {
    let info = getsockopt(stream, Info).context("TCP_INFO")?;
    let options = info[OPTIONS.0].to_ne_bytes()[OPTIONS.1];
    let headers = HEADERS + TIMESTAMPS * u64::from(options & OPTION_TIMESTAMPS);
    let long = |at: usize| {
        let [a, b] = [info[at], info[at + 1]].map(u32::to_ne_bytes);
        u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
    };
    let flow = |segments: usize, payload: usize| {
        let (packets, payload) = (u64::from(info[segments]), long(payload));
        Flow {
            packets,
            payload,
            wire: payload + packets * headers,
        }
    };
    Ok(Traffic {
        sent: flow(SEGS_OUT, BYTES_ACKED),
        received: flow(SEGS_IN, BYTES_RECEIVED),
        lost: 0,
        in_vain: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn bytes_and_segments_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut theirs, _) = listener.accept().await.unwrap();
        let before = traffic(&ours).unwrap();
        ours.write_all(&[0; 100]).await.unwrap();
        theirs.read_exact(&mut [0; 100]).await.unwrap();
        theirs.write_all(&[0; 30]).await.unwrap();
        ours.read_exact(&mut [0; 30]).await.unwrap();
        let used = traffic(&ours).unwrap().since(&before);
        assert_eq!((used.sent.payload, used.received.payload), (100, 30));
        // At least the one with data, at most an acknowledgement for each besides.
        assert!((1..=2).contains(&used.sent.packets) && (1..=2).contains(&used.received.packets));
        let headers = used.sent.wire - used.sent.payload;
        assert!(
            [40, 52].map(|one| one * used.sent.packets).contains(&headers),
            "{used:?}"
        );
    }
}
