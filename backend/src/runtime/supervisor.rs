//! What the service manager is told (sd_notify): nothing when there is none.

use std::sync::Arc;

use arc_swap::ArcSwap;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tracing::warn;

use super::gateway::Snapshot;
use super::start::POLL;

/// Says READY when a frontend is attached for the first time, as a standby too, and STOPPING when told to stop.
pub(super) async fn tell(mut stop: watch::Receiver<bool>, snapshot: Arc<ArcSwap<Snapshot>>) {
    while !snapshot.load().ready && !*stop.borrow() {
        tokio::time::sleep(POLL).await;
    }
    if snapshot.load().ready {
        say(NotifyState::Ready);
    }
    // An error means that the process ends.
    let _ = stop.wait_for(|stop| *stop).await;
    say(NotifyState::Stopping);
}

fn say(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "the service manager could not be told");
    }
}
