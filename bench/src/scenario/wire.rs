//! Bytes on the wire of a small message, as request and as push, counted at the devices' sockets.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use holdfast_proto::ChannelKind;
use tokio::time::sleep;

use super::fleet::Fleet;
use super::{PAYLOAD_BYTES, progress, pusher};
use crate::args::Size;
use crate::gateway::Gateway;
use crate::protocol::{Call, Pace, Run, Traffic};
use crate::report::{Row, Table};

const DEVICES: u32 = 20;
/// Of all devices together: so that a device's next message comes long after all of the last one is acknowledged.
const PER_SECOND: u32 = 80;
const MESSAGES: u64 = 400;
/// Until what is late has been acknowledged too: TCP takes up to 40 ms, udp 25.
const SETTLE: Duration = Duration::from_millis(300);

const KINDS: [ChannelKind; 3] = [ChannelKind::Ws, ChannelKind::Wss, ChannelKind::Udp];

pub(super) async fn run(_: &Size, bin_dir: Option<&Path>) -> Result<Table> {
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    let mut found = Vec::new();
    for kind in KINDS {
        let both = measure(bin_dir, kind).await?;
        progress("wire", &format!("{} done", kind.label()));
        notes.extend(describe(kind, &both));
        found.push(both);
    }
    let figures: [Figure; 2] = [("request and reply", |f| &f.request), ("push", |f| &f.push)];
    for (what, of) in figures {
        let bytes = |found: &Found| {
            let traffic = of(found);
            (traffic.sent.wire + traffic.received.wire) as f64 / MESSAGES as f64
        };
        for (kind, found_of) in KINDS.iter().zip(&found) {
            let row = Row::new(
                format!("{what}, {}, both ways", kind.label()),
                "B",
                vec![bytes(found_of)],
            );
            rows.push(match kind {
                ChannelKind::Wss => row,
                _ => row.against("the same over wss", vec![bytes(&found[1])]),
            });
        }
    }
    notes.push(format!(
        "{DEVICES} devices, {MESSAGES} messages of each kind, {PER_SECOND} a second in all, {PAYLOAD_BYTES} B payload in the same event text; bytes with IPv4's and UDP's or TCP's headers, acknowledgements included. udp: the datagrams of the devices' sockets. TCP: TCP_INFO of the devices' sockets, segments without data included."
    ));
    Ok(Table {
        title: "wire: bytes of a small message".to_owned(),
        rows,
        notes,
    })
}

type Figure = (&'static str, fn(&Found) -> &Traffic);

struct Found {
    request: Traffic,
    push: Traffic,
}

async fn measure(bin_dir: Option<&Path>, kind: ChannelKind) -> Result<Found> {
    let gateway = Gateway::start(bin_dir).await?;
    let mut devices = Fleet::start(&gateway.endpoint(kind), 1, 0).await?;
    devices.connect(DEVICES).await?;
    let call = Call::Push {
        first: 0,
        devices: DEVICES,
    };
    let mut pusher = pusher(gateway.api, Some(&gateway.api_key), call).await?;
    let run = Run {
        requests: MESSAGES,
        pace: Pace::PerSecond(PER_SECOND),
        depth: DEVICES,
        payload: PAYLOAD_BYTES,
        devices: (0, 0),
    };
    sleep(SETTLE).await;
    let before = devices.traffic().await?;
    devices.workers[0].run(run).await?;
    sleep(SETTLE).await;
    let between = devices.traffic().await?;
    pusher.run(run).await?;
    devices.expect(MESSAGES).await?;
    sleep(SETTLE).await;
    Ok(Found {
        request: between.since(&before),
        push: devices.traffic().await?.since(&between),
    })
}

fn describe(kind: ChannelKind, found: &Found) -> [String; 2] {
    let each = |count: u64| count as f64 / MESSAGES as f64;
    let one = |what: &str, t: &Traffic| {
        format!(
            "{}, {what}: to the server {:.0} B payload, {:.0} B with headers in {:.2} packets; to the device {:.0} B, {:.0} B in {:.2}",
            kind.label(),
            each(t.sent.payload),
            each(t.sent.wire),
            each(t.sent.packets),
            each(t.received.payload),
            each(t.received.wire),
            each(t.received.packets)
        )
    };
    [one("request and reply", &found.request), one("push", &found.push)]
}
