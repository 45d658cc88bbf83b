//! Packets that were sent and ask for an acknowledgement, until it is known what became of them.

use std::collections::VecDeque;
use std::time::Instant;

use super::outbox::Part;

/// What a packet carries beside pieces that must arrive. A set of bits.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Control(u8);

impl Control {
    pub(super) const CREDIT: Self = Self(1);
    pub(super) const RESET_TOKEN: Self = Self(2);
    pub(super) const CLOSE: Self = Self(4);
    pub(super) const PING: Self = Self(8);

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(super) fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    InFlight,
    Acknowledged,
    Lost,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct SentPacket {
    pub(super) number: u64,
    pub(super) at: Instant,
    /// The count of all pieces sent before its own.
    first_part: u32,
    /// Of the datagram.
    pub(super) size: u16,
    parts: u8,
    pub(super) control: Control,
    pub(super) fate: Fate,
}

/// A part in a packet. A copy also is in another packet, or was, which answers for it when it is lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct SentPart {
    pub(super) part: Part,
    pub(super) is_copy: bool,
}

#[derive(Debug, Default)]
pub(super) struct SentLog {
    /// By number. It begins with one in flight; others whose fate is known follow only until that one's is.
    packets: VecDeque<SentPacket>,
    /// The parts of all of `packets`.
    parts: VecDeque<SentPart>,
    /// The count of all parts that went before `parts`.
    gone_parts: u32,
    /// The count of parts of packets that are complete: those behind are of the packet in the making.
    noted_parts: u32,
    in_flight: u32,
    packets_in_flight: u32,
}

impl SentLog {
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Bytes of datagrams in flight.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Adds a part to the packet in the making.
    pub(super) fn push_part(&mut self, part: Part, is_copy: bool) {
        self.parts.push_back(SentPart { part, is_copy });
    }

    /// How many parts the packet in the making has.
    pub(super) fn open_parts(&self) -> usize {
        self.parts.len() - self.noted_parts.wrapping_sub(self.gone_parts) as usize
    }

    /// Ends the packet in the making.
    pub(super) fn push(&mut self, number: u64, at: Instant, size: u16, control: Control) {
        let parts = self.open_parts() as u8;
        self.packets.push_back(SentPacket {
            number,
            at,
            first_part: self.noted_parts,
            size,
            parts,
            control,
            fate: Fate::InFlight,
        });
        self.noted_parts = self.noted_parts.wrapping_add(parts.into());
        self.in_flight += u32::from(size);
        self.packets_in_flight += 1;
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The index of the first packet with at least this number.
    pub(super) fn index_of(&self, number: u64) -> usize {
        match self.packets.front() {
            Some(first) if first.number >= number => 0,
            _ => self.packets.partition_point(|packet| packet.number < number),
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&SentPacket> {
        self.packets.get(index)
    }

    /// The index of the oldest packet in flight.
    pub(super) fn oldest(&self) -> Option<usize> {
        self.packets
            .iter()
            .position(|packet| packet.fate == Fate::InFlight)
    }

    /// Says what became of a packet.
    pub(super) fn settle(&mut self, index: usize, fate: Fate) {
        let packet = &mut self.packets[index];
        if packet.fate == Fate::InFlight {
            self.in_flight -= u32::from(packet.size);
            self.packets_in_flight -= 1;
        }
        packet.fate = fate;
    }

    /// The parts of a packet, by their place.
    pub(super) fn parts(&self, index: usize) -> std::ops::Range<usize> {
        let Some(packet) = self.packets.get(index) else {
            return 0..0;
        };
        let start = packet.first_part.wrapping_sub(self.gone_parts) as usize;
        start..start + usize::from(packet.parts)
    }

    pub(super) fn part(&self, place: usize) -> SentPart {
        self.parts[place]
    }

    /// Forgets packets whose fate is known, up to the oldest one in flight.
    pub(super) fn trim(&mut self) {
        if self.packets_in_flight == 0 {
            self.packets.clear();
            self.parts.clear();
            self.gone_parts = self.noted_parts;
            return;
        }
        while let Some(packet) = self.packets.pop_front_if(|packet| packet.fate != Fate::InFlight) {
            self.parts.drain(..usize::from(packet.parts));
            self.gone_parts = self.gone_parts.wrapping_add(packet.parts.into());
        }
    }
}
