//! The handshake between its two sides, and records between theirs.

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

    #[test]
    fn a_direction_is_a_key_and_a_counter() {
        assert_eq!((size_of::<Sealer>(), size_of::<Opener>()), (40, 40));
        assert_eq!(
            format!("{:?}", pair().0),
            "Sealer(Direction { key: TrafficKey(..), counter: 0 })"
        );
    }
}
