use super::*;

const CID: ConnectionId = ConnectionId(0x0102_0304_0506_0708);

fn key() -> TrafficKey {
    TrafficKey::from_bytes(&[5; 32]).unwrap()
}

fn seal(sealer: &mut Sealer, plain: &[u8]) -> (u64, Vec<u8>) {
    let mut out = Vec::new();
    sealer.begin(CID, &mut out);
    out.extend_from_slice(plain);
    (sealer.seal(&mut Expanded::default(), &mut out, 0), out)
}

/// An opener with what its connection keeps for it.
struct Receiver {
    opener: Opener,
    previous: Option<TrafficKey>,
}

impl Receiver {
    fn at(next: u64) -> Self {
        Self {
            opener: Opener::at(key(), next),
            previous: None,
        }
    }

    fn open(&mut self, datagram: &[u8]) -> Result<(u64, Vec<u8>), OpenError> {
        let mut datagram = datagram.to_vec();
        let (number, plain) =
            self.opener
                .open(&mut Expanded::default(), self.previous.as_ref(), &mut datagram)?;
        let plain = plain.to_vec();
        if let Some(previous) = self.opener.accept(number) {
            self.previous = Some(previous);
        } else if !self.opener.needs_previous() {
            self.previous = None;
        }
        Ok((number, plain))
    }
}

#[test]
fn a_datagram_is_header_ciphertext_and_tag() {
    let mut sealer = Sealer::at(key(), 0x1_0000_0007);
    let (number, datagram) = seal(&mut sealer, b"plain");
    assert_eq!((number, datagram.len()), (0x1_0000_0007, OVERHEAD_BYTES + 5));
    assert_eq!(datagram[..13], [0x40, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 7]);
    assert_eq!(
        Receiver::at(0x1_0000_0007).open(&datagram),
        Ok((number, b"plain".to_vec()))
    );
}

#[test]
fn whatever_bit_changes_nothing_opens_and_nothing_changes() {
    let mut sealer = Sealer::new(key());
    let (_, datagram) = seal(&mut sealer, b"plain");
    let mut receiver = Receiver::at(0);
    for bit in 0..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(receiver.open(&changed), Err(OpenError::Forged), "bit {bit}");
    }
    for length in 0..datagram.len() {
        assert_eq!(receiver.open(&datagram[..length]), Err(OpenError::Forged));
    }
    assert_eq!(receiver.opener.largest(), None);
    assert!(receiver.open(&datagram).is_ok());
    assert_eq!(receiver.open(&datagram), Err(OpenError::Duplicate));
}

#[test]
fn the_upper_half_is_the_nearest() {
    const W: u64 = 1 << 32;
    for (low, expected, number) in [
        (0, 0, 0),
        (5, 0, 5),
        (u32::MAX, 0, u64::from(u32::MAX)),
        (0, W - 1, W),
        (u32::MAX, W, W - 1),
        (u32::MAX, W + 5, W - 1),
        (3, 7 * W - 2, 7 * W + 3),
        (1 << 31, 7 * W, 7 * W + (1 << 31)),
        ((1 << 31) + 1, 7 * W, 6 * W + (1 << 31) + 1),
        (7, u64::MAX, u64::MAX - u64::from(u32::MAX) + 7),
    ] {
        assert_eq!(recover(low, expected), number, "{low} near {expected}");
    }
}

#[test]
fn keys_move_on_and_late_packets_of_the_one_before_are_opened() {
    const EDGE: u64 = 1 << REKEY_SHIFT;
    let mut sealer = Sealer::at(key(), EDGE - 4);
    let mut receiver = Receiver::at(EDGE - 4);
    let packets: Vec<_> = (0..400).map(|_| seal(&mut sealer, b"x")).collect();
    // Two of the old key, two of the new, then the rest of the old.
    for index in [0, 2, 4, 6, 1, 3] {
        assert_eq!(
            receiver.open(&packets[index].1),
            Ok((packets[index].0, b"x".to_vec())),
            "{index}"
        );
    }
    assert!(receiver.previous.is_some());
    // As soon as the window has left them the old key goes.
    assert!(receiver.open(&packets[4 + 254].1).is_ok());
    assert!(receiver.previous.is_some());
    assert!(receiver.open(&packets[4 + 255].1).is_ok());
    assert!(receiver.previous.is_none());
    assert_eq!(receiver.open(&packets[1].1), Err(OpenError::Duplicate));
    // The keys differ: what the old one sealed under a new number is nothing.
    let (_, wrong) = seal(&mut Sealer::at(key(), EDGE + 300), b"x");
    assert_eq!(receiver.open(&wrong), Err(OpenError::Forged));
    assert!(receiver.open(&packets[304].1).is_ok());
}

#[test]
fn a_run_takes_the_key_of_each_packet_s_generation() {
    const EDGE: u64 = 1 << REKEY_SHIFT;
    let mut sealer = Sealer::at(key(), EDGE - 2);
    let (mut out, mut expanded) = (Vec::new(), Expanded::default());
    let mut ends = vec![0];
    for _ in 0..4 {
        let start = out.len();
        sealer.begin(CID, &mut out);
        sealer.seal(&mut expanded, &mut out, start);
        ends.push(out.len());
    }
    let opener = Opener::at(key(), EDGE - 2);
    let mut expanded = Expanded::default();
    for (index, bounds) in ends.windows(2).enumerate() {
        let opened = opener.open(&mut expanded, None, &mut out[bounds[0]..bounds[1]]);
        assert_eq!(opened.map(|(number, _)| number), Ok(EDGE - 2 + index as u64));
    }
}

#[test]
fn two_generations_ahead_is_nothing() {
    let (_, ahead) = seal(&mut Sealer::at(key(), 2 << REKEY_SHIFT), b"");
    assert_eq!(Receiver::at(5).open(&ahead), Err(OpenError::Forged));
    // So is one behind when its key is gone, were it within the window.
    let receiver = Receiver::at(1 << REKEY_SHIFT);
    assert!(receiver.opener.cipher(0, None).is_some());
    let receiver = Receiver::at((1 << REKEY_SHIFT) + 1);
    assert!(receiver.opener.cipher(0, None).is_none() && receiver.opener.cipher(3, None).is_none());
}
