//! Keeps the known pixels those of the upstream: asks for each ad account's list with the gateway's own token, and for
//! single pixels that are seen often (`super::lookups`). Its thread also tells last events (`super::report`).
//!
//! A thread of its own, so that neither a slow upstream nor a long list is felt by events. An answer that failed, is
//! absurd, or is empty where pixels were known changes nothing but a counter.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::future::{join_all, join3};
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::{PREFER_ARCHIVED, Registry, lessons, lookups, own, report};
use crate::pixel::{Pixel, PixelId};
use crate::time::Timestamp;
use crate::upstream::{Client, Connector, Gate, HeaderValue, Method, Options, header};

/// Accounts that are asked for at the same time.
const ACCOUNTS: usize = 8;
/// Own calls that may be open at once: those, a look-up and a report.
pub const CALLS: usize = ACCOUNTS + 2;
/// Longest list: a hundred thousand pixels with their snippets.
const LIST_MAX_BYTES: usize = 128 << 20;
/// The first wait after a failure; doubled up to `registry.sync_interval`.
const RETRY: Duration = Duration::from_secs(1);
/// How many intervals a list is good for (contract §4).
const GOOD_FOR: u32 = 3;

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

/// What is remembered of an account.
struct Account {
    id: String,
    due: Duration,
    failures: u32,
    /// Of the list that was taken over.
    etag: Option<HeaderValue>,
    synced: Option<(Duration, Timestamp)>,
    /// Known pixels that the list lacks, since when. Bounded by the known ones.
    missing: HashMap<PixelId, Duration>,
}

async fn run(registry: &Registry, client: &Client) {
    let clock = registry.inner.clock.clone();
    let learning = registry.inner.options.learning.clone();
    let new = |id: &String| Account {
        id: id.clone(),
        due: Duration::ZERO,
        failures: 0,
        etag: None,
        synced: None,
        missing: HashMap::new(),
    };
    let mut accounts: Vec<Account> = learning.ad_accounts.iter().map(new).collect();
    while let Some(next) = accounts.iter().map(|account| account.due).min() {
        let now = clock.monotonic();
        if next > now {
            tokio::time::sleep(next - now).await;
            continue;
        }
        // The longest due first: where a round takes longer than the interval, the first of the list are due again
        // before the last were asked for once.
        let mut due: Vec<&mut Account> = accounts.iter_mut().filter(|account| account.due <= now).collect();
        due.sort_by_key(|account| account.due);
        join_all(due.into_iter().take(ACCOUNTS).map(|account| account.sync(registry, client))).await;
        let mut complete_until = Duration::MAX;
        let mut oldest = Timestamp::MAX;
        for account in &accounts {
            let (since, at) = account.synced.unwrap_or_default();
            let good_for = if account.synced.is_some() { learning.sync_interval * GOOD_FOR } else { Duration::ZERO };
            complete_until = complete_until.min(since + good_for);
            oldest = oldest.min(at);
        }
        registry.inner.freshness.synced(complete_until, oldest);
    }
}

impl Account {
    async fn sync(&mut self, registry: &Registry, client: &Client) {
        let clock = &registry.inner.clock;
        let interval = registry.inner.options.learning.sync_interval;
        let began = clock.monotonic();
        let wait = match self.fetch(registry, client).await {
            Ok(()) => {
                if self.failures > 0 {
                    tracing::info!(account = self.id, "the ad account's pixels are synced again");
                }
                self.failures = 0;
                self.synced = Some((began, clock.now()));
                interval
            }
            Err(error) => {
                registry.inner.freshness.failed();
                // Told once per change: an upstream may be away for days.
                if self.failures == 0 {
                    tracing::warn!(account = self.id, error, "an ad account's pixels could not be synced");
                }
                let wait = RETRY.saturating_mul(1 << self.failures.min(16)).min(interval);
                self.failures = self.failures.saturating_add(1);
                wait
            }
        };
        // Up to a tenth earlier, so that accounts and gateways that started together drift apart.
        self.due = clock.monotonic() + wait.mul_f64(1.0 - rand::random::<f64>() / 10.0);
    }

    async fn fetch(&mut self, registry: &Registry, client: &Client) -> Result<(), String> {
        let mut call = own::call(registry, Method::GET, &format!("/offsitepixels?fb_ad_account_id={}", self.id))?;
        call.headers.insert("prefer", HeaderValue::from_static(PREFER_ARCHIVED));
        if let Some(etag) = &self.etag {
            call.headers.insert(header::IF_NONE_MATCH, etag.clone());
        }
        let answer = client.call(&call).await.map_err(|error| error.to_string())?;
        own::heed(registry, &answer);
        match answer.status {
            200 => {}
            304 if self.etag.is_some() => return self.settle(registry, None),
            status => return Err(format!("registry.upstream answered {status}")),
        }
        let body = own::read(answer.body, LIST_MAX_BYTES).await?;
        let pixels = lessons::list(&body, &self.id).ok_or("its answer is no list of pixels")?;
        drop(body);
        self.settle(registry, Some(pixels))?;
        self.etag = answer.headers.get(header::ETAG).cloned();
        Ok(())
    }

    /// Takes a list over, or (`None`) the word that it is the last one still.
    fn settle(&mut self, registry: &Registry, pixels: Option<Vec<Pixel>>) -> Result<(), String> {
        let now = registry.inner.clock.monotonic();
        if let Some(pixels) = pixels {
            self.etag = None;
            let known = registry.list(&self.id);
            if pixels.is_empty() && !known.is_empty() {
                return Err("its list is empty, and pixels of it are known".to_owned());
            }
            let listed: std::collections::HashSet<PixelId> = pixels.iter().map(|pixel| pixel.id).collect();
            let without_room = registry.learn(pixels).map_err(|error| error.to_string())?;
            if without_room > 0 {
                return Err(format!("{without_room} of its pixels find no room under registry.max_pixels"));
            }
            let lacking = known.iter().map(|entry| entry.pixel.id).filter(|id| !listed.contains(id));
            self.missing = lacking.map(|id| (id, self.missing.get(&id).copied().unwrap_or(now))).collect();
        }
        let grace = registry.inner.options.learning.grace;
        let over = |since: &Duration| now.saturating_sub(*since) >= grace;
        let gone: Vec<PixelId> = self.missing.iter().filter(|(_, since)| over(since)).map(|(id, _)| *id).collect();
        if !gone.is_empty() {
            registry.forget(&gone).map_err(|error| error.to_string())?;
            tracing::info!(
                account = self.id,
                count = gone.len(),
                "pixels that the upstream no longer lists are forgotten"
            );
            self.missing.retain(|_, since| !over(since));
        }
        Ok(())
    }
}
