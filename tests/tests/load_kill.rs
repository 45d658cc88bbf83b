//! Under load, the backend is killed and hung over and over: no request is lost, doubled, misordered or refused, and no
//! connection closes.
//!
//! `HOLDFAST_FULL=1` runs the size that a release must pass (1,000 devices, 2,000 requests/s, twenty of each fault).

use std::time::Duration;

use holdfast_tests::gateway::{Gateway, Route};
use holdfast_tests::service::{Log, Service};
use holdfast_tests::traffic::{Plan, Report, Traffic};
use tokio::time::{Instant, sleep_until};

/// From one fault to the next; what was in flight at one must not still be there at the next, or it would rightly be
/// taken for poison.
const SPACING: Duration = Duration::from_millis(1_500);
const FENCED: &str = "holdfast_link_fenced_total";
const STALE: &str = "holdfast_link_stale_epoch_total";
const REPLAYED: &str = "holdfast_link_replayed_requests_total";

struct Faults {
    kills: u32,
    hangs: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_and_twenty_hangs_under_load_break_no_promise() {
    let (plan, faults) = size();
    let service = Service::start().await;
    let mut route = Route::new("Demo", service.url("/demo")).timeout("20s");
    (route.concurrency, route.queue) = (Some(4_096), Some(16_384));
    let builder = Gateway::builder(&service).routes(vec![route]);
    // As operators have it: hangs are to be noticed, and over before the next fault.
    let mut gateway = builder.link_timeout("1s").start().await;
    let traffic = Traffic::start(&gateway, plan).await;
    let begun = Instant::now();
    for round in 0..faults.kills.max(faults.hangs) {
        if round < faults.kills {
            let next = Instant::now() + SPACING;
            gateway.backends[0].kill9().await;
            gateway.backends[0].restart().await;
            recover(&mut gateway, &traffic, next).await;
        }
        if round < faults.hangs {
            let next = Instant::now() + SPACING;
            hang(&gateway).await;
            recover(&mut gateway, &traffic, next).await;
        }
        assert_eq!(traffic.violations(), [], "after round {round}");
    }
    let took = begun.elapsed();
    let report = traffic.finish().await;
    print(&report, &gateway, &service, took).await;
    judge(&report, &gateway, &service, &faults).await;
}

/// Stops the backend for as long as the frontend needs to give it up.
async fn hang(gateway: &Gateway) {
    let before = gateway.frontends[0].metric(FENCED, &[]).await;
    gateway.backends[0].stop();
    gateway.frontends[0].wait_for_metric(FENCED, |n| n > before).await;
    gateway.backends[0].cont();
}

/// Waits until what was in flight has been answered, and for the time of the next fault.
async fn recover(gateway: &mut Gateway, traffic: &Traffic, next: Instant) {
    gateway.backends[0].wait_ready().await;
    traffic.settle().await;
    sleep_until(next).await;
}

async fn judge(report: &Report, gateway: &Gateway, service: &Service, faults: &Faults) {
    assert_eq!(report.violations, []);
    assert_eq!(report.suppressed, 0);
    assert_eq!(report.answered, report.sent);
    service.assert_contract();
    let (keys, inconsistent) = service.log(|log| (log.by_key().len() as u64, log.inconsistent_keys()));
    assert_eq!(keys, report.sent, "every request reached its service");
    assert_eq!(inconsistent, 0, "every key is one request's");
    assert!(report.pushes_written > 0, "no push went through");
    let frontend = &gateway.frontends[0];
    assert!(frontend.metric(FENCED, &[]).await >= f64::from(faults.hangs));
    assert!(frontend.metric(REPLAYED, &[]).await >= 1.0);
    if faults.hangs > 0 {
        assert!(frontend.metric(STALE, &[]).await >= 1.0);
    }
}

async fn print(report: &Report, gateway: &Gateway, service: &Service, took: Duration) {
    let (calls, again) = service.log(|log: &Log| {
        let again = log.calls.iter().filter(|c| c.attempt > 1).count();
        (log.calls.len(), again)
    });
    let rate = report.answered as f64 / took.as_secs_f64();
    println!("| requests | answered | per second | calls | of them repeated | pushes written |");
    println!("|---|---|---|---|---|---|");
    println!(
        "| {} | {} | {rate:.0} | {calls} | {again} | {} |",
        report.sent, report.answered, report.pushes_written
    );
    println!("\n| latency | p50 | p90 | p99 | p99.9 | max |\n|---|---|---|---|---|---|");
    let at = |share: f64| report.percentile(share).as_millis();
    println!(
        "| ms | {} | {} | {} | {} | {} |\n",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    let exposition = gateway.frontends[0].metrics().await;
    for line in exposition.lines().filter(|l| l.starts_with("holdfast_link_")) {
        println!("{line}");
    }
}

fn size() -> (Plan, Faults) {
    let full = std::env::var("HOLDFAST_FULL").is_ok_and(|v| v == "1");
    let (devices, per_second, each) = if full { (1_000, 2_000, 20) } else { (300, 600, 4) };
    let number = |name: &str, default: u32| {
        std::env::var(name).map_or(default, |v| {
            v.parse().unwrap_or_else(|_| panic!("{name}={v} is not a number"))
        })
    };
    let plan = Plan {
        devices: number("HOLDFAST_DEVICES", devices),
        per_second: number("HOLDFAST_RATE", per_second),
        payload_bytes: 200,
        max_delay_ms: 200,
        pushes_per_second: 20,
    };
    (
        plan,
        Faults {
            kills: number("HOLDFAST_KILLS", each),
            hangs: number("HOLDFAST_HANGS", each),
        },
    )
}
