//! What goes out: connections that may have something to say, and the batch that the kernel is given.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::Udp;
use super::send::{Headers, Outgoing};

/// Datagrams in a batch: two calls' worth of single ones, or one device's whole window.
const MAX_BATCH: usize = 128;
/// Datagrams of one connection before the next has its turn.
const PER_CONNECTION: usize = 32;
/// Datagrams of one turn: about as many as are received in one. While a message goes to very many devices, what they answer is heard
/// before the socket overflows with it.
const PER_TURN: usize = 32;

/// Connections that are ready, and datagrams that were made.
#[derive(Default)]
pub(super) struct TransmitQueue {
    ready: VecDeque<u32>,
    batch: Vec<Outgoing>,
    bytes: Vec<u8>,
    headers: Headers,
    /// The socket takes nothing until it is writable.
    blocked: bool,
}

impl TransmitQueue {
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(super) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Whether there is something to send or to ask for.
    pub(super) fn has_more(&self) -> bool {
        !self.ready.is_empty() || !self.batch.is_empty()
    }
}

impl Udp {
    /// The connection may have something to say.
    pub(super) fn set_ready(&mut self, at: u32) {
        if let Some(record) = self.records.get_mut(at as usize)
            && !std::mem::replace(&mut record.ready, true)
        {
            self.queue.ready.push_back(at);
        }
    }

    /// Queues an answer that belongs to no connection. One for which there is no room is left out: who wants it asks again.
    pub(super) fn answer(&mut self, to: SocketAddr, from: Option<IpAddr>, bytes: &[u8]) {
        if self.queue.batch.len() >= MAX_BATCH {
            self.flush();
        }
        if self.queue.batch.len() >= MAX_BATCH {
            return self.metrics.dropped("no_room_to_answer");
        }
        self.queue.bytes.extend_from_slice(bytes);
        self.queue.batch.push(Outgoing {
            to,
            from,
            bytes: bytes.len() as u16,
        });
    }

    /// Makes and sends what is due, for as long as a turn may take and the socket takes it.
    pub(super) fn transmit(&mut self, now: Instant) {
        self.shared.now = now;
        let mut left = PER_TURN;
        while !self.queue.blocked {
            while left > 0
                && self.queue.batch.len() < MAX_BATCH
                && let Some(at) = self.queue.ready.pop_front()
            {
                let before = self.queue.batch.len();
                self.transmit_of(at);
                left = left.saturating_sub((self.queue.batch.len() - before).max(1));
            }
            if self.queue.batch.is_empty() {
                return;
            }
            self.flush();
        }
    }

    /// Makes the datagrams of one connection, then sets its timer; drops it when it is over.
    fn transmit_of(&mut self, at: u32) {
        let Some(record) = self.records.get_mut(at as usize) else {
            return;
        };
        record.ready = false;
        let (local, elsewhere) = (
            self.locals.get(record.local),
            self.locals.get(record.candidate_local),
        );
        let peer = record.channel.peer();
        let room = PER_CONNECTION.min(MAX_BATCH - self.queue.batch.len());
        let batch = &mut self.queue.batch;
        let out = &mut self.queue.bytes;
        let more = record.channel.transmit(&self.shared, out, room, |to, bytes| {
            batch.push(Outgoing {
                to,
                from: if peer == Some(to) { local } else { elsewhere },
                bytes: bytes as u16,
            });
        });
        let stats = record.channel.stats();
        let (lost, again) = std::mem::replace(&mut record.counted, (stats.lost, stats.retransmitted));
        self.metrics.lost.inc_by(stats.lost.wrapping_sub(lost).into());
        self.metrics
            .retransmitted
            .inc_by(stats.retransmitted.wrapping_sub(again).into());
        // What was acknowledged is held no longer.
        record.settle(&mut self.shared);
        if more {
            return self.set_ready(at);
        }
        if record.channel.is_over() && record.session.is_none() {
            return self.remove(at);
        }
        match record.channel.poll_timeout() {
            Some(due) => self.wheel.set(at, due),
            None => self.wheel.clear(at),
        }
    }

    /// Sends the batch, as far as the socket takes it.
    fn flush(&mut self) {
        let TransmitQueue {
            batch,
            bytes,
            headers,
            blocked,
            ..
        } = &mut self.queue;
        let (mut done, mut done_bytes) = (0, 0);
        while done < batch.len() && !*blocked {
            let sent = match self.socket.send(headers, &batch[done..], &bytes[done_bytes..]) {
                Ok(sent) => {
                    self.metrics.sent_batches.inc();
                    self.metrics.sent.inc_by(sent as u64);
                    sent
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.metrics.blocked.inc();
                    *blocked = true;
                    0
                }
                // No route, a firewall, a path that takes less: as good as lost on the way, and only this one.
                Err(_) => {
                    self.metrics.send_failures.inc();
                    1
                }
            };
            let left = &batch[done..done + sent];
            done_bytes += left.iter().map(|d| usize::from(d.bytes)).sum::<usize>();
            done += sent;
        }
        self.metrics.sent_bytes.inc_by(done_bytes as u64);
        batch.drain(..done);
        bytes.drain(..done_bytes);
    }
}
