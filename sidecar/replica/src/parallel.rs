//! A little work on several threads at once: what a start would else wait for.

use std::{
    num::NonZero,
    panic,
    sync::{Mutex, PoisonError},
    thread,
};

/// More threads than these would wait for memory.
const MOST: usize = 4;

/// Threads that this machine has for work that somebody waits for.
pub(crate) fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(MOST)
}

/// What `job` makes of each of `items`, in their order. This thread works as one of `threads`.
pub(crate) fn each<T: Send, R: Send>(threads: usize, items: Vec<T>, job: impl Fn(T) -> R + Sync) -> Vec<R> {
    let items = Mutex::new(items.into_iter().enumerate());
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || std::iter::from_fn(next).map(|(at, item)| (at, job(item))).collect::<Vec<_>>();
    let mut made = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut made = work();
        for other in others {
            made.extend(other.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked)));
        }
        made
    });
    made.sort_unstable_by_key(|(at, _)| *at);
    made.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_stays_whoever_did_the_work() {
        for threads in [1, 2, 7] {
            assert_eq!(each(threads, (0..1_000).collect(), |it| it * 2), (0..2_000).step_by(2).collect::<Vec<_>>());
        }
    }
}
