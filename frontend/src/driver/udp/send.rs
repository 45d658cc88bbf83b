//! Many datagrams in one system call: to many devices (sendmmsg), and of those to one in a row as one (UDP_SEGMENT).
//!
//! `quinn-udp`, which receives for us, sends to one destination per call; `nix` sends to many, but with one sender's address for all, and
//! does not tell how many went out without reading memory that nobody wrote. So these calls are made here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use socket2::SockAddr;

/// Messages in one call. Each may be several datagrams for one device.
pub(super) const MAX_MESSAGES: usize = 64;
/// Datagrams of one message (the kernel's UDP_MAX_SEGMENTS is 64 in all that support it).
const MAX_SEGMENTS: usize = 64;
/// Bytes of one message: what a UDP payload of IPv4 may have.
const MAX_MESSAGE_BYTES: usize = 65_507;
/// Room for the control messages of one message: the sender's address (40 bytes at most) and the segment's size (24).
const CONTROL_WORDS: usize = 8;

/// One datagram of a batch, whose bytes follow those of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) to: SocketAddr,
    /// The address to send from; `None`: as the kernel thinks.
    pub(super) from: Option<IpAddr>,
    pub(super) bytes: u16,
}

/// The arrays that the kernel reads, kept to save their making.
#[derive(Default)]
pub(super) struct Headers {
    addresses: Vec<SockAddr>,
    controls: Vec<[u64; CONTROL_WORDS]>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

/// One message: the datagrams `first..first + count`, in `bytes` bytes from `begin` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    first: usize,
    count: usize,
    begin: usize,
    bytes: usize,
}

impl Headers {
    /// Sends datagrams from the front of the batch in one call; tells how many went out, at least one. `segments`: how many may be one
    /// message.
    ///
    /// # Errors
    /// What the kernel says of the first one.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        batch: &[Outgoing],
        bytes: &[u8],
        segments: usize,
    ) -> io::Result<usize> {
        let mut messages = [Message::NONE; MAX_MESSAGES];
        let count = group(batch, segments.min(MAX_SEGMENTS), &mut messages);
        let messages = &messages[..count];
        self.fill(batch, messages, bytes);
        // SAFETY: the `count` headers point to addresses, vectors and controls of ours, and to `bytes`; none of these is moved or
        // freed before the call returns, and the kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
        Ok(messages[..sent].iter().map(|m| m.count).sum())
    }

    fn fill(&mut self, batch: &[Outgoing], messages: &[Message], bytes: &[u8]) {
        self.addresses.clear();
        self.controls.clear();
        self.vectors.clear();
        self.headers.clear();
        let mut control_bytes = [0; MAX_MESSAGES];
        for (message, control_bytes) in messages.iter().zip(&mut control_bytes) {
            let first = &batch[message.first];
            self.addresses.push(first.to.into());
            let segment = (message.count > 1).then_some(first.bytes);
            let mut control = [0; CONTROL_WORDS];
            *control_bytes = write_controls(&mut control, first.from, segment);
            self.controls.push(control);
            let part = &bytes[message.begin..message.begin + message.bytes];
            self.vectors.push(libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
        }
        // Only now do these stay where they are.
        let parts = self.addresses.iter().zip(&mut self.controls);
        for (((address, control), vector), control_bytes) in parts.zip(&mut self.vectors).zip(control_bytes) {
            // SAFETY: all zeros is a valid `mmsghdr`: null pointers and lengths of 0.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = address.len();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            if control_bytes > 0 {
                header.msg_hdr.msg_control = control.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = control_bytes as _;
            }
            self.headers.push(header);
        }
    }
}

impl Message {
    const NONE: Self = Self {
        first: 0,
        count: 0,
        begin: 0,
        bytes: 0,
    };
}

/// Puts together what goes to one device in a row: datagrams of one length, of which the last may be shorter. Tells how many messages
/// there are.
fn group(batch: &[Outgoing], segments: usize, messages: &mut [Message; MAX_MESSAGES]) -> usize {
    let (mut used, mut begin) = (0_usize, 0);
    let mut closed = true;
    for (at, datagram) in batch.iter().enumerate() {
        let bytes = usize::from(datagram.bytes);
        let last = used.checked_sub(1).map(|last| &mut messages[last]);
        match last.filter(|m| !closed && joins(&batch[m.first], m, datagram, segments)) {
            Some(message) => {
                closed = datagram.bytes < batch[message.first].bytes;
                message.count += 1;
                message.bytes += bytes;
            }
            None if used == MAX_MESSAGES => return used,
            None => {
                messages[used] = Message {
                    first: at,
                    count: 1,
                    begin,
                    bytes,
                };
                closed = bytes == 0;
                used += 1;
            }
        }
        begin += bytes;
    }
    used
}

fn joins(first: &Outgoing, message: &Message, next: &Outgoing, segments: usize) -> bool {
    (first.to, first.from) == (next.to, next.from)
        && next.bytes <= first.bytes
        && message.count < segments
        && message.bytes + usize::from(next.bytes) <= MAX_MESSAGE_BYTES
}

/// Writes the control messages (cmsg(3)) and tells how many bytes they are.
fn write_controls(control: &mut [u64; CONTROL_WORDS], from: Option<IpAddr>, segment: Option<u16>) -> usize {
    let mut writer = Controls { control, used: 0 };
    match from {
        Some(IpAddr::V4(from)) => {
            let mut data = [0; size_of::<libc::in_pktinfo>()];
            // `ipi_ifindex` stays 0, `ipi_spec_dst` is the sender's address.
            data[4..8].copy_from_slice(&from.octets());
            writer.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &data);
        }
        Some(IpAddr::V6(from)) => {
            let mut data = [0; size_of::<libc::in6_pktinfo>()];
            data[..16].copy_from_slice(&from.octets());
            writer.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
        }
        None => {}
    }
    if let Some(segment) = segment {
        writer.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    writer.used
}

struct Controls<'a> {
    control: &'a mut [u64; CONTROL_WORDS],
    used: usize,
}

impl Controls<'_> {
    /// A `cmsghdr` (length, level, type), then the data, padded to a multiple of a word.
    fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        const HEADER_BYTES: usize = size_of::<libc::cmsghdr>();
        let mut bytes = [0; CONTROL_WORDS * 8];
        bytes[..8].copy_from_slice(&(HEADER_BYTES + data.len()).to_ne_bytes());
        bytes[8..12].copy_from_slice(&level.to_ne_bytes());
        bytes[12..16].copy_from_slice(&kind.to_ne_bytes());
        bytes[HEADER_BYTES..HEADER_BYTES + data.len()].copy_from_slice(data);
        let words = (HEADER_BYTES + data.len()).div_ceil(8);
        for (at, word) in bytes.chunks_exact(8).take(words).enumerate() {
            let word: [u8; 8] = word.try_into().unwrap_or_default();
            self.control[self.used / 8 + at] = u64::from_ne_bytes(word);
        }
        self.used += words * 8;
    }
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
