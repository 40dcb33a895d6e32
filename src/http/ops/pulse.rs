//! Whether the HTTP workers still turn their loops: each beats once a second, and the ops listener's own loop counts.
//!
//! Time is counted in turns of the observer, not by a clock: a process that was frozen as a whole (a suspended machine,
//! SIGSTOP) has missed nothing when it thaws.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::rt::time::sleep;

/// How often workers beat and the observer counts.
const BEAT: Duration = Duration::from_secs(1);
/// A worker that missed this many counts is stuck: its loop does nothing that takes a tenth of this.
const STUCK_TURNS: u64 = 10;
/// The beat of a worker that has ended.
const ENDED: u64 = u64::MAX;

/// The observer.
#[derive(Debug)]
pub struct Pulse {
    turns: AtomicU64,
    workers: usize,
    /// When each worker last beat, in turns. Bounded: the place of one that ended goes to the next.
    beats: Mutex<Vec<Arc<AtomicU64>>>,
}

/// A worker's end, to be made on its own thread. Dropping it says that the worker has ended.
#[derive(Debug)]
pub struct Heart {
    pulse: Arc<Pulse>,
    beat: Arc<AtomicU64>,
}

/// What is wrong with the workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// Workers whose loop stands.
    pub stuck: usize,
    /// Workers that should be there and are not.
    pub dead: usize,
}

impl Pulse {
    /// For this many workers.
    pub fn new(workers: usize) -> Arc<Pulse> {
        Arc::new(Pulse { turns: AtomicU64::new(0), workers, beats: Mutex::default() })
    }

    /// Counts turns for ever; run on the ops listener's own loop.
    pub async fn run(self: Arc<Pulse>) {
        loop {
            sleep(BEAT).await;
            self.turn();
        }
    }

    fn turn(&self) {
        self.turns.fetch_add(1, Relaxed);
    }

    /// A worker more, alive as of now.
    pub fn heart(self: &Arc<Pulse>) -> Heart {
        let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let free = beats.iter().find(|beat| beat.load(Relaxed) == ENDED).cloned();
        let beat = free.unwrap_or_else(|| {
            beats.push(Arc::default());
            beats[beats.len() - 1].clone()
        });
        let heart = Heart { pulse: self.clone(), beat };
        heart.beat();
        heart
    }

    /// What is wrong now.
    pub fn faults(&self) -> Faults {
        let turns = self.turns.load(Relaxed);
        let mut faults = Faults { stuck: 0, dead: self.workers };
        for beat in self.beats.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let beat = beat.load(Relaxed);
            faults.dead = faults.dead.saturating_sub(usize::from(beat != ENDED));
            faults.stuck += usize::from(beat != ENDED && turns.saturating_sub(beat) > STUCK_TURNS);
        }
        faults
    }
}

impl Heart {
    /// Beats for as long as the worker's loop turns.
    pub async fn run(self) {
        loop {
            self.beat();
            sleep(BEAT).await;
        }
    }

    fn beat(&self) {
        self.beat.store(self.pulse.turns.load(Relaxed), Relaxed);
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.beat.store(ENDED, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(stuck: usize, dead: usize) -> Faults {
        Faults { stuck, dead }
    }

    #[test]
    fn silence_is_noticed_and_a_beat_ends_it() {
        let pulse = Pulse::new(2);
        assert_eq!(pulse.faults(), faults(0, 2), "none has started");
        let (first, second) = (pulse.heart(), pulse.heart());
        assert_eq!(pulse.faults(), faults(0, 0));
        (0..STUCK_TURNS).for_each(|_| pulse.turn());
        assert_eq!(pulse.faults(), faults(0, 0));
        second.beat();
        pulse.turn();
        assert_eq!(pulse.faults(), faults(1, 0), "the first is silent");
        first.beat();
        assert_eq!(pulse.faults(), faults(0, 0));
    }

    #[test]
    fn a_worker_that_ended_is_missed_until_another_takes_its_place() {
        let pulse = Pulse::new(1);
        for _ in 0..100 {
            let heart = pulse.heart();
            assert_eq!(pulse.faults(), faults(0, 0));
            drop(heart);
            assert_eq!(pulse.faults(), faults(0, 1));
        }
        assert_eq!(pulse.beats.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_loop_that_is_blocked_is_seen_from_another_thread() {
        let pulse = Pulse::new(1);
        let (block, blocked) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = std::sync::mpsc::channel();
        let on_worker = pulse.clone();
        let worker = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let beating = actix_web::rt::spawn(on_worker.heart().run());
                // A turn of the loop, so that it beats.
                actix_web::rt::task::yield_now().await;
                begin.send(()).unwrap();
                // What no handler should do: block the thread until the test lets go.
                blocked.recv().unwrap_err();
                while on_worker.faults().stuck > 0 {
                    sleep(Duration::from_millis(1)).await;
                }
                beating.abort();
            });
        });
        begun.recv_timeout(Duration::from_secs(20)).expect("never began");
        assert_eq!(pulse.faults(), faults(0, 0));
        (0..=STUCK_TURNS + 1).for_each(|_| pulse.turn());
        assert_eq!(pulse.faults(), faults(1, 0));
        drop(block);
        worker.join().unwrap();
        assert_eq!(pulse.faults(), faults(0, 1), "its system has ended");
    }
}
