//! Requests on their way to the connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};

use crate::state::Counters;
use crate::{Error, Reply, Request};

/// A request on its way to the connection.
pub(crate) struct Outgoing {
    pub(crate) request: Request,
    pub(crate) waiter: Waiter,
}

/// Who wants to know what became of a request.
pub(crate) enum Waiter {
    Reply(oneshot::Sender<Result<Reply, Error>>),
    /// A one-way request: only that it was sent.
    Sent(oneshot::Sender<Result<(), Error>>),
}

impl Waiter {
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Reply(sender) => sender.is_closed(),
            Self::Sent(sender) => sender.is_closed(),
        }
    }

    pub(crate) fn fail(self, error: Error) {
        match self {
            Self::Reply(sender) => drop(sender.send(Err(error))),
            Self::Sent(sender) => drop(sender.send(Err(error))),
        }
    }
}

/// Requests that wait to be sent: first those of a lost connection, then new ones. Bounded by the requests in flight that
/// the device allows.
pub(crate) struct Outbox {
    commands: mpsc::Receiver<Box<Outgoing>>,
    again: VecDeque<Outgoing>,
    next_id: u64,
    counters: Arc<Counters>,
}

impl Outbox {
    pub(crate) fn new(commands: mpsc::Receiver<Box<Outgoing>>, counters: Arc<Counters>) -> Self {
        Self {
            commands,
            again: VecDeque::new(),
            next_id: 1,
            counters,
        }
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        if let Some(outgoing) = self.again.pop_front() {
            Counters::add(&self.counters.resent);
            return Poll::Ready(Some(outgoing));
        }
        self.commands
            .poll_recv(cx)
            .map(|outgoing| outgoing.map(|outgoing| *outgoing))
    }

    /// Queues the requests of the connection that was just lost, in their order, before those that it had not come to.
    pub(crate) fn send_again(&mut self, lost: Vec<Outgoing>) {
        for outgoing in lost.into_iter().rev() {
            self.again.push_front(outgoing);
        }
    }

    /// An id that this device has not used before.
    pub(crate) fn make_id(&mut self) -> String {
        let id = self.next_id;
        self.next_id += 1;
        format!("c{id}")
    }

    /// Fails all that wait; requests that were sent once have an unknown outcome.
    pub(crate) fn close(&mut self, error: &Error) {
        for outgoing in self.again.drain(..) {
            outgoing.waiter.fail(Error::Disconnected);
        }
        self.commands.close();
        while let Ok(outgoing) = self.commands.try_recv() {
            outgoing.waiter.fail(error.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn outgoing(name: &str) -> Outgoing {
        Outgoing {
            request: Request::binary("Demo", name, Bytes::new()),
            waiter: Waiter::Reply(oneshot::channel().0),
        }
    }

    #[test]
    fn what_was_lost_last_goes_before_what_no_connection_came_to() {
        let (_sender, commands) = mpsc::channel(1);
        let mut outbox = Outbox::new(commands, Arc::default());
        outbox.send_again(["c", "d"].map(outgoing).into());
        outbox.send_again(["a", "b"].map(outgoing).into());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut names = Vec::new();
        while let Poll::Ready(Some(outgoing)) = outbox.poll_next(&mut cx) {
            names.push(outgoing.request.name);
        }
        assert_eq!(names, ["a", "b", "c", "d"]);
    }
}
