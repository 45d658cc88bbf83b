//! A batch from the other end of the link, read by the codec and by a lane that expects it.
#![no_main]

use std::time::Instant;

use bytes::Bytes;
use holdfast_proto::link::{Epoch, Lane, LaneConfig, decode_batch, frames, read_notice};
use libfuzzer_sys::fuzz_target;
use prost::Message;

const US: Epoch = Epoch { boot: 1, attach: 1 };
const THEM: Epoch = Epoch { boot: 2, attach: 1 };

fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let ours = decode_batch(bytes.clone());
    // Whatever is read here can be read by the generated code too.
    let generated = frames::Batch::decode(bytes);
    let Ok((mut header, frames)) = ours else { return };
    let generated = generated.expect("the generated decoder reads what ours reads");
    assert!(generated.frames.len() >= frames.len());
    let _ = read_notice(US, &header, &frames);
    header.from = Some(THEM.into());
    header.to = Some(US.into());
    let mut lane = Lane::new(LaneConfig::default(), US, THEM, Instant::now());
    let mut out = Vec::new();
    if lane.handle_batch(Instant::now(), (header, frames), &mut out).is_ok() {
        for incoming in out {
            if let Some(charge) = incoming.charge {
                lane.release(charge);
            }
        }
    }
});
