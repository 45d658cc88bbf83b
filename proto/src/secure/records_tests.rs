use super::*;

fn key(byte: u8) -> TrafficKey {
    TrafficKey::from_bytes(&[byte; 32]).unwrap()
}

/// Both ends of a direction whose next record has this number.
fn at(counter: u64) -> (Sealer, Opener) {
    (Sealer::at(key(3), counter), Opener::at(key(3), counter))
}

fn seal(sealer: &mut Sealer, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(RecordKind::Text, false, data, &mut out).unwrap();
    out
}

/// A record of bytes that `seal` would refuse.
fn raw(counter: u64, plain: &[u8]) -> Vec<u8> {
    let mut record = plain.to_vec();
    let tag = expand(&key(3))
        .encrypt_in_place_detached(&nonce(counter), &[], &mut record)
        .unwrap();
    record.extend_from_slice(&tag);
    record
}

#[test]
fn what_may_not_be_is_not_sealed_and_changes_nothing() {
    let full = [0; MAX_CHUNK_BYTES];
    let over = [0; MAX_CHUNK_BYTES + 1];
    let (mut sealer, mut opener) = at(0);
    let mut out = b"before".to_vec();
    for (kind, more, data) in [
        (RecordKind::Text, false, &over[..]),
        (RecordKind::Text, true, &over),
        (RecordKind::Text, true, &full[1..]),
        (RecordKind::Binary, true, b""),
        (RecordKind::Control, true, &full),
        (RecordKind::Control, true, b"\0"),
    ] {
        assert_eq!(sealer.seal(kind, more, data, &mut out), Err(RecordError::Form));
    }
    for start in [6, 7, usize::MAX] {
        assert_eq!(sealer.seal_in_place(&mut out, start), Err(RecordError::Form));
    }
    out.push(3);
    assert_eq!(sealer.seal_in_place(&mut out, 6), Err(RecordError::Form));
    assert_eq!(out, b"before\x03");
    assert!(opener.open(&mut seal(&mut sealer, b"x")).is_ok());
}

#[test]
fn what_may_not_be_is_not_opened_though_it_authenticates() {
    let long = vec![0; MAX_CHUNK_BYTES + 2];
    let mut more = long[..MAX_CHUNK_BYTES].to_vec();
    more[0] = MORE;
    for plain in [
        &b"\x03"[..],
        b"\x04x",
        b"\x7f",
        b"\x40",
        b"\x80short",
        b"\x82\0",
        b"\xff",
        &more,
    ] {
        let (_, mut opener) = at(0);
        let refused = opener.open(&mut raw(0, plain));
        assert_eq!(refused, Err(RecordError::Form), "{:?}", plain.first());
        assert_eq!(opener.open(&mut raw(0, b"\0")), Err(RecordError::Ended));
    }
    // Too short or too long to be a record: as good as changed, even if the tag is right.
    for plain in [&b""[..], &long] {
        let (_, mut opener) = at(0);
        assert_eq!(opener.open(&mut raw(0, plain)), Err(RecordError::NotAuthentic));
    }
    for length in 0..RECORD_OVERHEAD {
        let (_, mut opener) = at(0);
        assert_eq!(opener.open(&mut vec![0; length]), Err(RecordError::NotAuthentic));
    }
    assert_eq!(RecordError::Form.close_code(), CloseCode::Protocol);
    assert_eq!(RecordError::NotAuthentic.close_code(), CloseCode::RecordRejected);
}

#[test]
fn both_ends_move_their_key_on_at_the_same_record() {
    for begin in [REKEY_RECORDS - 2, 5 * REKEY_RECORDS - 2] {
        let (mut sealer, mut opener) = at(begin);
        let mut run = sealer.begin();
        let mut records = Vec::new();
        for i in 0..4u8 {
            let mut out = Vec::new();
            run.seal(RecordKind::Binary, false, &[i], &mut out).unwrap();
            records.push(out);
        }
        // The first two are under the old key, the others are not; the counter goes on.
        let old = |n: u64, record: &[u8]| {
            let (data, tag) = record.split_at(2);
            let mut data = data.to_vec();
            expand(&key(3))
                .decrypt_in_place_detached(
                    &nonce(n),
                    &[],
                    &mut data,
                    &Tag::from(<[u8; TAG_BYTES]>::try_from(tag).unwrap()),
                )
                .is_ok()
        };
        for (i, record) in records.iter().enumerate() {
            let n = begin + i as u64;
            assert_eq!(old(n, record), i < 2, "{n}");
            let mut record = record.clone();
            opener.open(&mut record).unwrap();
            assert_eq!(record[1], i as u8);
        }
        assert_eq!(sealer.0.counter, begin + 4);
        assert_eq!(sealer.0.key, opener.0.key);
        assert_ne!(sealer.0.key, key(3));
    }
}

#[test]
fn a_counter_is_never_used_up_to_the_rekey_nonce() {
    let (mut sealer, mut opener) = at(REKEY_COUNTER - 1);
    let mut record = seal(&mut sealer, b"last");
    assert!(opener.open(&mut record).is_ok());
    let mut out = b"before".to_vec();
    assert_eq!(
        sealer.seal(RecordKind::Text, false, b"x", &mut out),
        Err(RecordError::Ended)
    );
    assert_eq!(out, b"before");
    assert_eq!(opener.open(&mut [0; 20]), Err(RecordError::Ended));
    assert_eq!(sealer.0.key, key(0));
}

#[test]
fn an_opener_that_failed_forgets_its_key() {
    let (mut sealer, mut opener) = at(0);
    let record = seal(&mut sealer, b"x");
    let mut changed = record.clone();
    changed[0] ^= 1;
    assert_eq!(opener.open(&mut changed), Err(RecordError::NotAuthentic));
    assert_eq!(opener.open(&mut record.clone()), Err(RecordError::Ended));
    assert_eq!((opener.0.key, opener.0.counter), (key(0), REKEY_COUNTER));
}

/// Sealing in place is sealing: the same bytes, in a run or not.
#[test]
fn there_is_one_form_of_a_record() {
    let (mut one, _) = at(0);
    let (mut other, _) = at(0);
    let mut run = other.begin();
    for data in [&b"first"[..], b"", b"third"] {
        let mut placed = b"head".to_vec();
        placed.push(RecordKind::Text as u8);
        placed.extend_from_slice(data);
        run.seal_in_place(&mut placed, 4).unwrap();
        assert_eq!(&placed[4..], seal(&mut one, data));
    }
}
