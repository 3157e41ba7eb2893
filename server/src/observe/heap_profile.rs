//! Where memory was taken: samples of allocations, in the format of Google's pprof.
//!
//! As in Go about one allocation is looked at for every 512 KiB that a thread takes; what is shown is
//! scaled to all of them. Until [`start`] an allocation costs one load more than without this.
//!
//! Only what Rust code takes is seen. RocksDB takes its memory from the allocator past Rust; what it holds is
//! in `/metrics`.
//!
//! This is one of the few files with `unsafe`: an allocator cannot be written without. It passes every call on
//! to the allocator inside, with the same arguments, and looks at addresses without following them.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::profile::{Tables, messages};

/// Bytes between two samples, on average; Go's number.
const SAMPLE_BYTES: u64 = 512 << 10;
/// Frames of a stack; Go's number.
const FRAMES_MAX: usize = 64;
/// Different stacks; what comes later is put together, so that the profile stays small.
const STACKS_MAX: usize = 16 << 10;
/// Slots of [`FILTER`]. A store of 4 GiB has 8000 live samples, so nearly every other address finds its slot empty.
const FILTER_SLOTS: usize = 1 << 18;

static IS_ON: AtomicBool = AtomicBool::new(false);
/// How many live samples have an address in a slot. Most addresses that are given back were never sampled, and see
/// that here. A count that was ever full stays so.
static FILTER: [AtomicU8; FILTER_SLOTS] = [const { AtomicU8::new(0) }; FILTER_SLOTS];
/// The library's mutex, because it takes no memory.
static SAMPLES: Mutex<Option<Samples>> = Mutex::new(None);

thread_local! {
    /// Bytes until the thread's next sample.
    static LEFT: Cell<u64> = const { Cell::new(SAMPLE_BYTES) };
    /// The thread's random numbers.
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// The thread is at work on the samples: what it takes and gives back meanwhile is theirs.
    static IS_BUSY: Cell<bool> = const { Cell::new(false) };
}

/// An allocator whose allocations are sampled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampled<A>(pub A);

// SAFETY: every call goes to the allocator inside with the arguments that came, and its answer goes back.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Sampled<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the allocator inside asks for.
        let address = unsafe { self.0.alloc(layout) };
        if IS_ON.load(Ordering::Relaxed) {
            taken(address, layout.size());
        }
        address
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let address = unsafe { self.0.alloc_zeroed(layout) };
        if IS_ON.load(Ordering::Relaxed) {
            taken(address, layout.size());
        }
        address
    }

    #[inline]
    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !IS_ON.load(Ordering::Relaxed) {
            // SAFETY: as above.
            return unsafe { self.0.realloc(address, layout, size) };
        }
        // Before the address can be somebody else's.
        given_back(address);
        // SAFETY: as above.
        let moved = unsafe { self.0.realloc(address, layout, size) };
        taken(moved, size);
        moved
    }

    #[inline]
    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        if IS_ON.load(Ordering::Relaxed) {
            given_back(address);
        }
        // SAFETY: as above.
        unsafe { self.0.dealloc(address, layout) };
    }
}

/// Takes samples from now on, for as long as the process lives.
pub fn start() {
    SAMPLES
        .lock()
        .expect("nothing panics while it holds the samples")
        .get_or_insert_default();
    IS_ON.store(true, Ordering::Relaxed);
}

/// What is known of the samples.
#[derive(Default)]
struct Samples {
    /// Stacks, as addresses of code from the inside out, and their numbers.
    numbers: HashMap<Box<[usize]>, usize>,
    /// By the stacks' numbers. The first one is for all stacks that came too late for a number.
    totals: Vec<Total>,
    /// Sizes and stacks of live samples by their addresses.
    live: HashMap<usize, (u64, usize)>,
}

/// The samples of one stack, scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Total {
    taken: Weight,
    live: Weight,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Weight {
    count: f64,
    bytes: f64,
}

/// What one sample of this size stands for: large allocations are sampled nearly always, small ones rarely.
fn weight(bytes: u64) -> Weight {
    let size = bytes.max(1) as f64;
    let chance = 1.0 - (-size / SAMPLE_BYTES as f64).exp();
    Weight {
        count: 1.0 / chance,
        bytes: size / chance,
    }
}

impl Weight {
    fn add(&mut self, sign: f64, other: Self) {
        self.count += sign * other.count;
        self.bytes += sign * other.bytes;
    }
}

fn slot(address: usize) -> &'static AtomicU8 {
    // The golden ratio spreads addresses, whose last bits are alike.
    let hash = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &FILTER[(hash >> 32) as usize % FILTER_SLOTS]
}

#[inline]
fn taken(address: *mut u8, size: usize) {
    let size = size as u64;
    // A thread that ends may have no numbers left.
    let is_due = LEFT.try_with(|left| match left.get().checked_sub(size) {
        Some(rest) if rest > 0 => {
            left.set(rest);
            false
        }
        _ => {
            left.set(next_interval());
            true
        }
    });
    if is_due.unwrap_or(false) && !address.is_null() {
        sample(address as usize, size);
    }
}

/// Bytes until the next sample: exponentially distributed, so that nothing periodic is seen too often or never.
fn next_interval() -> u64 {
    let random = RANDOM.try_with(|random| {
        let mut state = random.get();
        if state == 0 {
            // Different in each thread, and never zero.
            state = std::ptr::from_ref(random) as u64 | 1;
        }
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        random.set(state);
        state
    });
    let fraction = (random.unwrap_or(1) >> 11) as f64 / (1_u64 << 53) as f64;
    let interval = -(1.0 - fraction).ln() * SAMPLE_BYTES as f64;
    (interval as u64).max(1)
}

/// Runs something whose own allocations are not looked at, unless this thread is at such a thing already.
fn unseen<R>(work: impl FnOnce() -> R) -> Option<R> {
    let was_busy = IS_BUSY.try_with(|busy| busy.replace(true)).unwrap_or(true);
    if was_busy {
        return None;
    }
    let result = work();
    let _ = IS_BUSY.try_with(|busy| busy.set(false));
    Some(result)
}

/// Runs something with the samples. It may take memory, and no other lock.
fn with_samples<R>(work: impl FnOnce(&mut Samples) -> R) -> Option<R> {
    let locked = || match SAMPLES.lock() {
        Ok(mut samples) => samples.as_mut().map(work),
        Err(_) => None,
    };
    unseen(locked).flatten()
}

#[cold]
fn sample(address: usize, size: u64) {
    let mut frames = [0; FRAMES_MAX];
    let mut count = 0;
    // Before the samples are locked: the library has a lock of its own, and whoever looks names up takes memory
    // while it holds that.
    unseen(|| {
        backtrace::trace(|frame| {
            frames[count] = frame.ip() as usize;
            count += 1;
            count < FRAMES_MAX
        });
    });
    if count > 0 {
        with_samples(|samples| samples.take(address, size, &frames[..count]));
    }
}

#[inline]
fn given_back(address: *mut u8) {
    if slot(address as usize).load(Ordering::Relaxed) != 0 {
        with_samples(|samples| samples.give_back(address as usize));
    }
}

impl Samples {
    fn take(&mut self, address: usize, size: u64, frames: &[usize]) {
        if self.totals.is_empty() {
            self.totals.push(Total::default());
        }
        let number = match self.numbers.get(frames) {
            Some(number) => *number,
            None if self.numbers.len() == STACKS_MAX => 0,
            None => {
                let number = self.totals.len();
                self.numbers.insert(frames.into(), number);
                self.totals.push(Total::default());
                number
            }
        };
        let total = &mut self.totals[number];
        total.taken.add(1.0, weight(size));
        total.live.add(1.0, weight(size));
        self.live.insert(address, (size, number));
        // A full count stays full.
        let _ = slot(address).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            count.checked_add(1)
        });
    }

    fn give_back(&mut self, address: usize) {
        let Some((size, number)) = self.live.remove(&address) else {
            return;
        };
        self.totals[number].live.add(-1.0, weight(size));
        let _ = slot(address).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count != u8::MAX).then_some(count.saturating_sub(1))
        });
    }
}

/// What a viewer shows first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// What is held now.
    Live,
    /// Everything that was ever taken.
    Taken,
}

/// The encoded `perftools.profiles.Profile`; nothing before [`start`]. Takes seconds: names are looked up.
#[must_use]
pub fn heap_profile(view: View) -> Option<Vec<u8>> {
    if !IS_ON.load(Ordering::Relaxed) {
        return None;
    }
    // Names are looked up without the lock: that takes long, and needs memory.
    let (numbers, totals) =
        with_samples(|samples| (samples.numbers.clone(), samples.totals.clone()))?;
    let mut tables = Tables::default();
    tables.text("");
    let mut kind = |kind, unit| messages::ValueType {
        kind: tables.text(kind),
        unit: tables.text(unit),
    };
    let sample_types = vec![
        kind("alloc_objects", "count"),
        kind("alloc_space", "bytes"),
        kind("inuse_objects", "count"),
        kind("inuse_space", "bytes"),
    ];
    let period_type = kind("space", "bytes");
    let (taken_type, live_type) = (sample_types[1].kind, sample_types[3].kind);
    let empty: Box<[usize]> = Box::default();
    let samples = numbers
        .iter()
        .map(|(frames, number)| (frames, totals[*number]))
        .chain(totals.first().map(|rest| (&empty, *rest)))
        .filter(|(_, total)| total.taken.count > 0.0)
        .map(|(frames, total)| messages::Sample {
            locations: locations(&mut tables, frames),
            values: [
                total.taken.count,
                total.taken.bytes,
                total.live.count,
                total.live.bytes,
            ]
            // Rounding may leave a little less than nothing.
            .map(|value| value.round().max(0.0) as i64)
            .to_vec(),
            labels: Vec::new(),
        })
        .collect();
    Some(tables.complete(messages::Profile {
        sample_types,
        samples,
        period_type: Some(period_type),
        period: i64::try_from(SAMPLE_BYTES).unwrap_or(i64::MAX),
        default_sample_type: match view {
            View::Live => live_type,
            View::Taken => taken_type,
        },
        ..Default::default()
    }))
}

/// The places of a stack, without those in this file and in the allocator.
fn locations(tables: &mut Tables, frames: &[usize]) -> Vec<u64> {
    let mut is_inside = true;
    let mut locations = Vec::new();
    for address in frames {
        let mut lines = Vec::new();
        // The address is where the call returns to; the call itself is before it.
        let call = address.saturating_sub(1) as *mut c_void;
        backtrace::resolve(call, |symbol| {
            let name = symbol
                .name()
                .map_or_else(String::new, |name| name.to_string());
            let system_name = symbol
                .name()
                .and_then(|name| name.as_str().map(str::to_owned))
                .unwrap_or_default();
            is_inside &= [
                "heap_profile",
                "backtrace::",
                "GlobalAlloc",
                "__rust_",
                "__rustc",
            ]
            .iter()
            .any(|inside| name.contains(inside));
            let file = symbol
                .filename()
                .map(|path| path.display().to_string())
                .unwrap_or_default();
            let function = tables.function(&name, &system_name, &file);
            lines.push((function, symbol.lineno().map_or(0, i64::from)));
        });
        if !is_inside && !lines.is_empty() {
            locations.push(tables.location(lines));
        }
    }
    locations
}

#[cfg(test)]
mod tests {
    use std::alloc::System;

    use super::*;

    #[test]
    fn a_sample_stands_for_what_was_not_looked_at() {
        // Of a small size about one in 512 KiB is looked at, of a large one each.
        let small = weight(1024);
        assert!((small.bytes - 524_800.0).abs() < 200.0, "{small:?}");
        let large = weight(100 << 20);
        assert!((large.count - 1.0).abs() < 1e-6, "{large:?}");
    }

    #[test]
    fn what_is_taken_is_seen_until_it_is_given_back() {
        let allocator = Sampled(System);
        let layout = Layout::from_size_align(64 << 20, 8).expect("a layout");
        start();
        let live = || {
            with_samples(|samples| {
                let live = samples.live.values().filter(|(size, _)| *size == 64 << 20);
                live.count()
            })
            .expect("nobody is at work")
        };
        // SAFETY: the layout is not empty; the memory is given back with the layout with which it was taken.
        unsafe {
            let address = allocator.alloc(layout);
            assert_eq!(live(), 1);
            let profile = heap_profile(View::Live).expect("it was started");
            let text = String::from_utf8_lossy(&profile).into_owned();
            for expected in [
                "inuse_space",
                "alloc_objects",
                "what_is_taken_is_seen_until_it_is_given_back",
            ] {
                assert!(text.contains(expected), "no {expected} in {text}");
            }
            let moved = allocator.realloc(address, layout, 1 << 20);
            assert_eq!(live(), 0);
            allocator.dealloc(
                moved,
                Layout::from_size_align(1 << 20, 8).expect("a layout"),
            );
        }
        let totals = with_samples(|samples| samples.totals.clone()).expect("nobody is at work");
        let taken: f64 = totals.iter().map(|total| total.taken.bytes).sum();
        assert!(taken >= f64::from(64 << 20), "{taken}");
    }

    #[test]
    fn intervals_are_random_and_of_the_right_length() {
        let count = 10_000_u64;
        let sum: u64 = (0..count).map(|_| next_interval()).sum();
        let mean = (sum / count) as f64;
        let wanted = SAMPLE_BYTES as f64;
        assert!((mean - wanted).abs() < wanted / 10.0, "{mean}");
    }
}
