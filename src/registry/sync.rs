//! Keeps the known pixels those of the upstream: asks for each ad account's list with the gateway's own token, and for
//! single pixels that are seen often (`super::lookups`). Its thread also tells last events (`super::report`).
//!
//! A thread of its own, of a lower priority, so that neither a slow upstream nor a long list is felt by events. Lists
//! that arrive at about the same time are taken over together (`super::lists`): one transaction and one new snapshot
//! for all of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join3;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::lists::{self, Account, Outcome};
use super::{Registry, lookups, report};
use crate::upstream::{Client, Connector, Gate, Options};

/// Accounts that are asked for at the same time.
const ACCOUNTS: usize = 8;
/// Own calls that may be open at once: those, a look-up and a report.
pub const CALLS: usize = ACCOUNTS + 2;
/// Lists are taken over together when there are so many, or so many pixels in them (which bounds their memory), or when
/// the first has waited so long for others.
const TOGETHER: (usize, usize, Duration) = (64, 10_000, Duration::from_millis(100));

/// How much nicer than the workers its thread is: about a tenth of their share of a core that all of them want. Not
/// less, as management calls wait for the registry's lock.
const NICER: i32 = 10;

/// The running thread.
pub struct Sync {
    stop: Arc<Notify>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Sync {
    /// Starts it; with no ad accounts and no token it ends at once.
    pub fn start(
        registry: Arc<Registry>,
        upstream: Options,
        connector: Connector,
        gate: Arc<Gate>,
    ) -> std::io::Result<Sync> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let handle = thread::Builder::new().name("registry-sync".into()).spawn(move || {
            // On Linux that holds for the calling thread alone. Where it is refused all of them are equal.
            rustix::process::nice(NICER).ok();
            let work = async {
                let client = Client::new(upstream, connector, gate);
                tokio::select! {
                    _ = join3(
                        run(&registry, &client),
                        lookups::run(&registry, &client),
                        report::run(&registry, &client),
                    ) => {}
                    () = stopped.notified() => {}
                }
            };
            LocalSet::new().block_on(&runtime, work);
            // A question to DNS may still be waiting for its answer; nobody waits for it.
            runtime.shutdown_background();
        })?;
        Ok(Sync { stop, handle: Mutex::new(Some(handle)) })
    }

    /// Ends it and waits for that. Blocks for as long as one statement of SQLite takes.
    pub fn stop(&self) {
        self.stop.notify_one();
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if handle.is_some_and(|handle| handle.join().is_err()) {
            tracing::error!("the thread that syncs pixels panicked");
        }
    }
}

async fn run(registry: &Registry, client: &Client) {
    let clock = registry.inner.clock.clone();
    let mut accounts: Vec<Account> =
        registry.inner.options.learning.ad_accounts.iter().map(|id| Account::new(id)).collect();
    if accounts.is_empty() {
        return;
    }
    let mut asked = FuturesUnordered::new();
    let (mut answers, mut pixels) = (Vec::<Outcome>::new(), 0);
    let mut first = clock.monotonic();
    loop {
        let now = clock.monotonic();
        while asked.len() < ACCOUNTS
            && let Some(index) = next(&accounts).filter(|index| accounts[*index].due <= now)
        {
            asked.push(accounts[index].ask(index, now, registry, client));
        }
        let is_full = answers.len() >= TOGETHER.0 || pixels >= TOGETHER.1 || now >= first + TOGETHER.2;
        if !answers.is_empty() && (is_full || asked.is_empty()) {
            pixels = 0;
            lists::settle(&mut accounts, std::mem::take(&mut answers), registry);
            continue;
        }
        // Until one of those that were asked answers, the next is due and may be asked, or answers have waited enough.
        let due = next(&accounts).filter(|_| asked.len() < ACCOUNTS).map(|index| accounts[index].due);
        let gathered = (!answers.is_empty()).then_some(first + TOGETHER.2);
        let until = [due, gathered].into_iter().flatten().min().unwrap_or(Duration::MAX);
        let wait = until.saturating_sub(now);
        if asked.is_empty() {
            tokio::time::sleep(wait).await;
        } else if let Ok(Some(outcome)) = timeout(wait, asked.next()).await {
            if answers.is_empty() {
                first = clock.monotonic();
            }
            pixels += outcome.len();
            answers.push(outcome);
        }
    }
}

/// The account that has been due the longest of those that are not being asked. By that each has its turn where a round
/// takes longer than the interval.
fn next(accounts: &[Account]) -> Option<usize> {
    let idle = accounts.iter().enumerate().filter(|(_, account)| !account.is_asked);
    idle.min_by_key(|(_, account)| account.due).map(|(index, _)| index)
}
