//! Last events of a fleet: a gateway tells an authority that is a pixelgate when its pixels fired last, and the
//! authority's `status` is true for all of them.
//!
//! Ages are told, not times, so that the two clocks need not agree. The authority never takes a time backwards or into
//! the future, and only for ad accounts that the token is for; so a report may come twice or late, and one that is lost
//! makes a status late and nothing else. A restart tells everything once more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::tokens::Grant;
use super::{Entry, Registry, own};
use crate::pixel::PixelId;
use crate::time::Timestamp;
use crate::upstream::{Client, HeaderValue, Method, header};

/// Where the authority takes reports, below `/offsitepixels`.
pub const PATH: &str = "last_events";
/// Pixels of one report: some 35 KB, below the smallest usual `limits.max_body_bytes`.
pub const PIXELS_MAX: usize = 1000;
/// Least time between two reports.
const PERIOD: Duration = Duration::from_secs(3);
/// Bound of the doubling after failures.
const PERIOD_MAX: Duration = Duration::from_secs(300);
/// Longest answer that is read.
const ANSWER_MAX_BYTES: usize = 4096;

/// `registry.report_last_events`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// To an authority that says it takes them.
    Auto,
    /// Without asking.
    Always,
    /// Not at all.
    Never,
}

/// How many reports came to what.
#[derive(Debug, Default)]
pub(super) struct Counts {
    taken: AtomicU64,
    failed: AtomicU64,
}

/// Runs until it is dropped; at once over where nothing is to be told.
pub(super) async fn run(registry: &Registry, client: &Client) {
    let learning = &registry.inner.options.learning;
    if learning.report == Report::Never || learning.token.is_none() {
        return;
    }
    let (mut first, mut failures) = (0, 0u32);
    loop {
        tokio::time::sleep(PERIOD.saturating_mul(1 << failures.min(16)).min(PERIOD_MAX)).await;
        if learning.report == Report::Auto && !registry.inner.authority_listens.load(Relaxed) {
            continue;
        }
        let news = registry.unreported(&mut first);
        if news.is_empty() {
            continue;
        }
        match send(registry, client, &news).await {
            Ok(()) => {
                registry.inner.reports.taken.fetch_add(1, Relaxed);
                if failures > 0 {
                    tracing::info!("registry.upstream takes last events of pixels again");
                }
                failures = 0;
                for (entry, time) in &news {
                    entry.slot.reported(*time);
                }
            }
            Err(error) => {
                registry.inner.reports.failed.fetch_add(1, Relaxed);
                // Told once per change: an upstream may be away for days.
                if failures == 0 {
                    tracing::warn!(error, "last events of pixels could not be told to registry.upstream");
                }
                failures = failures.saturating_add(1);
            }
        }
    }
}

/// An event's pixel and time.
type News = (Arc<Entry>, Timestamp);

async fn send(registry: &Registry, client: &Client, news: &[News]) -> Result<(), String> {
    let mut call = own::call(registry, Method::POST, &format!("/offsitepixels/{PATH}"))?;
    call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let now = registry.now();
    let age = |(entry, time): &News| format!("\"{}\":{}", entry.pixel.id, now.0.saturating_sub(time.0));
    let ages: Vec<String> = news.iter().map(age).collect();
    call.body = format!("{{\"last_event_ages_ms\":{{{}}}}}", ages.join(",")).into();
    let answer = client.call(&call).await.map_err(|error| error.to_string())?;
    let status = answer.status;
    // Read to its end, so that the connection is closed in order.
    own::read(answer.body, ANSWER_MAX_BYTES).await?;
    if status == 200 { Ok(()) } else { Err(format!("registry.upstream answered {status}")) }
}

impl Registry {
    /// How many reports were `taken` by the upstream, and how many `failed`; those are tried again.
    pub fn reports(&self) -> [(&'static str, u64); 2] {
        let counts = &self.inner.reports;
        [("taken", counts.taken.load(Relaxed)), ("failed", counts.failed.load(Relaxed))]
    }

    /// Pixels whose newest event is to be told, at most [`PIXELS_MAX`]; the search goes on where the last one ended, so
    /// that busy pixels don't keep others waiting.
    fn unreported(&self, first: &mut usize) -> Vec<News> {
        let directory = self.inner.directory.load();
        let (entries, now) = (directory.entries(), self.now());
        let start = *first % entries.len().max(1);
        let (mut news, mut seen) = (Vec::new(), 0);
        for entry in entries[start..].iter().chain(&entries[..start]) {
            if news.len() == PIXELS_MAX {
                break;
            }
            seen += 1;
            news.extend(entry.slot.unreported(now).map(|time| (Arc::clone(entry), time)));
        }
        *first = start + seen;
        news
    }

    /// Takes a gateway's report: ids with the ages of their last events. Returns how many were taken, and how many were
    /// not because they are unknown or the token is not for their ad account.
    pub fn take_report(&self, grant: &Grant, ages: impl Iterator<Item = (PixelId, Duration)>) -> (usize, usize) {
        let (directory, now) = (self.inner.directory.load(), self.now());
        let (mut taken, mut ignored, mut is_first) = (0, 0, false);
        for (id, age) in ages {
            let entry = directory.get(id).filter(|entry| grant.allows(entry.pixel.ad_account_id.as_deref()));
            let time = now.0.saturating_sub(age.as_millis().try_into().unwrap_or(u64::MAX));
            match entry {
                Some(entry) => {
                    is_first |= entry.slot.note_elsewhere(Timestamp(time));
                    taken += 1;
                }
                None => ignored += 1,
            }
        }
        if is_first {
            self.keeper.wake();
        }
        (taken, ignored)
    }
}
