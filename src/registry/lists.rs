//! Ad accounts' lists of pixels: asked for, and taken over. An answer that failed, is absurd, or is empty where pixels
//! were known changes nothing but a counter.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{PREFER_ARCHIVED, Registry, lessons, own};
use crate::pixel::{Pixel, PixelId};
use crate::time::Timestamp;
use crate::upstream::{Client, HeaderValue, Method, header};

/// Longest list: a hundred thousand pixels with their snippets.
const LIST_MAX_BYTES: usize = 128 << 20;
/// The first wait after a failure; doubled up to `registry.sync_interval`.
const RETRY: Duration = Duration::from_secs(1);
/// How many intervals a list is good for (contract §4).
const GOOD_FOR: u32 = 3;

/// Pixels that are looked through in one go: some 50 µs.
const RUN: usize = 2048;

/// What is remembered of an account.
pub(super) struct Account {
    id: String,
    /// When it is to be asked for next.
    pub(super) due: Duration,
    /// It has been asked for, and its answer is not taken over yet.
    pub(super) is_asked: bool,
    failures: u32,
    /// The list that was taken over, to know it again.
    taken: Option<Taken>,
    synced: Option<(Duration, Timestamp)>,
    /// Known pixels that the list lacks, since when. Bounded by the known ones.
    missing: HashMap<PixelId, Duration>,
}

/// How a list is known again: by its ETag, or where the upstream gives none, by its bytes.
#[derive(Clone)]
struct Taken {
    etag: Option<HeaderValue>,
    digest: [u8; 32],
}

/// What came of asking for an account.
pub(super) struct Outcome {
    account: usize,
    asked_at: Duration,
    answer: Result<Answer, String>,
}

impl Outcome {
    /// How many pixels it lists.
    pub(super) fn len(&self) -> usize {
        match &self.answer {
            Ok(Answer::List(pixels, _)) => pixels.len(),
            Ok(Answer::Same) | Err(_) => 0,
        }
    }
}

enum Answer {
    /// The list is that of last time.
    Same,
    List(Vec<Pixel>, Taken),
}

impl Account {
    pub(super) fn new(id: &str) -> Account {
        Account {
            id: id.to_owned(),
            due: Duration::ZERO,
            is_asked: false,
            failures: 0,
            taken: None,
            synced: None,
            missing: HashMap::new(),
        }
    }

    /// Asks for it; `account` is its own number.
    pub(super) fn ask<'a>(
        &mut self,
        account: usize,
        asked_at: Duration,
        registry: &'a Registry,
        client: &'a Client,
    ) -> impl Future<Output = Outcome> + use<'a> {
        self.is_asked = true;
        // What a reply to somebody taught may have been undone since: the same list as before does then say something.
        if registry.inner.retaught().remove(&self.id) {
            self.taken = None;
        }
        let (id, taken) = (self.id.clone(), self.taken.clone());
        async move {
            let answer = fetch(&id, taken, registry, client).await;
            // A list was read; workers that share this core come first (`super::sync`).
            std::thread::yield_now();
            Outcome { account, asked_at, answer }
        }
    }

    fn succeeded(&mut self, asked_at: Duration, registry: &Registry) {
        if self.failures > 0 {
            tracing::info!(account = self.id, "the ad account's pixels are synced again");
        }
        self.failures = 0;
        self.synced = Some((asked_at, registry.inner.clock.now()));
        self.wait(registry.inner.options.learning.sync_interval, registry);
    }

    fn failed(&mut self, error: &str, registry: &Registry) {
        registry.inner.freshness.failed();
        // Told once per change: an upstream may be away for days.
        if self.failures == 0 {
            tracing::warn!(account = self.id, error, "an ad account's pixels could not be synced");
        }
        let interval = registry.inner.options.learning.sync_interval;
        let wait = RETRY.saturating_mul(1 << self.failures.min(16)).min(interval);
        self.failures = self.failures.saturating_add(1);
        self.wait(wait, registry);
    }

    /// Up to a tenth earlier, so that accounts and gateways that started together drift apart.
    fn wait(&mut self, wait: Duration, registry: &Registry) {
        self.due = registry.inner.clock.monotonic() + wait.mul_f64(1.0 - rand::random::<f64>() / 10.0);
        self.is_asked = false;
    }
}

async fn fetch(account: &str, taken: Option<Taken>, registry: &Registry, client: &Client) -> Result<Answer, String> {
    let mut call = own::call(registry, Method::GET, &format!("/offsitepixels?fb_ad_account_id={account}"))?;
    call.headers.insert("prefer", HeaderValue::from_static(PREFER_ARCHIVED));
    let etag = taken.as_ref().and_then(|taken| taken.etag.clone());
    let is_conditional = etag.is_some();
    if let Some(etag) = etag {
        call.headers.insert(header::IF_NONE_MATCH, etag);
    }
    let answer = client.call(&call).await.map_err(|error| error.to_string())?;
    own::heed(registry, &answer);
    match answer.status {
        200 => {}
        304 if is_conditional => return Ok(Answer::Same),
        status => return Err(format!("registry.upstream answered {status}")),
    }
    let body = own::read(answer.body, LIST_MAX_BYTES).await?;
    let digest = Sha256::digest(&body).into();
    if taken.is_some_and(|taken| taken.digest == digest) {
        return Ok(Answer::Same);
    }
    let pixels = lessons::list(&body, account).ok_or("its answer is no list of pixels")?;
    Ok(Answer::List(pixels, Taken { etag: answer.headers.get(header::ETAG).cloned(), digest }))
}

/// Takes answers over: all their pixels are stored, then known, at once.
pub(super) fn settle(accounts: &mut [Account], outcomes: Vec<Outcome>, registry: &Registry) {
    let is_new = |outcome: &&Outcome| matches!(outcome.answer, Ok(Answer::List(..)));
    let new = outcomes.iter().filter(is_new).map(|outcome| accounts[outcome.account].id.clone());
    let known = known_of(new.collect(), registry);
    let none = Vec::new();
    let (mut pixels, mut seen) = (Vec::new(), HashSet::new());
    let mut listed = Vec::new();
    for Outcome { account, asked_at, answer } in outcomes {
        let known = known.get(&accounts[account].id).unwrap_or(&none);
        let checked = answer.and_then(|answer| match answer {
            Answer::List(list, _) if list.is_empty() && !known.is_empty() => {
                Err("its list is empty, and pixels of it are known".to_owned())
            }
            answer => Ok(answer),
        });
        let ids = checked.map(|answer| match answer {
            Answer::Same => None,
            Answer::List(list, taken) => {
                let ids: HashSet<PixelId> = list.iter().map(|pixel| pixel.id).collect();
                // Of two accounts that list one pixel the first has it.
                pixels.extend(list.into_iter().filter(|pixel| seen.insert(pixel.id)));
                Some((ids, taken))
            }
        });
        listed.push((account, asked_at, ids));
    }
    let learn = |pixels| registry.take_over(pixels).map(|(without_room, _)| without_room);
    let learnt = if pixels.is_empty() { Ok(0) } else { learn(pixels).map_err(|error| error.to_string()) };
    for (index, asked_at, ids) in listed {
        let account = &mut accounts[index];
        let settled = ids.and_then(|ids| {
            if let Some((ids, taken)) = ids {
                account.taken = None;
                if *learnt.as_ref().map_err(Clone::clone)? > 0 {
                    let without_room = ids.iter().filter(|id| registry.find(**id).is_none()).count();
                    if without_room > 0 {
                        return Err(format!("{without_room} of its pixels find no room under registry.max_pixels"));
                    }
                }
                account.miss(known.get(&account.id).unwrap_or(&none), &ids, registry);
                // What could not be stored is tried again with the next list.
                let unstored = registry.inner.unstored();
                account.taken = (!unstored.iter().any(|id| ids.contains(id))).then_some(taken);
            }
            account.forget(registry)
        });
        match settled {
            Ok(()) => account.succeeded(asked_at, registry),
            Err(error) => account.failed(&error, registry),
        }
    }
    tell_freshness(accounts, registry);
}

/// The pixels that are known of these accounts, in one pass over all.
fn known_of(accounts: HashSet<String>, registry: &Registry) -> HashMap<String, Vec<PixelId>> {
    let mut known: HashMap<String, Vec<PixelId>> = accounts.into_iter().map(|id| (id, Vec::new())).collect();
    if known.is_empty() {
        return known;
    }
    for entries in registry.inner.directory.load_full().entries().chunks(RUN) {
        for entry in entries {
            let account = entry.pixel.ad_account_id.as_deref();
            if let Some(ids) = account.and_then(|account| known.get_mut(account)) {
                ids.push(entry.pixel.id);
            }
        }
        std::thread::yield_now();
    }
    known
}

fn tell_freshness(accounts: &[Account], registry: &Registry) {
    let good_for = registry.inner.options.learning.sync_interval * GOOD_FOR;
    let mut complete_until = Duration::MAX;
    let mut oldest = Timestamp::MAX;
    for account in accounts {
        let (since, at) = account.synced.unwrap_or_default();
        let good_for = if account.synced.is_some() { good_for } else { Duration::ZERO };
        complete_until = complete_until.min(since + good_for);
        oldest = oldest.min(at);
    }
    registry.inner.freshness.synced(complete_until, oldest);
}

impl Account {
    /// Notes which known pixels the list lacks.
    fn miss(&mut self, known: &[PixelId], listed: &HashSet<PixelId>, registry: &Registry) {
        let now = registry.inner.clock.monotonic();
        let lacking = known.iter().copied().filter(|id| !listed.contains(id));
        self.missing = lacking.map(|id| (id, self.missing.get(&id).copied().unwrap_or(now))).collect();
    }

    /// Forgets those that it has lacked for `registry.grace`.
    fn forget(&mut self, registry: &Registry) -> Result<(), String> {
        let (now, grace) = (registry.inner.clock.monotonic(), registry.inner.options.learning.grace);
        let over = |since: &Duration| now.saturating_sub(*since) >= grace;
        let gone: Vec<PixelId> = self.missing.iter().filter(|(_, since)| over(since)).map(|(id, _)| *id).collect();
        if gone.is_empty() {
            return Ok(());
        }
        registry.forget(&gone).map_err(|error| error.to_string())?;
        let (account, count) = (&self.id, gone.len());
        tracing::info!(account, count, "pixels that the upstream no longer lists are forgotten");
        self.missing.retain(|_, since| !over(since));
        Ok(())
    }
}
