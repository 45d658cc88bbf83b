use super::*;

/// Small enough for a test.
fn setting(losses: Vec<u32>) -> Setting {
    Setting {
        losses,
        courses: 1,
        small_seconds: 10,
        bulk_messages: 1,
        ..Setting::default()
    }
}

fn point(setting: &Setting, workload: Workload, transport: Transport) -> Point {
    measure_point(setting, (workload, transport), setting.losses[0])
}

#[test]
fn the_comparisons_are_as_fast_as_arithmetic_says() {
    let setting = setting(vec![0]);
    let best = point(&setting, Workload::Bulk, Transport::Best);
    // 1,157 of each 1,228 bytes are the message's, and the last half round trip is waited for.
    let wire = (1u64 << 20) as f64 * 8.0 / (10e6 * 1_157.0 / 1_228.0);
    let expected = (wire + 0.025) * 1e3;
    assert!((best.p50_ms - expected).abs() < 2.0, "{best:?}, {expected} ms");
    let slow = point(&setting, Workload::Bulk, Transport::StopAndWait);
    // 907 datagrams, each of which takes a round trip and its own time on the wire, as does its acknowledgement.
    let expected = 907.0 * (50.0 + 0.982 + 0.052);
    assert!((slow.p50_ms - expected).abs() < 100.0, "{slow:?}, {expected} ms");
    let small = point(&setting, Workload::Small, Transport::Best);
    assert!((25.0..27.0).contains(&small.p50_ms), "{small:?}");
}

#[test]
fn ours_is_between_the_comparisons() {
    for loss in [0, 5] {
        let setting = setting(vec![loss]);
        for workload in Workload::ALL {
            let [ours, slow, best] = Transport::ALL.map(|transport| point(&setting, workload, transport));
            // Room for chance: the three do not lose the same datagrams.
            assert!(ours.p99_ms >= best.p99_ms * 0.9, "{ours:?} {best:?}");
            assert!(ours.p50_ms <= slow.p50_ms, "{ours:?} {slow:?}");
            assert!(ours.goodput >= slow.goodput * 0.99, "{ours:?} {slow:?}");
        }
    }
}

#[test]
fn figures_are_told_and_drawn() {
    let setting = setting(vec![0, 2]);
    let mut told = 0;
    let points = measure(&setting, |_| told += 1);
    assert_eq!((points.len(), told), (12, 12));
    let table = table(&setting, &points);
    assert_eq!(
        table.lines().filter(|line| line.starts_with("   2%")).count(),
        2,
        "{table}"
    );
    let svg = draw(&setting, &points).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert_eq!(svg.matches("<circle").count(), 4 * 6);
}
