//! What begins and ends with a link's epoch, and how all of it ends.

use std::time::Instant;

use holdfast_proto::link::LaneStats;
use tracing::{debug, error, info, warn};

use super::{Action, Backend, Link, Now, Stop};
use crate::link::{LinkIndex, LinkState, Loss, LossReason, Step};

impl Backend {
    pub(super) fn on_step(&mut self, link: LinkIndex, step: Step, now: Now) {
        match step {
            Step::Taken => {}
            Step::Stale => {
                self.metrics.stale_epoch.inc();
            }
            Step::Attached => {
                self.repeat_closes(link);
                let Link {
                    attachment, report, ..
                } = &mut self.links[link.get()];
                if let Some(frontend) = attachment.frontend() {
                    let (link, id) = (link.get(), frontend.id.0);
                    if report.on_attached() {
                        info!(link, frontend = id, build = frontend.build, "attached");
                    } else {
                        debug!(link, frontend = id, "attached");
                    }
                }
                if self.stop != Stop::No {
                    attachment.start_draining();
                }
                self.metrics.set_link(link, LinkState::Attached);
                self.again = Some(now.instant);
            }
        }
    }

    /// The epoch is over: nothing of it may have an effect any more.
    pub(super) fn on_loss(&mut self, link: LinkIndex, loss: &Loss, now: Now) {
        self.report_loss(link, &loss.reason, now.instant);
        self.metrics
            .fenced
            .inc_by(u64::from(loss.reason == LossReason::Fenced));
        self.metrics.count_loss(loss.reason.label());
        self.forget_link(link, now);
        if self.stop == Stop::No {
            self.reconnect(link, loss.retry_at);
        } else {
            self.links[link.get()].attachment.start_draining();
        }
        self.metrics.set_link(link, self.link_state(link));
        self.after_input();
    }

    fn report_loss(&mut self, link: LinkIndex, reason: &LossReason, now: Instant) {
        let is_news = self.links[link.get()].report.on_loss(reason.label(), now);
        let link = link.get();
        match reason {
            _ if !is_news => debug!(link, %reason, "no link to the frontend"),
            LossReason::Refused { .. } | LossReason::Protocol(_) | LossReason::Lane(_) => {
                error!(link, %reason, "no link to the frontend");
            }
            LossReason::Disconnected | LossReason::NoAnswer | LossReason::Fenced | LossReason::Silent => {
                warn!(link, %reason, "no link to the frontend");
            }
        }
    }

    fn forget_link(&mut self, link: LinkIndex, now: Now) {
        self.requests.remove_link(link, now);
        self.lifecycle.remove_link(link);
        self.tracker.handle_link_lost(link);
        let state = &mut self.links[link.get()];
        state.held_back.clear();
        state.closes.on_lost();
        (state.push_bytes, state.counted) = (0, LaneStats::default());
    }

    pub(super) fn reconnect(&mut self, link: LinkIndex, at: Instant) {
        let attachment = &self.links[link.get()].attachment;
        let (attach, identity) = (attachment.next_attach(), attachment.next_identity());
        self.actions.push_back(Action::Reconnect {
            link,
            attach,
            identity,
            at,
        });
    }

    pub(super) fn advance_stop(&mut self, now: Now) {
        let Stop::Draining { until } = self.stop else {
            return;
        };
        let quiet = self.tracker.outstanding() == 0;
        for link in self.link_indexes() {
            let idle = quiet && self.requests.is_idle(link) && self.lifecycle.binds_of(link) == 0;
            self.links[link.get()].attachment.advance_drain(idle);
        }
        let finished = self
            .links
            .iter()
            .all(|link| link.attachment.state() == LinkState::Finished);
        if finished && quiet {
            info!("drained");
        } else if now.instant >= until {
            let (requests, operations) = (self.requests.in_flight(), self.tracker.outstanding());
            warn!(
                requests,
                operations, "the grace is over: leaving with work undone"
            );
        } else {
            return;
        }
        self.stop = Stop::Exited;
        self.actions.push_back(Action::Exit);
    }
}
