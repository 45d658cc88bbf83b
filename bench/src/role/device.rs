//! One device: sends what it is told to, checks what comes.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::Result;
use tokio::sync::{mpsc, oneshot};

use super::exchange::{Exchange, Heard};
use super::line::Line;
use super::load::Load;
use crate::protocol::{Speak, Traffic};

/// What the load generator knows of a device.
pub(super) struct Handle {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    /// Ordered, and not answered yet.
    pub(super) in_flight: Rc<Cell<u32>>,
}

/// What a device is told to do.
pub(super) enum Order {
    /// To send so many requests now.
    Requests(u32),
    /// To say what its socket has sent and received.
    Report(oneshot::Sender<Result<Traffic>>),
}

/// A device that is online.
pub(super) struct Device {
    line: Line,
    /// Whether replies are events of the gateway, or what was sent.
    gateway: bool,
    orders: mpsc::UnboundedReceiver<Order>,
    in_flight: Rc<Cell<u32>>,
    load: Rc<Load>,
    exchange: Exchange,
}

impl Device {
    pub(super) fn new(line: Line, speak: &Speak, load: Rc<Load>) -> (Self, Handle) {
        let (sender, orders) = mpsc::unbounded_channel();
        let in_flight = Rc::new(Cell::new(0));
        let handle = Handle {
            orders: sender,
            in_flight: in_flight.clone(),
        };
        let device = Self {
            line,
            gateway: matches!(speak, Speak::Holdfast { .. } | Speak::Records { .. }),
            orders,
            in_flight,
            load,
            exchange: Exchange::default(),
        };
        (device, handle)
    }

    /// Until the handle is gone. A failure is the load's.
    pub(super) async fn run(mut self, number: u32) {
        if let Err(error) = self.serve().await {
            self.load.fail(format!("device {number}: {error:#}"));
        }
    }

    async fn serve(&mut self) -> Result<()> {
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => {
                    match order {
                        None => return Ok(()),
                        Some(Order::Requests(count)) => self.requests(count).await?,
                        // Who asked may be gone.
                        Some(Order::Report(to)) => drop(to.send(self.line.traffic())),
                    }
                }
                text = self.line.next() => {
                    self.on_text(text?).await?;
                    // What has come together is answered together.
                    while let Some(text) = self.line.next_now() {
                        self.on_text(text?).await?;
                    }
                }
            }
            self.line.flush().await?;
        }
    }

    async fn requests(&mut self, count: u32) -> Result<()> {
        for _ in 0..count {
            self.request().await?;
        }
        Ok(())
    }

    async fn request(&mut self) -> Result<()> {
        let text = self.exchange.request(&self.load);
        self.line.feed(text).await
    }

    async fn on_text(&mut self, text: Option<String>) -> Result<()> {
        let Some(text) = text else { return Ok(()) };
        if self.exchange.on_text(&text, self.gateway, &self.load)? == Heard::Push {
            return Ok(());
        }
        if self.load.take_next() {
            self.request().await
        } else {
            self.in_flight.set(self.in_flight.get() - 1);
            Ok(())
        }
    }
}
