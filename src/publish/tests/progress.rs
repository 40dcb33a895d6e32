//! What is claimed to be complete is: against a model of clocks, workers, commits, crashes and publishing in any order.

use std::sync::{Arc, Mutex, MutexGuard};

use proptest::prelude::*;

use super::super::frontier::{Arrival, Frontier, Member};
use super::super::progress::{Rounds, promised};
use crate::record::Position;
use crate::time::Timestamp;

const WORKERS: usize = 3;
const BEGIN: u64 = 1_700_000_000_000;

/// One worker: its records are stamps.
#[derive(Default)]
struct Worker {
    newest: u64,
    chunk: Vec<u64>,
    /// Records handed over, and those of them that the committer wrote.
    handed: usize,
    done: usize,
}

/// A node and its Kafka.
#[derive(Default)]
struct World {
    clock: u64,
    workers: Vec<Worker>,
    queue: Vec<(usize, u64)>,
    journal: Vec<u64>,
    published: usize,
    claimed: u64,
}

impl World {
    fn hand_over(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        worker.handed += worker.chunk.len();
        let stamps = worker.chunk.drain(..).map(|stamp| (number, stamp));
        self.queue.extend(stamps);
    }

    /// The claim is made: nothing stamped before it is anywhere but in Kafka.
    fn claim(&mut self, moment: u64) {
        let on_the_way = self.workers.iter().flat_map(|worker| &worker.chunk);
        let queued = self.queue.iter().map(|(_, stamp)| stamp);
        let left = on_the_way.chain(queued).chain(&self.journal[self.published..]);
        let early: Vec<&u64> = left.filter(|stamp| **stamp < moment).collect();
        assert!(early.is_empty(), "{moment} is claimed, and there are {early:?}");
        assert!(moment >= self.claimed, "a claim is never taken back");
        self.claimed = moment;
    }
}

/// What may happen next.
#[derive(Clone, Debug)]
enum Step {
    Receive(usize),
    HandOver(usize),
    Commit(usize),
    Publish(usize),
    Clock(i64),
    Answer(usize),
    /// A worker dies, and another takes its place.
    Replace(usize),
    Ask,
    Look,
    /// `kill -9`, and the clock may be off when it starts again.
    Crash(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let worker = || 0..WORKERS;
    prop_oneof![
        6 => worker().prop_map(Step::Receive),
        3 => worker().prop_map(Step::HandOver),
        3 => (1..9_usize).prop_map(Step::Commit),
        3 => (1..9_usize).prop_map(Step::Publish),
        3 => (-2_000..5_000_i64).prop_map(Step::Clock),
        4 => worker().prop_map(Step::Answer),
        1 => worker().prop_map(Step::Replace),
        2 => Just(Step::Ask),
        6 => Just(Step::Look),
        1 => (-3_000_000..3_000_000_i64).prop_map(Step::Crash),
    ]
}

/// One run of the node, from start to crash.
struct Run {
    world: Arc<Mutex<World>>,
    frontier: Arc<Frontier>,
    members: Vec<Option<Member>>,
    rounds: Rounds,
}

impl Run {
    fn start(world: &Arc<Mutex<World>>) -> Run {
        let frontier = {
            let mut world = world.lock().unwrap();
            world.queue.clear();
            world.workers = (0..WORKERS).map(|_| Worker::default()).collect();
            // As `promised` has it; the model's clocks are never off by more than is believed.
            Arc::new(Frontier::new(Timestamp(world.claimed)))
        };
        let mut run = Run {
            world: world.clone(),
            frontier,
            members: (0..WORKERS).map(|_| None).collect(),
            rounds: Rounds::default(),
        };
        (0..WORKERS).for_each(|number| run.join(number));
        run
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn join(&mut self, number: usize) {
        // The old one says goodbye first: its records are under way.
        self.members[number] = None;
        self.world().workers[number].newest = 0;
        let world = self.world.clone();
        self.members[number] = Some(self.frontier.join(Box::new(move |moment| {
            let mut locked = world.lock().unwrap();
            let worker = &mut locked.workers[number];
            worker.newest = worker.newest.max(moment.0);
            locked.hand_over(number);
            let (goal, world) = (locked.workers[number].handed, world.clone());
            let arrival: Arrival = Box::new(move || world.lock().unwrap().workers[number].done >= goal);
            arrival
        })));
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Receive(number) => {
                let mut world = self.world();
                let (clock, claimed) = (world.clock, world.claimed);
                let worker = &mut world.workers[number];
                let stamp = clock.max(worker.newest);
                assert!(stamp >= claimed, "{claimed} was claimed, and now comes {stamp}");
                worker.newest = stamp;
                worker.chunk.push(stamp);
            }
            Step::HandOver(number) => self.world().hand_over(number),
            Step::Commit(count) => {
                let mut world = self.world();
                let count = count.min(world.queue.len());
                let committed: Vec<(usize, u64)> = world.queue.drain(..count).collect();
                for (number, stamp) in committed {
                    world.journal.push(stamp);
                    world.workers[number].done += 1;
                }
            }
            Step::Publish(count) => {
                let mut world = self.world();
                world.published = (world.published + count).min(world.journal.len());
            }
            Step::Clock(by) | Step::Crash(by) => {
                let mut world = self.world();
                world.clock = world.clock.saturating_add_signed(by);
            }
            Step::Answer(number) => {
                if let Some(member) = &mut self.members[number] {
                    member.answer();
                }
            }
            Step::Replace(number) => self.join(number),
            Step::Ask if self.rounds.is_asking() => {}
            Step::Ask => {
                self.frontier.raise(Timestamp(self.world().clock));
                self.rounds.ask(self.frontier.moment());
            }
            Step::Look => {
                if self.rounds.is_asking() && self.frontier.is_settled() {
                    let end = self.world().journal.len();
                    self.rounds.settle(Position(end as u64));
                }
                let reached = self.world().published;
                if let Some(moment) = self.rounds.reach(Position(reached as u64)) {
                    self.world().claim(moment.0);
                }
            }
        }
    }

    /// Everything goes well for a while: then what is claimed is the present.
    fn settle(mut self) {
        let all = (0..WORKERS).map(Step::Answer);
        let mut steps = vec![Step::Look, Step::Publish(9_999), Step::Look, Step::Ask];
        steps.extend(all);
        steps.extend([Step::Commit(9_999), Step::Look, Step::Publish(9_999), Step::Look]);
        for _ in 0..2 {
            steps.iter().for_each(|step| self.take(step));
        }
        let world = self.world();
        assert!(world.claimed >= world.clock, "an idle node is complete up to now");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_claimed_that_is_not_so_and_an_idle_node_claims_the_present(
        steps in prop::collection::vec(step(), 0..400)
    ) {
        let world = Arc::new(Mutex::new(World { clock: BEGIN, ..World::default() }));
        let mut run = Run::start(&world);
        for step in &steps {
            run.take(step);
            if matches!(step, Step::Crash(_)) {
                drop(run);
                // What was claimed is on disk: at most an hour behind it counts, and the model stays within that.
                let mut state = world.lock().unwrap();
                state.clock = state.clock.max(state.claimed.saturating_sub(3_600_000));
                drop(state);
                run = Run::start(&world);
            }
        }
        run.settle();
    }
}

#[test]
fn a_long_outage_is_remembered_in_larger_steps_and_never_beyond_what_is_published() {
    let mut rounds = Rounds::default();
    for number in 0..10_000 {
        rounds.ask(Timestamp(number * 1000));
        rounds.settle(Position(number));
    }
    let mut claims = 0;
    let mut before = None;
    for reached in 0..10_000 {
        let proven = rounds.reach(Position(reached));
        assert!(proven <= Some(Timestamp(reached * 1000)), "{proven:?} at {reached}");
        claims += u32::from(proven > before);
        before = proven;
    }
    assert!((64..=128).contains(&claims), "{claims}");
    assert!(before > Some(Timestamp(9_500_000)), "{before:?}");
}

#[test]
fn a_run_keeps_what_earlier_ones_reported_unless_the_clock_was_wrong_by_more_than_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    let kept = |text: &str| std::fs::write(dir.path().join("progress.json"), text).unwrap();
    assert_eq!(promised(dir.path(), Timestamp(5)), Timestamp(0), "none yet");
    kept("{\"complete_until_ms\":10000000}");
    for (now, begin) in [(20_000_000, 10_000_000), (10_000_000, 10_000_000), (6_400_000, 10_000_000), (6_399_999, 0)] {
        assert_eq!(promised(dir.path(), Timestamp(now)), Timestamp(begin), "{now}");
    }
    for damaged in ["", "{", "[]", "{\"complete_until_ms\":-1}"] {
        kept(damaged);
        assert_eq!(promised(dir.path(), Timestamp(5)), Timestamp(0), "{damaged}");
    }
}

#[test]
fn a_worker_that_stands_holds_progress_up_and_a_closed_journal_does_not_wait_for_it() {
    let frontier = Arc::new(Frontier::new(Timestamp(7)));
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    let member = frontier.join(Box::new(move |moment| {
        heard.lock().unwrap().push(moment);
        Box::new(|| true)
    }));
    assert!(frontier.is_settled(), "it begins with what is promised");
    frontier.raise(Timestamp(6));
    assert_eq!(frontier.moment(), Timestamp(7));
    frontier.raise(Timestamp(9));
    assert!(!frontier.is_settled());
    frontier.close();
    assert!(frontier.is_settled());
    drop(member);
    assert_eq!(*told.lock().unwrap(), [Timestamp(7), Timestamp(0)], "asked at its end for what it has");
}
