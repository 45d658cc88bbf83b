//! The sockets that shards share a port with: bound, steered and read.
//!
//! All are of one SO_REUSEPORT group, in the order of the shards. DATA names its shard in its second byte, and a classic BPF program
//! gives it to that one's socket; everything else goes where the kernel's hash of the addresses sends it.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use nix::libc::{sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;

use super::send::{Headers, Outgoing};

/// What one buffer takes: all that a datagram may have, or as many of one sender as the kernel puts together (UDP_GRO).
const BUFFER_BYTES: usize = 64 * 1024;

/// What the kernel is to hold of datagrams, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct SocketBuffers {
    pub receive: usize,
    pub send: usize,
}

/// One socket for each shard, in their order; the port that 0 stands for is the same for all.
///
/// # Errors
/// What the system says; also when another process has the port.
pub fn bind_group(address: SocketAddr, shards: usize, buffers: SocketBuffers) -> io::Result<Vec<UdpSocket>> {
    // Without sharing it: a stranger's socket in the group would get a part of what is ours.
    let address = UdpSocket::bind(address)?.local_addr()?;
    let sockets: Vec<UdpSocket> = (0..shards)
        .map(|_| bind(address, buffers))
        .collect::<io::Result<_>>()?;
    if let (Some(first), true) = (sockets.first(), shards > 1) {
        steer(first)?;
    }
    Ok(sockets)
}

fn bind(address: SocketAddr, buffers: SocketBuffers) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(buffers.receive)?;
    socket.set_send_buffer_size(buffers.send)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// What the kernel really holds, which its own limits may have made less; it says twice what one may use (socket(7)).
pub(in super::super) fn granted(socket: &UdpSocket) -> io::Result<SocketBuffers> {
    let socket = SockRef::from(socket);
    Ok(SocketBuffers {
        receive: socket.recv_buffer_size()? / 2,
        send: socket.send_buffer_size()? / 2,
    })
}

/// The first byte of DATA.
const DATA: u32 = 0x40;
// Of <linux/bpf_common.h>: load a byte at a fixed place, jump if equal, return a constant, return what was loaded.
const LOAD_BYTE: u16 = 0x30;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const RETURN_LOADED: u16 = 0x16;
/// Names no socket, so the hash decides.
const NOBODY: u32 = u32::MAX;

/// The program sees the UDP payload. It gives the number of a socket in its group; one that there is not means: by the hash.
fn steer(socket: &UdpSocket) -> io::Result<()> {
    let step = |code, k, (jt, jf)| sock_filter { code, jt, jf, k };
    let mut program = [
        step(LOAD_BYTE, 0, (0, 0)),
        step(JUMP_EQUAL, DATA, (1, 0)),
        step(RETURN, NOBODY, (0, 0)),
        step(LOAD_BYTE, 1, (0, 0)),
        step(RETURN_LOADED, 0, (0, 0)),
    ];
    let program = sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    setsockopt(&socket, sockopt::AttachReusePortCbpf, &program).map_err(io::Error::from)
}

/// A shard's socket within its runtime.
pub(super) struct DatagramSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    /// Datagrams that may go out as one message.
    segments: std::cell::Cell<usize>,
}

impl DatagramSocket {
    /// # Errors
    /// What the system says. Needs a tokio runtime.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self {
            segments: state.max_gso_segments().into(),
            state,
            io: tokio::net::UdpSocket::from_std(socket)?,
        })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    pub(super) async fn readable(&self) {
        // An error is of the runtime's end.
        let _ = self.io.readable().await;
    }

    pub(super) async fn writable(&self) {
        let _ = self.io.writable().await;
    }

    /// Sends from the front of the batch; how many went out.
    ///
    /// # Errors
    /// `WouldBlock`, after which [`writable`](Self::writable) waits; else what the kernel says of the first datagram.
    pub(super) fn send(&self, headers: &mut Headers, batch: &[Outgoing], bytes: &[u8]) -> io::Result<usize> {
        let mut send = |segments| {
            self.io.try_io(Interest::WRITABLE, || {
                headers.send(self.io.as_fd(), batch, bytes, segments)
            })
        };
        let segments = self.segments.get();
        match send(segments) {
            // A network card that cannot make checksums cannot cut messages up either; some kernels and drivers say so with EINVAL,
            // which single datagrams may get, too.
            Err(error) if segments > 1 && is_about_segments(&error) => {
                let result = send(1);
                if result.is_ok() || error.raw_os_error() == Some(nix::libc::EIO) {
                    self.segments.set(1);
                }
                result
            }
            result => result,
        }
    }

    /// Receives what there is, at most what the buffers take; how many were filled. Fewer than all: there was no more.
    ///
    /// # Errors
    /// `WouldBlock`, after which [`readable`](Self::readable) waits; else what the kernel says.
    pub(super) fn receive(&self, buffers: &mut Buffers) -> io::Result<usize> {
        let mut filled = 0;
        let result = self.io.try_io(Interest::READABLE, || {
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            for (slice, buffer) in slices
                .iter_mut()
                .zip(buffers.bytes.chunks_exact_mut(BUFFER_BYTES))
            {
                *slice = IoSliceMut::new(buffer);
            }
            filled = self
                .state
                .recv((&self.io).into(), &mut slices, &mut buffers.metas)?;
            // The runtime need not ask the kernel once more to learn that there is nothing.
            if filled < BATCH_SIZE {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match result {
            Err(error) if filled == 0 => Err(error),
            _ => Ok(filled),
        }
    }
}

fn is_about_segments(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::EIO | nix::libc::EINVAL))
}

/// Where datagrams are received to: 2 MiB of address space, of which the kernel gives what was once used.
pub(super) struct Buffers {
    bytes: Box<[u8]>,
    metas: [RecvMeta; BATCH_SIZE],
}

/// Datagrams of one sender that came in a row: all of `stride` bytes but the last, which may be shorter.
#[derive(Debug)]
pub(super) struct Arrived<'a> {
    pub(super) from: SocketAddr,
    /// Our address that it came to.
    pub(super) to: Option<IpAddr>,
    pub(super) bytes: &'a mut [u8],
    pub(super) stride: usize,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BUFFER_BYTES * BATCH_SIZE].into(),
            metas: [RecvMeta::default(); BATCH_SIZE],
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.metas.len()
    }

    /// What the first `filled` buffers hold.
    pub(super) fn arrived(&mut self, filled: usize) -> impl Iterator<Item = Arrived<'_>> {
        let buffers = self.bytes.chunks_exact_mut(BUFFER_BYTES);
        let filled = buffers.zip(&self.metas).take(filled);
        filled.map(|(buffer, meta)| Arrived {
            from: meta.addr,
            to: meta.dst_ip,
            bytes: &mut buffer[..meta.len.min(BUFFER_BYTES)],
            stride: meta.stride.max(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    const SMALL: SocketBuffers = SocketBuffers {
        receive: 256 * 1024,
        send: 256 * 1024,
    };

    fn data_for(shard: u8) -> Vec<u8> {
        [&[0x40, shard][..], &[0; 30]].concat()
    }

    /// Which of the sockets a datagram came to.
    fn arrives(sockets: &[UdpSocket], text: &[u8]) -> usize {
        let until = Instant::now() + Duration::from_secs(5);
        let mut buffer = [0; 2048];
        loop {
            for (at, socket) in sockets.iter().enumerate() {
                if let Ok(n) = socket.recv(&mut buffer) {
                    assert_eq!(&buffer[..n], text);
                    return at;
                }
            }
            assert!(Instant::now() < until, "nothing came");
            std::thread::yield_now();
        }
    }

    #[test]
    fn data_goes_to_the_shard_that_it_names_and_all_else_by_the_hash() {
        let sockets = bind_group(([127, 0, 0, 1], 0).into(), 4, SMALL).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let (mut by_hash, mut strangers) = ([0; 4], [0; 4]);
        for _ in 0..64 {
            let device = UdpSocket::bind("127.0.0.1:0").unwrap();
            for shard in [3, 0, 2, 1] {
                let datagram = data_for(shard);
                device.send_to(&datagram, address).unwrap();
                assert_eq!(arrives(&sockets, &datagram), usize::from(shard));
            }
            device.send_to(&[1; 300], address).unwrap();
            let first = arrives(&sockets, &[1; 300]);
            device.send_to(&[1; 300], address).unwrap();
            assert_eq!(
                arrives(&sockets, &[1; 300]),
                first,
                "the same device, the same shard"
            );
            by_hash[first] += 1;
            device.send_to(&data_for(77), address).unwrap();
            strangers[arrives(&sockets, &data_for(77))] += 1;
            // Too short to name a shard: anywhere, but not lost for the program's fault.
            device.send_to(&[0x40], address).unwrap();
            arrives(&sockets, &[0x40]);
        }
        assert!(by_hash.iter().all(|count| *count > 0), "{by_hash:?}");
        assert!(strangers.iter().all(|count| *count > 0), "{strangers:?}");
    }

    #[test]
    fn a_port_that_another_has_is_an_error() {
        let first = bind_group(([127, 0, 0, 1], 0).into(), 1, SMALL).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(
            bind_group(address, 2, SMALL).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        assert!(granted(&first[0]).unwrap().receive >= 64 * 1024);
    }

    #[tokio::test]
    async fn a_batch_is_received_with_where_it_came_from_and_to() {
        let sockets = bind_group(([0, 0, 0, 0], 0).into(), 1, SMALL).unwrap();
        let port = sockets[0].local_addr().unwrap().port();
        let socket = DatagramSocket::new(sockets.into_iter().next().unwrap()).unwrap();
        let device = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut buffers = Buffers::new();
        socket.writable().await;
        assert_eq!(
            socket.receive(&mut buffers).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        for n in 0..BATCH_SIZE + 1 {
            device
                .send_to(&vec![7; n + 1], SocketAddr::from(([127, 0, 0, 9], port)))
                .unwrap();
        }
        let mut lengths = Vec::new();
        while lengths.len() < BATCH_SIZE + 1 {
            socket.readable().await;
            let Ok(filled) = socket.receive(&mut buffers) else {
                continue;
            };
            for arrived in buffers.arrived(filled) {
                assert_eq!(arrived.from, device.local_addr().unwrap());
                assert_eq!(arrived.to, Some([127, 0, 0, 9].into()));
                lengths.extend(arrived.bytes.chunks(arrived.stride).map(<[u8]>::len));
            }
        }
        assert_eq!(lengths, (1..=BATCH_SIZE + 1).collect::<Vec<_>>());
    }
}
