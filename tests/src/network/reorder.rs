//! A router that keeps each datagram for a time of its own: the kernel asks this process about every one (NFQUEUE), and gets its
//! answer when the time is over.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nfq::{Message, Queue, Verdict};

use super::Namespace;

/// Every namespace numbers its own.
pub(super) const QUEUE: u16 = 1;
/// Datagrams that may wait; what comes beyond that is lost.
const MAX_WAITING: u32 = 4096;
/// How exact times are: `nfq` does not let anybody wait for its descriptor.
const TICK: Duration = Duration::from_millis(1);

/// How long a datagram takes.
#[derive(Debug, Clone, Copy)]
pub struct Jitter {
    pub at_least: Duration,
    pub at_most: Duration,
}

/// Goes on until it is dropped; then everything that waits is let go, and nothing gets through any more.
pub struct Reordering {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    passed: AtomicU64,
    overtaken: AtomicU64,
}

/// A datagram until its time is over.
struct Waiting {
    due: Instant,
    /// In the order of arrival.
    number: u64,
    message: Message,
}

impl Reordering {
    pub(super) fn start(router: &Arc<Namespace>, jitter: Jitter) -> Self {
        let queue = router.run(open).expect("the kernel has NFQUEUE");
        let shared = Arc::new(Shared::default());
        let keeper = Keeper {
            queue,
            jitter,
            shared: shared.clone(),
            waiting: BinaryHeap::new(),
            arrived: 0,
            last: BTreeMap::new(),
        };
        let thread = Some(std::thread::spawn(move || keeper.run()));
        Self { shared, thread }
    }

    /// Datagrams let go so far, and how many of them after one that had come later from the same side.
    pub fn counts(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.shared.passed), load(&self.shared.overtaken))
    }
}

impl Drop for Reordering {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        // A second panic would hide the first.
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the router broke");
        }
    }
}

fn open() -> std::io::Result<Queue> {
    let mut queue = Queue::open()?;
    queue.bind(QUEUE)?;
    // What is in them is of no interest.
    queue.set_copy_range(QUEUE, 0)?;
    queue.set_queue_max_len(QUEUE, MAX_WAITING)?;
    queue.set_nonblocking(true);
    Ok(queue)
}

struct Keeper {
    queue: Queue,
    jitter: Jitter,
    shared: Arc<Shared>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    arrived: u64,
    /// The highest number let go from each side.
    last: BTreeMap<u32, u64>,
}

impl Keeper {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.take();
            self.let_go(Instant::now());
            std::thread::sleep(TICK);
        }
        self.let_go(Instant::now() + self.jitter.at_most);
    }

    fn take(&mut self) {
        loop {
            let message = match self.queue.recv() {
                Ok(message) => message,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => panic!("NFQUEUE: {error}"),
            };
            self.arrived += 1;
            let takes = rand::random_range(self.jitter.at_least..=self.jitter.at_most);
            self.waiting.push(Reverse(Waiting {
                due: Instant::now() + takes,
                number: self.arrived,
                message,
            }));
        }
    }

    fn let_go(&mut self, now: Instant) {
        while self.waiting.peek().is_some_and(|first| first.0.due <= now) {
            let Some(Reverse(mut first)) = self.waiting.pop() else {
                return;
            };
            self.shared.passed.fetch_add(1, Ordering::Relaxed);
            let last = self.last.entry(first.message.get_indev()).or_default();
            if first.number < *last {
                self.shared.overtaken.fetch_add(1, Ordering::Relaxed);
            }
            *last = first.number.max(*last);
            first.message.set_verdict(Verdict::Accept);
            // It may be gone with its network.
            let _ = self.queue.verdict(first.message);
        }
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}
