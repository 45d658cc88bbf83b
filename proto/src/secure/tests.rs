//! The handshake between its two sides, and records between theirs.

use proptest::prelude::*;

use super::*;

fn identity() -> Identity {
    Identity {
        key_id: "k1".into(),
        product: "speaker".into(),
        class: "home".into(),
        device: "d-1".parse().unwrap(),
        key_version: 7,
    }
}

fn device_key() -> DeviceKey {
    MasterKey::from_bytes(&[1; KEY_BYTES])
        .unwrap()
        .device_key(&identity())
}

fn start(now_ms: Option<u64>) -> (Initiator, Credential) {
    let (initiator, text) = Initiator::new(SecureChannel::Ws, &identity(), &device_key(), now_ms).unwrap();
    (initiator, Credential::parse(text.as_bytes()).unwrap())
}

fn verify(credential: &Credential) -> Result<Verified, HandshakeError> {
    Verified::verify(SecureChannel::Ws, credential, &device_key())
}

mod handshake {
    use super::*;

    #[test]
    fn both_sides_come_to_the_same_keys() {
        for now_ms in [None, Some(0), Some(1_750_000_000_123), Some(u64::MAX)] {
            let (initiator, credential) = start(now_ms);
            assert_eq!(credential.identity, identity());
            let verified = verify(&credential).unwrap();
            assert_eq!(verified.timestamp_ms(), now_ms);
            let (message2, server) = verified.answer().unwrap();
            assert_eq!(message2.len(), MESSAGE_2_BYTES);
            let challenge = render_challenge(&message2);
            let device = initiator.finish(&parse_challenge(&challenge).unwrap()).unwrap();
            assert_eq!(device, server);
            assert_ne!(server.to_server, server.to_device);
        }
    }

    #[test]
    fn each_handshake_has_its_own_keys_also_for_the_same_credential() {
        let (_, credential) = start(None);
        let keys = || verify(&credential).unwrap().answer().unwrap().1;
        assert_ne!(keys(), keys());
        assert_ne!(start(Some(1)).1.message1(), start(Some(1)).1.message1());
    }

    #[test]
    fn whoever_differs_in_key_channel_or_identity_is_refused() {
        let (_, credential) = start(None);
        let other = MasterKey::from_bytes(&[2; KEY_BYTES])
            .unwrap()
            .device_key(&identity());
        let refused = Some(HandshakeError::NotAuthentic);
        assert_eq!(
            Verified::verify(SecureChannel::Ws, &credential, &other).err(),
            refused
        );
        for channel in [SecureChannel::Udp, SecureChannel::Link] {
            assert_eq!(
                Verified::verify(channel, &credential, &device_key()).err(),
                refused
            );
        }
        // Another device's name on the same message; with one master key its device key differs too, so give it this one's.
        let claimed = Identity {
            device: "d-2".parse().unwrap(),
            ..identity()
        };
        let text = Credential::render(&claimed.encode(), credential.message1());
        let claimed = Credential::parse(text.as_bytes()).unwrap();
        assert_eq!(verify(&claimed).err(), refused);
    }

    #[test]
    fn a_changed_bit_in_either_message_is_refused() {
        for now_ms in [None, Some(5)] {
            let (_, credential) = start(now_ms);
            for bit in 0..credential.message1().len() * 8 {
                let mut message = credential.message1().to_vec();
                message[bit / 8] ^= 1 << (bit % 8);
                let text = Credential::render(credential.identity_bytes(), &message);
                let changed = Credential::parse(text.as_bytes()).unwrap();
                assert_eq!(
                    verify(&changed).err(),
                    Some(HandshakeError::NotAuthentic),
                    "{bit}"
                );
            }
        }
        // Of message 2 the bits of an ephemeral key that the curve ignores are hashed all the same.
        for bit in (0..MESSAGE_2_BYTES * 8).step_by(5).chain([255]) {
            let (initiator, credential) = start(None);
            let (mut message, _) = verify(&credential).unwrap().answer().unwrap();
            message[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                initiator.finish(&message),
                Err(HandshakeError::NotAuthentic),
                "{bit}"
            );
        }
    }

    #[test]
    fn a_datagram_s_parameters_are_bound_into_its_handshake() {
        let parameters = [5; PARAMETER_BYTES];
        let (initiator, bytes) =
            Initiator::for_datagrams(&parameters, &identity(), &device_key(), Some(9)).unwrap();
        let verify = |channel, parameters: &[u8; PARAMETER_BYTES]| {
            let credential = Credential::parse_datagram(parameters, &bytes).unwrap();
            Verified::verify(channel, &credential, &device_key())
        };
        let verified = verify(SecureChannel::Udp, &parameters).unwrap();
        assert_eq!(verified.timestamp_ms(), Some(9));
        let (message2, keys) = verified.answer().unwrap();
        assert_eq!(initiator.finish(&message2), Ok(keys));
        for at in 0..PARAMETER_BYTES {
            let mut other = parameters;
            other[at] ^= 1;
            let refused = verify(SecureChannel::Udp, &other).err();
            assert_eq!(refused, Some(HandshakeError::NotAuthentic), "{at}");
        }
        let elsewhere = verify(SecureChannel::Ws, &parameters).err();
        assert_eq!(elsewhere, Some(HandshakeError::NotAuthentic));
        // What was made for no datagram is none, whatever parameters stand beside it.
        let (_, text) = Initiator::new(SecureChannel::Udp, &identity(), &device_key(), None).unwrap();
        let text = Credential::parse(text.as_bytes()).unwrap();
        let bytes = [text.identity_bytes(), text.message1()].concat();
        let credential = Credential::parse_datagram(&parameters, &bytes).unwrap();
        let refused = Verified::verify(SecureChannel::Udp, &credential, &device_key()).err();
        assert_eq!(refused, Some(HandshakeError::NotAuthentic));
    }

    #[test]
    fn wrong_answers_do_not_keep_the_right_one_out() {
        let (mut initiator, credential) = start(None);
        let (message2, keys) = verify(&credential).unwrap().answer().unwrap();
        let (_, other) = start(None);
        let (stranger, _) = verify(&other).unwrap().answer().unwrap();
        let mut changed = message2.clone();
        changed[40] ^= 1;
        for wrong in [
            &stranger[..],
            &changed,
            &message2[..47],
            &[0; MESSAGE_2_BYTES],
            &[],
        ] {
            assert_eq!(initiator.try_finish(wrong), Err(HandshakeError::NotAuthentic));
        }
        assert_eq!(initiator.try_finish(&message2), Ok(keys));
        assert!(initiator.try_finish(&message2).is_err(), "once is enough");
    }

    #[test]
    fn messages_of_another_length_are_refused() {
        for length in [0, 1, 47, 49, 64, 70_000] {
            let (initiator, _) = start(None);
            assert_eq!(
                initiator.finish(&vec![0; length]),
                Err(HandshakeError::NotAuthentic)
            );
        }
    }

    #[test]
    fn an_identity_that_nobody_would_take_is_not_sent() {
        let wrong = Identity {
            key_id: "k".repeat(1000),
            ..identity()
        };
        let refused = Initiator::new(SecureChannel::Ws, &wrong, &device_key(), None).err();
        assert_eq!(refused, Some(HandshakeError::Identity(IdentityError::KeyId)));
    }

    #[test]
    fn nothing_shows_a_key() {
        let (initiator, credential) = start(None);
        let verified = verify(&credential).unwrap();
        assert_eq!(format!("{initiator:?}"), "Initiator(Noise(..))");
        assert_eq!(
            format!("{verified:?}"),
            "Verified { noise: Noise(..), timestamp_ms: None }"
        );
        let (_, keys) = verified.answer().unwrap();
        assert_eq!(
            format!("{keys:?}"),
            "TrafficKeys { to_server: TrafficKey(..), to_device: TrafficKey(..) }"
        );
    }
}

mod records {
    use super::*;

    fn key() -> TrafficKey {
        TrafficKey::from_bytes(&[3; KEY_BYTES]).unwrap()
    }

    fn pair() -> (Sealer, Opener) {
        (Sealer::new(key()), Opener::new(key()))
    }

    fn open(opener: &mut Opener, record: &[u8]) -> Result<(Opened, Vec<u8>), RecordError> {
        let mut record = record.to_vec();
        let opened = opener.open(&mut record)?;
        Ok((opened, record[1..record.len() - 16].to_vec()))
    }

    #[test]
    fn records_come_out_as_they_went_in() {
        let (mut sealer, mut opener) = pair();
        let full = [8; MAX_CHUNK_BYTES];
        for (kind, more, data) in [
            (RecordKind::Text, false, &b"hello"[..]),
            (RecordKind::Binary, false, b""),
            (RecordKind::Text, true, &full),
            (RecordKind::Control, false, &[0]),
            (RecordKind::Text, false, &full),
        ] {
            let mut out = b"before".to_vec();
            sealer.seal(kind, more, data, &mut out).unwrap();
            assert_eq!(out.len(), 6 + data.len() + RECORD_OVERHEAD);
            assert_eq!(&out[..6], b"before");
            let (opened, plain) = open(&mut opener, &out[6..]).unwrap();
            assert_eq!((opened, plain.as_slice()), (Opened { kind, more }, data));
        }
    }

    /// A message of any length that matters: around nothing, around one record, around two.
    fn message() -> impl Strategy<Value = (RecordKind, Vec<u8>)> {
        const M: usize = MAX_CHUNK_BYTES;
        let length = prop_oneof![
            4 => 0..300usize,
            1 => M - 2..M + 3,
            1 => 2 * M - 2..2 * M + 3,
        ];
        let kind = prop_oneof![Just(RecordKind::Text), Just(RecordKind::Binary)];
        (kind, length, any::<u8>()).prop_map(|(kind, length, first)| {
            let data = (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add(first));
            (kind, data.collect())
        })
    }

    /// The records of these messages, with a ping before each chunk of the messages that `pings` names.
    fn sealed(messages: &[(RecordKind, Vec<u8>)], pings: u64) -> Vec<Vec<u8>> {
        let mut sealer = pair().0;
        let mut records = Vec::new();
        let mut push = |kind, more, data: &[u8]| {
            let mut out = Vec::new();
            sealer.seal(kind, more, data, &mut out).unwrap();
            records.push(out);
        };
        for (i, (kind, message)) in messages.iter().enumerate() {
            for (more, data) in chunks(message) {
                if pings >> (i % 64) & 1 == 1 {
                    push(RecordKind::Control, false, &ControlRecord::Ping.encode());
                }
                push(*kind, more, data);
            }
        }
        records
    }

    /// What comes out of records, up to the first that is refused; none after it may open.
    fn received(records: &[Vec<u8>]) -> (Vec<(RecordKind, Vec<u8>)>, Option<RecordError>) {
        let (mut opener, mut assembler) = (pair().1, Assembler::new(1 << 20));
        let mut messages = Vec::new();
        let mut refused = None;
        for record in records {
            match (open(&mut opener, record), refused) {
                (Ok((opened, data)), None) => {
                    if let Some(whole) = assembler.push(opened, &data).unwrap() {
                        messages.push((whole.kind, whole.data.into_owned()));
                    }
                }
                (Ok(_), Some(_)) => panic!("a record opens after one was refused"),
                (Err(error), None) => refused = Some(error),
                (Err(error), Some(_)) => assert_eq!(error, RecordError::Ended),
            }
        }
        messages.retain(|(kind, _)| *kind != RecordKind::Control);
        (messages, refused)
    }

    /// What somebody on the way may do to a sequence of records.
    #[derive(Debug, Clone)]
    enum Tampering {
        Flip(usize),
        Drop,
        Double,
        Swap,
        Truncate(usize),
        Extend(u8),
        Replay(prop::sample::Index),
    }

    fn tampering() -> impl Strategy<Value = Tampering> {
        prop_oneof![
            3 => any::<usize>().prop_map(Tampering::Flip),
            1 => Just(Tampering::Drop),
            1 => Just(Tampering::Double),
            1 => Just(Tampering::Swap),
            1 => any::<usize>().prop_map(Tampering::Truncate),
            1 => any::<u8>().prop_map(Tampering::Extend),
            1 => any::<prop::sample::Index>().prop_map(Tampering::Replay),
        ]
    }

    /// Changes `records` at `at`; gives the place of the first record that must not open.
    fn tamper(records: &mut Vec<Vec<u8>>, at: usize, how: Tampering) -> usize {
        let length = records[at].len();
        match how {
            Tampering::Flip(bit) => records[at][bit / 8 % length] ^= 1 << (bit % 8),
            Tampering::Drop => drop(records.remove(at)),
            Tampering::Double => {
                records.insert(at, records[at].clone());
                return at + 1;
            }
            Tampering::Swap => records.swap(at, at + 1),
            Tampering::Truncate(to) => records[at].truncate(to % length),
            Tampering::Extend(byte) => records[at].push(byte),
            Tampering::Replay(of) => {
                let earlier = records[of.index(at + 1)].clone();
                records.insert(at + 1, earlier);
                return at + 1;
            }
        }
        at
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn messages_come_out_as_they_went_in(messages in prop::collection::vec(message(), 0..8), pings: u64) {
            let (got, refused) = received(&sealed(&messages, pings));
            prop_assert_eq!(refused, None);
            prop_assert!(got == messages);
        }

        #[test]
        fn whatever_is_done_to_a_record_nothing_from_there_on_comes_out(
            messages in prop::collection::vec(message(), 2..6), at: prop::sample::Index, how in tampering(), pings: u64,
        ) {
            let whole = sealed(&messages, pings);
            let mut records = whole.clone();
            // The last record has none after it to swap with or to be missed.
            let first_bad = tamper(&mut records, at.index(whole.len() - 1), how);
            let (got, refused) = received(&records);
            prop_assert!(refused.is_some());
            let (before, none) = received(&whole[..first_bad]);
            prop_assert_eq!(none, None);
            prop_assert!(got == before);
        }

        #[test]
        fn any_bytes_are_refused(mut record in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(pair().1.open(&mut record).is_err());
        }

        /// What an [`Assembler`] holds stays within its limit whatever records come, and so do the messages.
        #[test]
        fn an_assembler_keeps_its_limit(
            limit in 0..4 * MAX_CHUNK_BYTES, records in prop::collection::vec((0..3u8, any::<bool>(), 0..200usize), 0..20),
        ) {
            let mut assembler = Assembler::new(limit);
            let full = [0; MAX_CHUNK_BYTES];
            for (kind, more, length) in records {
                let kind = [RecordKind::Text, RecordKind::Binary, RecordKind::Control][usize::from(kind)];
                let more = more && kind != RecordKind::Control;
                let data = if more { &full[..] } else { &full[..length] };
                match assembler.push(Opened { kind, more }, data) {
                    Ok(Some(whole)) => prop_assert!(whole.data.len() <= limit || kind == RecordKind::Control),
                    Ok(None) => prop_assert!(more),
                    Err(_) => break,
                }
                prop_assert!(assembler.held_bytes() <= limit);
            }
        }
    }

    #[test]
    fn every_bit_of_a_record_is_covered() {
        let (mut sealer, _) = pair();
        let mut record = Vec::new();
        sealer
            .seal(RecordKind::Text, false, b"hello", &mut record)
            .unwrap();
        for bit in 0..record.len() * 8 {
            let mut changed = record.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                open(&mut pair().1, &changed),
                Err(RecordError::NotAuthentic),
                "{bit}"
            );
        }
    }

    #[test]
    fn a_direction_is_a_key_and_a_counter() {
        assert_eq!((size_of::<Sealer>(), size_of::<Opener>()), (16, 16));
        assert_eq!(
            format!("{:?}", pair().0),
            "Sealer(Direction { key: TrafficKey(..), counter: 0 })"
        );
    }
}
