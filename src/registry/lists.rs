//! Ad accounts' lists of pixels: asked for, and taken over. An answer that failed, is absurd, or is empty where pixels
//! were known changes nothing but a counter.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

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

/// What is remembered of an account.
pub(super) struct Account {
    id: String,
    /// When it is to be asked for next.
    pub(super) due: Duration,
    /// It has been asked for, and its answer is not taken over yet.
    pub(super) is_asked: bool,
    failures: u32,
    /// Of the list that was taken over.
    etag: Option<HeaderValue>,
    synced: Option<(Duration, Timestamp)>,
    /// Known pixels that the list lacks, since when. Bounded by the known ones.
    missing: HashMap<PixelId, Duration>,
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
    List(Vec<Pixel>, Option<HeaderValue>),
}

impl Account {
    pub(super) fn new(id: &str) -> Account {
        Account {
            id: id.to_owned(),
            due: Duration::ZERO,
            is_asked: false,
            failures: 0,
            etag: None,
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
        let (id, etag) = (self.id.clone(), self.etag.clone());
        async move { Outcome { account, asked_at, answer: fetch(&id, etag, registry, client).await } }
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

async fn fetch(
    account: &str,
    etag: Option<HeaderValue>,
    registry: &Registry,
    client: &Client,
) -> Result<Answer, String> {
    let mut call = own::call(registry, Method::GET, &format!("/offsitepixels?fb_ad_account_id={account}"))?;
    call.headers.insert("prefer", HeaderValue::from_static(PREFER_ARCHIVED));
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
    let pixels = lessons::list(&body, account).ok_or("its answer is no list of pixels")?;
    Ok(Answer::List(pixels, answer.headers.get(header::ETAG).cloned()))
}

/// Takes answers over: all their pixels are stored, then known, at once.
pub(super) fn settle(accounts: &mut [Account], outcomes: Vec<Outcome>, registry: &Registry) {
    let of = |account: &Account| account.id.clone();
    let known = known_of(outcomes.iter().map(|outcome| of(&accounts[outcome.account])).collect(), registry);
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
            Answer::List(list, etag) => {
                let ids: HashSet<PixelId> = list.iter().map(|pixel| pixel.id).collect();
                // Of two accounts that list one pixel the first has it.
                pixels.extend(list.into_iter().filter(|pixel| seen.insert(pixel.id)));
                Some((ids, etag))
            }
        });
        listed.push((account, asked_at, ids));
    }
    let learnt = if pixels.is_empty() { Ok(0) } else { registry.learn(pixels).map_err(|error| error.to_string()) };
    for (index, asked_at, ids) in listed {
        let account = &mut accounts[index];
        let settled = ids.and_then(|ids| {
            if let Some((ids, etag)) = ids {
                account.etag = None;
                if *learnt.as_ref().map_err(Clone::clone)? > 0 {
                    let without_room = ids.iter().filter(|id| registry.find(**id).is_none()).count();
                    if without_room > 0 {
                        return Err(format!("{without_room} of its pixels find no room under registry.max_pixels"));
                    }
                }
                account.miss(known.get(&account.id).unwrap_or(&none), &ids, registry);
                account.etag = etag;
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
    for entry in registry.inner.directory.load().entries() {
        let account = entry.pixel.ad_account_id.as_deref();
        if let Some(ids) = account.and_then(|account| known.get_mut(account)) {
            ids.push(entry.pixel.id);
        }
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
