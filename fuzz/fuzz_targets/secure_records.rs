//! Records between a sender and a receiver with somebody in between who may do anything to them, and messages put together from
//! what authenticates: what comes out is a beginning of what went in.
#![no_main]

use holdfast_proto::secure::{Assembler, Opener, RecordError, RecordKind, Sealer, TrafficKey, chunks};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1 << 18;

fuzz_target!(|data: &[u8]| {
    let key = || TrafficKey::from_bytes(&[7; 32]).expect("32 bytes");
    let (mut sealer, mut opener) = (Sealer::new(key()), Opener::new(key()));
    assert!(Opener::new(key()).open(&mut data.to_vec()).is_err());
    let (mut sent, mut records) = (Vec::new(), Vec::new());
    // Pairs of bytes: an operation and its argument.
    for pair in data.chunks_exact(2).take(64) {
        let argument = usize::from(pair[1]);
        match pair[0] % 8 {
            0..=2 => {
                let kind =
                    [RecordKind::Text, RecordKind::Binary, RecordKind::Control][usize::from(pair[0] % 8)];
                // Up to 128 KB, around the limits of a record.
                let length = if kind == RecordKind::Control {
                    argument
                } else {
                    argument * 512
                };
                let message = vec![pair[1]; length];
                for (more, chunk) in chunks(&message) {
                    let mut record = Vec::new();
                    sealer
                        .seal(kind, more, chunk, &mut record)
                        .expect("chunks have the form");
                    records.push(record);
                }
                sent.push((kind, message));
            }
            3 if !records.is_empty() => {
                let at = argument % records.len();
                let record = &mut records[at];
                // One that was cut to nothing has no bit to flip.
                if let Some(byte) = argument.checked_rem(record.len()) {
                    record[byte] ^= 1 << (pair[0] >> 5);
                }
            }
            4 if !records.is_empty() => drop(records.remove(argument % records.len())),
            5 if !records.is_empty() => {
                let copy = records[argument % records.len()].clone();
                records.push(copy);
            }
            6 if records.len() > 1 => {
                let at = argument % (records.len() - 1);
                records.swap(at, at + 1);
            }
            7 if !records.is_empty() => {
                let at = argument % records.len();
                let length = records[at].len();
                records[at].truncate(length.saturating_sub(1 + argument));
            }
            _ => {}
        }
    }
    let mut assembler = Assembler::new(LIMIT);
    let (mut got, mut refused) = (Vec::new(), false);
    for mut record in records {
        match opener.open(&mut record) {
            Ok(opened) => {
                assert!(!refused, "a record opens after one was refused");
                let data = &record[1..record.len() - 16];
                let whole = assembler
                    .push(opened, data)
                    .expect("what was sent is well formed");
                got.extend(whole.map(|w| (w.kind, w.data.into_owned())));
            }
            Err(error) => {
                assert!(!refused || error == RecordError::Ended);
                refused = true;
            }
        }
    }
    assert!(sent.starts_with(&got));
});
