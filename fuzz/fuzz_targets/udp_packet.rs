//! The plaintext of a DATA datagram: whatever is read by hand, generated code reads the same.
#![no_main]

use holdfast_proto::udp::packet::{MAX_ACK_RUNS, MAX_PIECES, Packet, generated};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(read) = Packet::decode(data) else {
        return;
    };
    let generated = generated::Packet::decode(data).expect("generated code reads what ours reads");
    let pieces: Vec<_> = read.pieces().collect();
    assert!(pieces.len() <= MAX_PIECES);
    assert_eq!(pieces.len(), generated.pieces.len());
    for (ours, theirs) in pieces.iter().zip(&generated.pieces) {
        assert_eq!((ours.message, ours.offset), (theirs.message, theirs.offset));
        assert_eq!((ours.data, ours.kind as u32), (&theirs.data[..], theirs.kind));
        assert!(
            ours.length == theirs.length || theirs.length == 0 && ours.length as usize == ours.data.len()
        );
        assert!(ours.offset as usize + ours.data.len() <= ours.length as usize);
    }
    assert_eq!(read.ack.is_some(), generated.ack.is_some());
    if let (Some(ours), Some(theirs)) = (&read.ack, &generated.ack) {
        assert_eq!((ours.largest, ours.delay_us), (theirs.largest, theirs.delay_us));
        let runs: Vec<_> = ours.ranges().collect();
        assert!((1..=MAX_ACK_RUNS).contains(&runs.len()));
        assert_eq!(runs.len(), theirs.ranges.len() / 2 + 1);
        assert!(runs.iter().all(|(low, high)| low <= high));
        assert!(runs.windows(2).all(|two| two[1].1 + 1 < two[0].0));
    }
    let credit = generated.credit.map(|credit| (credit.messages, credit.bytes));
    assert_eq!(read.credit.map(|credit| (credit.messages, credit.bytes)), credit);
    assert_eq!(read.path_challenge.unwrap_or(0), generated.path_challenge);
    assert_eq!(read.path_response.unwrap_or(0), generated.path_response);
    assert_eq!(read.ping, generated.ping);
    assert_eq!(read.close.is_some(), generated.close.is_some());
    if let (Some(ours), Some(theirs)) = (&read.close, &generated.close) {
        assert_eq!(
            (u32::from(ours.code), ours.reason),
            (theirs.code, &theirs.reason[..])
        );
        assert_eq!(ours.messages, theirs.messages);
    }
    let token = read.reset_token.map_or(Vec::new(), |token| token.0.to_vec());
    assert_eq!(token, generated.reset_token);
});
