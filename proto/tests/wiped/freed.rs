//! An allocator that keeps what was freed as it was when it was freed, for tests that look for secrets in it.
//!
//! It sees the heap only. What lies on the stack, below where it is in use, is not searched: calls leave copies there that no code of
//! ours can reach.

// Each test binary has its own copy and uses what it needs.
#![allow(unsafe_code, unreachable_pub, dead_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Blocks that one run may free.
const MAX_BLOCKS: usize = 1 << 18;

/// To be the binary's global allocator.
pub struct Keeping;

static POINTERS: [AtomicPtr<u8>; MAX_BLOCKS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; MAX_BLOCKS];
static LENGTHS: [AtomicUsize; MAX_BLOCKS] = [const { AtomicUsize::new(0) }; MAX_BLOCKS];
static KEPT: AtomicUsize = AtomicUsize::new(0);
static ONE_RUN: Mutex<()> = Mutex::new(());

thread_local! {
    static KEEPS: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: all memory is the system allocator's. A block that is kept is never given back, so nobody else gets it.
unsafe impl GlobalAlloc for Keeping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    /// `realloc` stays the default, which always moves: what a block that grows leaves behind is seen here, too.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if KEEPS.get() {
            let at = KEPT.fetch_add(1, Ordering::Relaxed);
            if let (Some(pointer), Some(length)) = (POINTERS.get(at), LENGTHS.get(at)) {
                pointer.store(block, Ordering::Relaxed);
                length.store(layout.size(), Ordering::Relaxed);
            }
            return;
        }
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

/// What was freed on this thread in a run. Never given back.
pub struct Freed(MutexGuard<'static, ()>);

/// Runs this, and gives what it freed.
pub fn freed_by<T>(run: impl FnOnce() -> T) -> (T, Freed) {
    let guard = ONE_RUN.lock().unwrap_or_else(PoisonError::into_inner);
    KEPT.store(0, Ordering::Relaxed);
    KEEPS.set(true);
    let result = run();
    KEEPS.set(false);
    assert!(
        KEPT.load(Ordering::Relaxed) <= MAX_BLOCKS,
        "more was freed than is kept"
    );
    (result, Freed(guard))
}

impl Freed {
    pub fn blocks(&self) -> impl Iterator<Item = &[u8]> {
        let kept = KEPT.load(Ordering::Relaxed);
        POINTERS[..kept]
            .iter()
            .zip(&LENGTHS[..kept])
            .map(|(block, length)| {
                let (block, length) = (block.load(Ordering::Relaxed), length.load(Ordering::Relaxed));
                // SAFETY: the block was allocated with that length and is nobody else's since it was freed. What was never written in it
                // is read as well: as bytes whatever they are.
                unsafe { std::slice::from_raw_parts(block, length) }
            })
    }

    /// The lengths of the blocks in which the first half of this key stands.
    pub fn holding(&self, key: &[u8; 32]) -> Vec<usize> {
        let half = &key[..16];
        let holds = |block: &&[u8]| block.windows(half.len()).any(|window| window == half);
        self.blocks().filter(holds).map(<[u8]>::len).collect()
    }

    /// Whether 32 bytes that pass the test stand somewhere, at a place where a key may.
    pub fn any(&self, mut test: impl FnMut(&[u8; 32]) -> bool) -> bool {
        let places = |block: &'_ [u8]| -> Vec<[u8; 32]> {
            let windows = block.windows(32).step_by(ALIGNMENT);
            windows.filter_map(|window| window.try_into().ok()).collect()
        };
        self.blocks().any(|block| {
            places(block)
                .iter()
                .any(|window| *window != [0; 32] && test(window))
        })
    }
}

/// Keys within a larger block stand at such distances from its beginning: fields behind words do.
const ALIGNMENT: usize = 8;
