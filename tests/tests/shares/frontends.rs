//! Shares on several frontends, and on one that was away.

use holdfast_tests::gateway::Gateway;
use holdfast_tests::service::Service;

use super::wait_for_share;

#[tokio::test(flavor = "multi_thread")]
async fn every_frontend_hears_of_a_share_also_one_that_was_away() {
    let service = Service::start().await;
    let mut gateway = Gateway::builder(&service).frontends(2).start().await;
    let canary = gateway.add_backend_as(&["--share", "5%"], &[]).await;
    for frontend in 0..2 {
        wait_for_share(&gateway, (frontend, canary), 5.0).await;
    }
    gateway.frontends[1].kill9().await;
    gateway.control(canary).share(7.5).await;
    gateway.frontends[1].restart().await;
    gateway.control(canary).wait_ready().await;
    for frontend in 0..2 {
        wait_for_share(&gateway, (frontend, canary), 7.5).await;
    }
    let status = gateway.control(canary).status().await;
    let states: Vec<_> = status["frontends"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| &f["state"])
        .collect();
    assert_eq!(states, ["active", "active"], "{status}");
}
