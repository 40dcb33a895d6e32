//! Every metric of the program: what is counted, and the page that shows it (contract §6).
//!
//! Facts are counted where they become true: an accepted event by the journal's committer after durability, a refused
//! one in the step that refuses it. What can be asked for is not counted here but asked at the scrape: the journal's,
//! publisher's and registry's own figures. Names of metrics and labels are nowhere else; labels are closed sets.

mod cells;
mod labels;
mod page;
mod process;
mod shard;
mod tls;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cells::{COUNTS, DURATIONS, Distribution, Sum, Tally};
pub use labels::{Method, Route, StatusClass};
use page::Page;
use process::Process;
pub use shard::Worker;
use shard::{Shard, Sums};
use tls::Handshakes;
pub use tls::{Certificate, Handshake};

use crate::event::Warning;
use crate::event::rejection::Rejection;
use crate::feed::Feed;
use crate::ingest::Ignored;
use crate::journal::{self, Commit, Journal, Observer};
use crate::limits::Limits;
use crate::publish;
use crate::registry::{Registry, lookups};
use crate::time::Timestamp;
use crate::upstream;

/// Nanoseconds are shown as seconds.
const NANOS: f64 = 1e9;
/// The commit this was built from, if the build knew (`.ci/build.rs`).
const COMMIT: Option<&str> = option_env!("BUILD_COMMIT");

/// What the program counts. One for the process.
#[derive(Debug)]
pub struct Metrics {
    /// One for each worker that lives, at most; a shard whose worker is gone goes to the next.
    shards: Mutex<Vec<Arc<Shard>>>,
    /// For routes that are not hot, from any thread.
    cold: Shard,
    accepted: Tally,
    upstream_durations: [Distribution; StatusClass::ALL.len()],
    commit_durations: Distribution,
    commit_records: Distribution,
    appended_bytes: Tally,
    handshakes: Handshakes,
    max_connections: usize,
    started: Timestamp,
}

/// Whom a scrape asks.
pub struct Sources<'a> {
    /// Its figures.
    pub journal: &'a Journal,
    /// Its figures.
    pub registry: &'a Registry,
    /// Requests over each limit.
    pub limits: &'a Limits,
    /// Requests with `X-Forwarded-For` while nobody said whom to trust.
    pub untrusted_forwarded_requests: u64,
    /// Workers whose loop stands, and those that should be there and are not.
    pub worker_faults: [usize; 2],
    /// The publisher's figures; `None` without Kafka.
    pub publishing: Option<&'a publish::Stats>,
    /// Its figures.
    pub feed: &'a Feed,
    /// The certificate that is served; `None` without TLS.
    pub certificate: Option<Certificate>,
    /// For ages.
    pub now: Timestamp,
}

impl Observer for Metrics {
    fn committed(&self, commit: &Commit) {
        self.accepted.add_shared(commit.events);
        self.commit_durations.note_shared(&DURATIONS, commit.duration.as_nanos() as u64);
        self.commit_records.note_shared(&COUNTS, commit.events + commit.rejected);
        self.appended_bytes.add_shared(commit.bytes);
    }
}

impl upstream::Observer for Metrics {
    fn called(&self, status: u16, took: Duration) {
        self.upstream_durations[StatusClass::of(status) as usize].note_shared(&DURATIONS, took.as_nanos() as u64);
    }
}

impl Metrics {
    /// Nothing counted yet; `now` is shown as the process' start, and beside open connections how many there may be.
    pub fn new(now: Timestamp, max_connections: usize) -> Metrics {
        Metrics {
            shards: Mutex::default(),
            cold: Shard::default(),
            accepted: Tally::default(),
            upstream_durations: Default::default(),
            commit_durations: Distribution::default(),
            commit_records: Distribution::default(),
            appended_bytes: Tally::default(),
            handshakes: Handshakes::default(),
            max_connections,
            started: now,
        }
    }

    /// The cells of one more HTTP worker. To be called on its own thread.
    pub fn worker(&self) -> Worker {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let free = shards.iter().find(|shard| Arc::strong_count(shard) == 1).cloned();
        let shard = free.unwrap_or_else(|| {
            shards.push(Arc::default());
            shards[shards.len() - 1].clone()
        });
        Worker::new(shard)
    }

    /// A request of a route that is not hot was answered.
    pub fn request(&self, route: Route, method: &str, status: u16, took: Duration) {
        self.cold.request_shared(route, method, status, took);
    }

    /// A TLS handshake is over.
    pub fn handshake(&self, outcome: Handshake) {
        self.handshakes.add(outcome);
    }

    /// The page of a scrape. Reads the disk: not for a thread that serves.
    pub fn page(&self, sources: &Sources<'_>) -> String {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut sums = Sums::of(shards.iter().map(|shard| &**shard).chain([&self.cold]));
        let mut page = Page::default();
        let undelivered = sources.publishing.map_or(0, |stats| stats.rejects_dropped.load(Relaxed));
        sums.rejects_dropped += undelivered;
        self.events(&sums, &mut page);
        requests(&sums, sources, &mut page);
        self.connections(&sums, &mut page);
        let stats = sources.journal.stats();
        self.journal(&stats, &mut page);
        publishing(sources, &stats, &mut page);
        self.registry(sources.registry, &mut page);
        self.handshakes.show(sources.certificate, &mut page);
        let help = "Readers of /events dropped because they were too slow.";
        page.counter("pixelgate_feed_dropped_total", help).is(sources.feed.dropped() as f64);
        self.build_and_process(&mut page);
        page.text()
    }

    fn connections(&self, sums: &Sums, page: &mut Page) {
        let help = "Connections of the public listener that were taken, handshakes included.";
        page.counter("pixelgate_http_connections_total", help).is(sums.connections as f64);
        let open = sums.connections.saturating_sub(sums.connections_closed);
        page.gauge("pixelgate_http_open_connections", "Those that are open now.").is(open as f64);
        let help = "server.max_connections: beyond it visitors wait in the listener's queue.";
        page.gauge("pixelgate_http_max_connections", help).is(self.max_connections as f64);
    }

    fn events(&self, sums: &Sums, page: &mut Page) {
        let help = "Event requests by outcome. accepted: durable in the journal; ignored: HEAD, prefetch, or \
                    by gpc or consent; duplicate: taken before under the same event_id.";
        let mut family = page.counter("pixelgate_events_total", help);
        for (outcome, count) in [("accepted", self.accepted.get()), ("duplicate", sums.duplicate)] {
            family.add(&[("outcome", outcome), ("reason", "")], count as f64);
        }
        for (why, count) in Ignored::ALL.into_iter().zip(sums.ignored) {
            family.add(&[("outcome", "ignored"), ("reason", why.reason())], count as f64);
        }
        for (rejection, count) in Rejection::ALL.into_iter().zip(sums.rejected) {
            family.add(&[("outcome", "rejected"), ("reason", rejection.reason())], count as f64);
        }
        let help = "Events taken without what recognises the visitor again, by Sec-GPC or consent=denied.";
        page.counter("pixelgate_events_anonymised_total", help).is(sums.anonymised as f64);
        let help = "Repairs and doubts noted in event requests that were not rejected.";
        let mut family = page.counter("pixelgate_event_warnings_total", help);
        for (warning, count) in Warning::ALL.into_iter().zip(sums.warnings) {
            family.add(&[("warning", warning.as_str())], count as f64);
        }
        let help = "Rejected requests that were to be kept and published as records and were not.";
        page.counter("pixelgate_rejected_records_dropped_total", help).is(sums.rejects_dropped as f64);
    }

    fn journal(&self, stats: &journal::Stats, page: &mut Page) {
        let counts = stats.counts;
        let gauges = [
            ("accepted_events", "Events ever accepted; kept with the journal over restarts.", counts.accepted),
            ("published_events", "Events delivered to Kafka; kept with the journal.", counts.published),
            ("pending_events", "Events not yet published.", counts.pending),
            ("parked_events", "Events that Kafka refused alone, kept aside.", counts.parked),
            ("expired_events", "Events that retention removed unpublished; kept with the journal.", counts.expired),
            ("damaged_events", "Events lost to the disk; kept with the journal.", counts.damaged),
            ("next_position", "Position of the next record.", stats.next_position.0),
            ("bytes", "Bytes of the journal's files, those allocated ahead included.", stats.bytes),
            ("unpublished_bytes", "Bytes of records not yet published.", stats.unpublished_bytes),
            ("parked_bytes", "Bytes of the files of parked records.", stats.parked_bytes),
            ("max_bytes", "journal.max_bytes.", stats.max_bytes),
            ("filesystem_free_bytes", "Bytes that the journal's file system has left.", stats.free_bytes),
        ];
        for (name, help, value) in gauges {
            page.gauge(&format!("pixelgate_journal_{name}"), help).is(value as f64);
        }
        let help = "Bytes of records taken into the journal, events and rejected; without the 64 of each commit.";
        page.counter("pixelgate_journal_appended_bytes_total", help).is(self.appended_bytes.get() as f64);
        let help = "Position of the next record to publish.";
        page.gauge("pixelgate_publish_next_position", help).is(stats.publish_position.0 as f64);
        let commits = |distribution: &Distribution| {
            let mut sum = Sum::default();
            distribution.add_to(&mut sum);
            sum
        };
        let (durations, records) = (commits(&self.commit_durations), commits(&self.commit_records));
        let help = "Time of a commit: write and, if journal.acknowledge is synced, fdatasync.";
        let mut family = page.histogram("pixelgate_journal_commit_duration_seconds", help);
        family.distribution(&[], &DURATIONS, &durations, NANOS);
        let help = "Records that shared a commit.";
        page.histogram("pixelgate_journal_commit_records", help).distribution(&[], &COUNTS, &records, 1.0);
    }

    fn registry(&self, registry: &Registry, page: &mut Page) {
        page.gauge("pixelgate_registry_pixels", "Pixels known to this node.").is(registry.pixel_count() as f64);
        let help =
            "Unix time of the last sync of the ad account that waits longest; 0 before the first, or in local mode.";
        let oldest = registry.oldest_sync().unwrap_or_default();
        page.gauge("pixelgate_registry_last_sync_timestamp_seconds", help).is(oldest.0 as f64 / 1000.0);
        let interval = registry.sync_interval().as_secs_f64();
        page.gauge("pixelgate_registry_sync_interval_seconds", "registry.sync_interval.").is(interval);
        let errors = registry.sync_errors() as f64;
        page.counter("pixelgate_registry_sync_errors_total", "Syncs with the upstream that failed.").is(errors);
        let help = "Unknown ids that were seen often and asked for at the upstream, by what came of it.";
        let mut family = page.counter("pixelgate_registry_lookups_total", help);
        for outcome in lookups::Outcome::ALL {
            family.add(&[("outcome", outcome.as_str())], registry.lookups(outcome) as f64);
        }
        let help = "Reports of when pixels fired last to registry.upstream, by what came of them.";
        let mut family = page.counter("pixelgate_registry_reports_total", help);
        for (outcome, count) in registry.reports() {
            family.add(&[("outcome", outcome)], count as f64);
        }
        let help = "Time that registry.upstream took to the head of its answer, by class of status; 5xx also for none.";
        let mut family = page.histogram("pixelgate_upstream_request_duration_seconds", help);
        for (class, distribution) in StatusClass::ALL.into_iter().zip(&self.upstream_durations) {
            let mut sum = Sum::default();
            distribution.add_to(&mut sum);
            family.distribution(&[("status_class", class.as_str())], &DURATIONS, &sum, NANOS);
        }
    }

    fn build_and_process(&self, page: &mut Page) {
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("commit", COMMIT.filter(|commit| !commit.is_empty()).unwrap_or("unknown")),
        ];
        page.gauge("pixelgate_build_info", "1, labelled with what was built.").add(&labels, 1.0);
        let now = Process::read();
        page.counter("process_cpu_seconds_total", "User and system CPU time spent.").is(now.cpu_seconds);
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory.", now.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory.", now.virtual_bytes),
            ("process_open_fds", "Open file descriptors.", now.open_fds),
            ("process_max_fds", "Most file descriptors that may be open.", now.max_fds),
            ("process_threads", "Threads.", now.threads),
        ];
        for (name, help, value) in gauges {
            page.gauge(name, help).is(value as f64);
        }
        let help = "Start of the process, Unix time.";
        page.gauge("process_start_time_seconds", help).is(self.started.0 as f64 / 1000.0);
    }
}

fn requests(sums: &Sums, sources: &Sources<'_>, page: &mut Page) {
    let help = "Time from a request's head to its answer, by route, method and class of status.";
    let mut family = page.histogram("pixelgate_http_request_duration_seconds", help);
    for route in Route::ALL {
        for method in Method::ALL {
            for class in StatusClass::ALL {
                let sum = sums.requests(route, method, class);
                if route.answers(method, class) || *sum != Sum::default() {
                    let labels =
                        [("route", route.as_str()), ("method", method.as_str()), ("status_class", class.as_str())];
                    family.distribution(&labels, &DURATIONS, sum, NANOS);
                }
            }
        }
    }
    let help = "Requests over a limit, refused or, with limits.mode observe, only counted.";
    let mut family = page.counter("pixelgate_rate_limit_hits_total", help);
    for (limit, hits) in sources.limits.hits() {
        family.add(&[("limit", limit)], hits as f64);
    }
    let help =
        "limits.* of this node: what one address, pixel or token may do in the long run; 0 where nothing is refused.";
    let mut family = page.gauge("pixelgate_rate_limit_per_second", help);
    for (limit, rate) in sources.limits.rates() {
        family.add(&[("limit", limit)], rate.unwrap_or(0.0));
    }
    let help = "Requests with X-Forwarded-For while server.trusted_proxies is not set.";
    let requests = sources.untrusted_forwarded_requests as f64;
    page.counter("pixelgate_untrusted_forwarded_requests_total", help).is(requests);
    let help =
        "Workers of the public listener whose loop stands (stuck) or that have ended (dead), as /livez counts them.";
    let mut family = page.gauge("pixelgate_worker_faults", help);
    for (kind, count) in ["stuck", "dead"].into_iter().zip(sources.worker_faults) {
        family.add(&[("kind", kind)], count as f64);
    }
}

fn publishing(sources: &Sources<'_>, journal: &journal::Stats, page: &mut Page) {
    let none = publish::Stats::default();
    let stats = sources.publishing.unwrap_or(&none);
    if sources.publishing.is_some() {
        let age_ms = journal.oldest_pending_ms.map_or(0, |ms| sources.now.0.saturating_sub(ms));
        let help = "Age of the oldest record not yet published; 0 if there is none.";
        page.gauge("pixelgate_publish_oldest_pending_age_seconds", help).is(age_ms as f64 / 1000.0);
    }
    let last_ms = stats.last_success_ms.load(Relaxed);
    let help = "Unix time of the last transaction committed by this process; 0 before the first.";
    page.gauge("pixelgate_publish_last_success_timestamp_seconds", help).is(last_ms as f64 / 1000.0);
    if stats.reports_progress.load(Relaxed) {
        let complete_ms = stats.complete_until_ms.load(Relaxed);
        let help = "Unix time of the last complete_until that this process told to kafka.progress_topic; 0 before it.";
        page.gauge("pixelgate_progress_complete_until_timestamp_seconds", help).is(complete_ms as f64 / 1000.0);
    }
    let help = "Faults while publishing, by kind.";
    let mut family = page.counter("pixelgate_publish_errors_total", help);
    for (word, kind) in publish::Stats::ERRORS {
        family.add(&[("kind", word)], stats.errors(kind) as f64);
    }
    let mut family = page.gauge("pixelgate_publish_blocked", "1 while publishing is held up by this cause.");
    for (word, cause) in publish::Stats::CAUSES {
        family.add(&[("cause", word)], f64::from(u8::from(stats.is_blocked_by(cause))));
    }
    let restarts = stats.restarts.load(Relaxed);
    page.counter("pixelgate_publisher_restarts_total", "Kafka clients dropped and made anew.").is(restarts as f64);
}
