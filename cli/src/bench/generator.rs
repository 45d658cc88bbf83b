//! The devices: threads that each play a share of them, sending when a request is due and never waiting for replies to do so.
//!
//! A conductor tells all threads at once to send and to stop; counts go into one [`Tally`] that all share.

mod pace;
mod ticker;
mod worker;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::{mpsc, watch};

use super::channel::Dialler;
use super::payload::Payloads;
use super::phase::Now;
use super::tally::Tally;

pub(crate) use worker::NAMESPACE;

/// Time since the devices were told to send.
#[derive(Debug, Default)]
pub(crate) struct Clock(OnceLock<Instant>);

impl Clock {
    /// Zero before the start.
    pub(crate) fn now(&self) -> Duration {
        self.0.get().map(Instant::elapsed).unwrap_or_default()
    }

    fn start(&self) {
        self.0.get_or_init(Instant::now);
    }
}

/// What conductor and threads share.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) phase: Arc<Now>,
    pub(crate) payloads: Payloads,
    tally: Mutex<Tally>,
    mark: AtomicU32,
    connected: AtomicU32,
    /// Requests due and not sent, of each thread.
    overdue: Vec<AtomicU64>,
}

impl Shared {
    pub(crate) fn new(phase: Arc<Now>, payloads: Payloads, threads: u32, max_wait: Duration) -> Self {
        Self {
            clock: Clock::default(),
            phase,
            payloads,
            tally: Mutex::new(Tally::new(INTERVAL, max_wait)),
            mark: AtomicU32::new(0),
            connected: AtomicU32::new(0),
            overdue: (0..threads).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connected(&self) -> u32 {
        self.connected.load(Ordering::Relaxed)
    }

    /// Parts what is sent from now on from what was sent before: see [`Shared::is_settled`].
    pub(crate) fn set_mark(&self) -> u32 {
        self.mark.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether all that was due before the mark was set has been answered.
    pub(crate) fn is_settled(&self, mark: u32) -> bool {
        self.overdue() == 0 && self.tally().is_settled(mark)
    }

    fn overdue(&self) -> u64 {
        self.overdue.iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }
}

/// How many devices and requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) devices: u32,
    pub(crate) rate: f64,
    pub(crate) threads: u32,
}

/// What the conductor wants. Only ever moves forward.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Connect,
    Send { from: Duration },
    Stop { patience: Duration },
}

#[derive(Debug)]
enum Note {
    Connected,
    Failed(String),
    Ended,
}

/// The running threads.
pub(crate) struct Generator {
    wish: watch::Sender<Wish>,
    notes: mpsc::Receiver<Note>,
    threads: u32,
    shared: Arc<Shared>,
}

impl Generator {
    pub(crate) fn start(load: Load, dialler: &Dialler, shared: Arc<Shared>) -> Result<Self> {
        let (wish, wishes) = watch::channel(Wish::Connect);
        let (sender, notes) = mpsc::channel(2 * load.threads as usize);
        for thread in 0..load.threads {
            let share = worker::Share::new(load, thread);
            let (dialler, shared) = (dialler.clone(), shared.clone());
            let (wishes, sender) = (wishes.clone(), sender.clone());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let play = move || {
                runtime.block_on(async {
                    let note = match worker::play(&share, &dialler, &shared, (wishes, &sender)).await {
                        Ok(()) => Note::Ended,
                        Err(error) => Note::Failed(format!("{error:#}")),
                    };
                    // Nobody listens when the conductor has given up.
                    let _ = sender.send(note).await;
                });
            };
            std::thread::Builder::new()
                .name(format!("{THREADS}{thread}"))
                .spawn(play)
                .context("a generator's thread")?;
        }
        Ok(Self {
            wish,
            notes,
            threads: load.threads,
            shared,
        })
    }

    /// Waits until all devices are online.
    pub(crate) async fn connected(&mut self) -> Result<()> {
        for _ in 0..self.threads {
            match self.note().await? {
                Note::Connected => {}
                Note::Ended => bail!("a generator's thread ended early"),
                Note::Failed(what) => bail!("{what}"),
            }
        }
        Ok(())
    }

    pub(crate) fn send(&self) {
        self.shared.clock.start();
        self.wish.send_replace(Wish::Send { from: LEAD });
    }

    /// Sends no more, waits up to `patience` for what is unanswered (it is lost then), and closes all connections.
    pub(crate) async fn stop(&mut self, patience: Duration) -> Result<()> {
        self.wish.send_replace(Wish::Stop { patience });
        for _ in 0..self.threads {
            match self.note().await? {
                Note::Failed(what) => bail!("{what}"),
                Note::Connected | Note::Ended => {}
            }
        }
        Ok(())
    }

    async fn note(&mut self) -> Result<Note> {
        let note = self.notes.recv().await;
        note.ok_or_else(|| anyhow!("a generator's thread panicked"))
    }
}

/// By which `/proc` tells the CPU time of these threads from the others'.
pub(crate) const THREADS: &str = "bench-dev-";
/// Of the timeline.
pub(crate) const INTERVAL: Duration = Duration::from_millis(250);
/// The first request is due a little after the word to send.
const LEAD: Duration = Duration::from_millis(20);
