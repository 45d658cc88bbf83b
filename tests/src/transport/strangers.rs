//! Those who see datagrams, repeat them and make some up: from elsewhere, later, to the wrong end.

use std::time::Duration;

use holdfast_proto::udp::ConnectionId;
use holdfast_proto::udp::datagram::encode_reset;

use super::device::SERVER;
use super::shared::Packet;
use super::world::{Event, World};

impl World {
    /// The same datagram, from another address; it may be quicker than the device's.
    pub(crate) fn copy_from_stranger(&mut self, packet: &Packet) {
        let mut copy = packet.clone();
        copy.from = self.s.stranger();
        let at = self.s.now + self.s.rng.micros(0..=60_000);
        self.queue.push(at, Event::Arrive(copy));
    }

    /// Datagrams of before, once more.
    pub(crate) fn replay(&mut self) {
        let device = self.s.rng.below(self.devices.len());
        let recorded = self.devices[device].recorded.len();
        if recorded == 0 {
            return;
        }
        for _ in 0..self.s.rng.range(1..=40) {
            let mut packet = self.devices[device].recorded[self.s.rng.below(recorded)].clone();
            match self.s.rng.below(4) {
                0 => packet.from = self.s.stranger(),
                // Back to where it came from.
                1 => (packet.from, packet.to) = (packet.to, packet.from),
                2 if packet.to != SERVER.into() => packet.to = self.devices[device].address,
                _ => {}
            }
            self.arrive_soon(packet);
        }
        self.s.saw("fault", "replay");
    }

    /// Datagrams that no end has made.
    pub(crate) fn junk(&mut self) {
        for _ in 0..self.s.rng.range(1..=30) {
            let device = self.s.rng.below(self.devices.len());
            let stranger = self.s.stranger();
            let address = self.devices[device].address;
            let ends = match self.s.rng.below(3) {
                0 => (stranger, SERVER.into()),
                1 => (address, SERVER.into()),
                _ => (SERVER.into(), address),
            };
            let cid = self.devices[device].endpoint().map(|end| end.cid());
            let bytes = self.make_up(cid);
            let packet = self.s.packet(None, ends, bytes, None);
            self.arrive_soon(packet);
        }
        self.s.saw("fault", "junk");
    }

    fn make_up(&mut self, cid: Option<ConnectionId>) -> Vec<u8> {
        let rng = &mut self.s.rng;
        let mut bytes = Vec::new();
        bytes.resize_with(rng.range(0..=1_472) as usize, || rng.next() as u8);
        let cid = cid.unwrap_or(ConnectionId(rng.next()));
        if rng.chance(300) {
            let token = [rng.next() as u8; 16];
            bytes.clear();
            encode_reset(cid, &token, &mut bytes);
        } else if rng.chance(800) && bytes.len() > 13 {
            bytes[0] = rng.pick(&[1, 2, 3, 4, 5, 0x40, 0x40, 0x40]);
            bytes[1..9].copy_from_slice(&cid.0.to_be_bytes());
            let near = rng.range(0..=2_000) as u32;
            bytes[9..13].copy_from_slice(&near.to_be_bytes());
        }
        bytes
    }

    fn arrive_soon(&mut self, packet: Packet) {
        let at = self.s.now + self.s.rng.around(Duration::from_millis(20));
        self.queue.push(at, Event::Arrive(packet));
    }
}
