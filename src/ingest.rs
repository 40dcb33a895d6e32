//! The one place that knows the order of checks between a collected request and a record in the journal.
//!
//! Everything here is synchronous: a request is either rejected or enqueued, and a client that leaves changes nothing.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::dedup::{Dedup, Once};
use crate::event::encode::{self, Stamp};
use crate::event::parse::parse;
use crate::event::raw::{self, MAX_RAW_BYTES};
use crate::event::rejection::Rejection;
use crate::event::visitor::{self, Visit};
use crate::event::{Client, Consent, Event, RawEvent, Refusal, Warning, Warnings, privacy};
use crate::journal::{Appender, Receipt, Refused, Ticket};
use crate::limits::{Limits, Over};
use crate::pixel::{MAX_DIGITS, Pixel, PixelId};
use crate::policy::{Decision, Policies, Wishes};
use crate::record::{Head, Kind};
use crate::registry::{Lookup, Registry};
use crate::rejects::Allowance;
use crate::time::{Clock, Timestamp, uuid_v7};

/// What to do with an id that nobody knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnknownPixel {
    /// `unknown_pixel`.
    Reject,
    /// Accept with a warning.
    Flag,
}

/// How events are judged.
#[derive(Clone, Debug)]
pub struct Options {
    /// A bad value or currency rejects.
    pub strict: bool,
    /// An unknown id.
    pub unknown_pixel: UnknownPixel,
    /// What is kept of a visitor.
    pub privacy: privacy::Options,
    /// Origins, and what a visitor's refusal means, by pixel.
    pub policies: Arc<Policies>,
    /// Whether and how visitors get an id.
    pub visitor: Option<visitor::Rules>,
    /// Whether rejected requests are journaled (`kafka.rejected_topic` is not empty).
    pub journal_rejected: bool,
}

/// An event that is on its way to the disk.
pub struct Accepted {
    /// Completes when it is durable: it, or the first of which it is a duplicate.
    pub receipt: Receipt,
    /// Its `record_id`; a duplicate has none.
    pub id: Option<[u8; 16]>,
    /// The pixel that it names.
    pub pixel_id: PixelId,
    /// `test=1`.
    pub is_trial: bool,
    /// By `Sec-GPC` or `consent=denied` it is without what recognises the visitor again.
    pub is_anonymous: bool,
    /// What was repaired.
    pub warnings: Warnings,
}

/// What became of a request.
pub enum Outcome {
    /// It goes to the journal.
    Accepted(Accepted),
    /// Valid, answered like an event, and none.
    Ignored(Ignored, PixelId, Warnings),
}

/// Why a valid request makes no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ignored {
    /// HEAD or prefetch.
    Prefetch,
    /// `Sec-GPC: 1`, and the pixel's policy for it.
    Gpc,
    /// `consent=denied`, and the pixel's policy for it.
    Consent,
}

impl Ignored {
    /// All of them.
    pub const ALL: [Ignored; 3] = [Ignored::Prefetch, Ignored::Gpc, Ignored::Consent];

    /// The word that metrics have for it.
    pub fn reason(self) -> &'static str {
        match self {
            Ignored::Prefetch => "",
            Ignored::Gpc => "gpc",
            Ignored::Consent => "consent",
        }
    }
}

/// Why a request is refused, and what its answer says beside the reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Denied {
    /// The reason.
    pub refusal: Refusal,
    /// The limit that it is over, if that is the reason.
    pub over: Option<Over>,
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Denied {
        Denied { refusal, over: None }
    }
}

impl From<Rejection> for Denied {
    fn from(reason: Rejection) -> Denied {
        Refusal { reason, pixel_id: None }.into()
    }
}

impl From<Over> for Denied {
    fn from(over: Over) -> Denied {
        Denied { over: Some(over), ..Rejection::RateLimited.into() }
    }
}

/// What became of a rejected request's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// It goes to the journal.
    Journaled,
    /// Its allowance or the journal's room is used up.
    Dropped,
    /// Requests refused for this reason, or any, are not kept.
    Unwanted,
}

/// One worker's way in. Each worker makes its own.
pub struct Ingest {
    options: Options,
    node_id: Arc<str>,
    registry: Arc<Registry>,
    limits: Arc<Limits>,
    appender: Appender,
    clock: Arc<dyn Clock>,
    random: RefCell<SmallRng>,
    /// `received_at` never runs backwards within a run (per worker; across workers by the clock's own order).
    newest: Cell<Timestamp>,
    rejects: RefCell<Allowance>,
    dedup: Option<Arc<Dedup>>,
}

impl Ingest {
    /// A worker's.
    pub fn new(
        options: Options,
        node_id: Arc<str>,
        registry: Arc<Registry>,
        limits: Arc<Limits>,
        appender: Appender,
        clock: Arc<dyn Clock>,
        rejects: Allowance,
    ) -> Ingest {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the operating system has random bytes");
        let random = RefCell::new(SmallRng::from_seed(seed));
        Ingest {
            options,
            node_id,
            registry,
            limits,
            appender,
            clock,
            random,
            newest: Cell::new(Timestamp(0)),
            rejects: rejects.into(),
            dedup: None,
        }
    }

    /// With a memory for event ids, which all workers share.
    pub fn remembering(self, dedup: Option<Arc<Dedup>>) -> Ingest {
        Ingest { dedup, ..self }
    }

    /// Whether an address may ask at `now`, a monotonic time. To be asked before anything is read for the request.
    pub fn admit(&self, ip: IpAddr, now: Duration) -> Result<(), Denied> {
        Ok(self.limits.visitor(ip, now)?)
    }

    /// Judges a request and, if it is an event, encodes it into the journal's buffer.
    pub fn offer(
        &self,
        raw: RawEvent<'_>,
        client: &Client<'_>,
        visit: &mut Visit<'_>,
        counts: bool,
    ) -> Result<Outcome, Denied> {
        self.step(raw, client, visit, counts, true)
    }

    /// Of a request: what its events' records have of the visitor, and what its reply sets.
    pub fn visit<'a>(&'a self, client: &Client<'a>) -> Visit<'a> {
        Visit::new(self.options.visitor.as_ref(), client)
    }

    /// Judges the events of one request, and takes all of them or none. An error comes with the index of its event.
    pub fn offer_all(
        &self,
        raws: &[RawEvent<'_>],
        client: &Client<'_>,
        visit: &mut Visit<'_>,
        counts: bool,
    ) -> Result<Vec<Outcome>, (usize, Denied)> {
        let mut each = |counts, limited| {
            let steps = raws
                .iter()
                .enumerate()
                .map(|(index, raw)| self.step(*raw, client, visit, counts, limited).map_err(|denied| (index, denied)));
            steps.collect::<Result<Vec<_>, _>>()
        };
        // Looked at as a prefetch would be: judged, and not taken.
        let judged = each(false, true)?;
        if !counts {
            return Ok(judged);
        }
        let room = raws.iter().map(|raw| most_bytes(raw, client)).sum();
        let prepaid = self.appender.prepay(room).map_err(|refused| (0, reason_of(refused).into()))?;
        let taken = each(true, false);
        drop(prepaid);
        taken
    }

    fn step(
        &self,
        raw: RawEvent<'_>,
        client: &Client<'_>,
        visit: &mut Visit<'_>,
        counts: bool,
        limited: bool,
    ) -> Result<Outcome, Denied> {
        let mut event = parse(raw, self.options.strict)?;
        let pixel_id = event.pixel_id;
        let refuse = |reason| Refusal { reason, pixel_id: Some(pixel_id) };
        let known = self.registry.lookup(event.pixel_id);
        let bare;
        let pixel: &Pixel = match &known {
            Lookup::Known(known) if known.entry().pixel.archived => return Err(refuse(Rejection::ArchivedPixel).into()),
            Lookup::Known(known) => &known.entry().pixel,
            unknown => {
                event.warnings.add(match (unknown, self.options.unknown_pixel) {
                    (Lookup::NotChecked, _) => Warning::PixelNotChecked,
                    (_, UnknownPixel::Flag) => Warning::UnknownPixel,
                    (_, UnknownPixel::Reject) => return Err(refuse(Rejection::UnknownPixel).into()),
                });
                bare = Pixel { id: event.pixel_id, name: None, tag: None, ad_account_id: None, archived: false };
                &bare
            }
        };
        let policy = self.options.policies.of(Some(pixel_id));
        if policy.origins.is_some_and(|origins| !origins.allow(client.origin, client.referer)) {
            return Err(refuse(Rejection::OriginNotAllowed).into());
        }
        if limited && self.limits.has_per_pixel() {
            let limited = self.limits.pixel(event.pixel_id, self.clock.monotonic());
            limited.map_err(|over| Denied { refusal: refuse(Rejection::RateLimited), over: Some(over) })?;
        }
        if !counts {
            event.warnings.add(Warning::Prefetch);
            return Ok(Outcome::Ignored(Ignored::Prefetch, pixel_id, event.warnings));
        }
        let denied = event.consent == Some(Consent::Denied);
        let dropped = |visit: &mut Visit<'_>, why| {
            visit.refuse();
            Ok(Outcome::Ignored(why, pixel_id, event.warnings))
        };
        let mut client = match policy.decide(Wishes { gpc: client.gpc, denied }) {
            Decision::Record { gpc, anonymous } => Client { gpc, anonymous, ..*client },
            Decision::DropByGpc => return dropped(visit, Ignored::Gpc),
            Decision::DropByConsent => return dropped(visit, Ignored::Consent),
        };
        if visit.is_on() {
            client.marks = visit.mark(&event, &client, self.clock.now(), unguessable);
        }
        let is_marked = client.marks.is_some();
        let accepted = self.record(event, &client, pixel).map_err(|refused| refuse(reason_of(refused)))?;
        // A copy makes no record, so nobody would know the id that it brought.
        if is_marked && accepted.id.is_some() {
            visit.keep();
        }
        Ok(Outcome::Accepted(accepted))
    }

    /// Makes the event's record, unless it has one already.
    fn record(&self, mut event: Event<'_>, client: &Client<'_>, pixel: &Pixel) -> Result<Accepted, Refused> {
        let (pixel_id, is_trial, is_anonymous) = (event.pixel_id, event.test, client.anonymous);
        if let (Some(dedup), Some(event_id)) = (&self.dedup, event.own_id()) {
            let key = dedup.key(event.pixel_id, event.event_name.as_deref(), event_id, event.test);
            let mut made = None;
            let once = dedup.once(key, self.clock.monotonic(), || {
                let (receipt, id) = self.append(&mut event, client, pixel)?;
                made = Some(id);
                Ok(receipt)
            })?;
            let receipt = match once {
                Once::First(receipt) => receipt,
                Once::Again(ticket) => {
                    event.warnings.add(Warning::Duplicate);
                    self.appender.share(ticket)
                }
            };
            return Ok(Accepted { receipt, id: made, pixel_id, is_trial, is_anonymous, warnings: event.warnings });
        }
        let (receipt, id) = self.append(&mut event, client, pixel)?;
        Ok(Accepted { receipt, id: Some(id), pixel_id, is_trial, is_anonymous, warnings: event.warnings })
    }

    fn append(
        &self,
        event: &mut Event<'_>,
        client: &Client<'_>,
        pixel: &Pixel,
    ) -> Result<(Receipt, [u8; 16]), Refused> {
        let (id, received) = self.identity();
        encode::check_clock(event, received);
        let stamp = Stamp { id, received, node_id: &self.node_id };
        let head = Head { kind: Kind::Event, id, time_ms: received.0 };
        let receipt = self.appender.append(head, pixel.id.digits(&mut [0; MAX_DIGITS]), |out| {
            encode::event(out, &stamp, event, client, pixel, &self.options.privacy);
        })?;
        if !event.test {
            self.registry.note_event(event.pixel_id, received);
        }
        Ok((receipt, id))
    }
}

impl Ingest {
    /// From now on no record of this worker is stamped before a moment. What it stamped until now is handed over.
    pub fn not_before(&self, moment: Timestamp) -> Ticket {
        self.newest.set(self.newest.get().max(moment));
        self.appender.flush();
        self.appender.handed_over()
    }

    fn identity(&self) -> ([u8; 16], Timestamp) {
        let received = self.clock.now().max(self.newest.get());
        self.newest.set(received);
        let mut random = [0; 10];
        self.random.borrow_mut().fill_bytes(&mut random);
        (uuid_v7(received, random), received)
    }

    /// Keeps a rejected request, best effort and un-awaited. The journal's own refusals and limits are not kept.
    pub fn keep_rejected(&self, refusal: Refusal, raw: &RawEvent<'_>, client: &Client<'_>) -> Kept {
        let ours = refusal.reason == Rejection::RateLimited || refusal.reason.status() == 503;
        if !self.options.journal_rejected || ours {
            return Kept::Unwanted;
        }
        let Some(client) = &self.judged(refusal, raw, client) else { return Kept::Unwanted };
        let bytes = raw.bytes().min(MAX_RAW_BYTES) + REJECTED_OVERHEAD_BYTES;
        if !self.rejects.borrow_mut().take(self.clock.monotonic(), bytes) {
            return Kept::Dropped;
        }
        let (id, received) = self.identity();
        let stamp = Stamp { id, received, node_id: &self.node_id };
        let head = Head { kind: Kind::Rejected, id, time_ms: received.0 };
        let mut digits = [0; MAX_DIGITS];
        let key = refusal.pixel_id.map_or(&b""[..], |id| id.digits(&mut digits));
        let appended = self.appender.append(head, key, |out| {
            encode::rejected(out, &stamp, refusal, raw, client, &self.options.privacy);
        });
        // Refused for room: a rejected request is the first to be dropped.
        if appended.is_ok() { Kept::Journaled } else { Kept::Dropped }
    }

    /// What is remembered of a rejected request for its pixel's owner: its record's JSON, shortened. `None` as for
    /// [`Ingest::rejected_record`].
    pub fn rejected_glimpse(&self, refusal: Refusal, raw: &RawEvent<'_>, client: &Client<'_>) -> Option<Vec<u8>> {
        // A refusal may stand behind what is kept, so the whole is judged.
        let client = self.judged(refusal, raw, client)?;
        Some(self.write_rejected(refusal, &raw.shortened(GLIMPSE_BYTES), &client).1)
    }

    /// The record of a rejected request that the journal doesn't keep, for the live feed: its id and JSON.
    /// `None` if nothing of it may be shown.
    pub fn rejected_record(
        &self,
        refusal: Refusal,
        raw: &RawEvent<'_>,
        client: &Client<'_>,
    ) -> Option<([u8; 16], Vec<u8>)> {
        let client = self.judged(refusal, raw, client)?;
        Some(self.write_rejected(refusal, raw, &client))
    }

    fn write_rejected(&self, refusal: Refusal, raw: &RawEvent<'_>, client: &Client<'_>) -> ([u8; 16], Vec<u8>) {
        let (id, received) = self.identity();
        let stamp = Stamp { id, received, node_id: &self.node_id };
        let mut record = Vec::new();
        encode::rejected(&mut record, &stamp, refusal, raw, client, &self.options.privacy);
        (id, record)
    }

    /// The sender of a rejected request as its pixel's policy lets it be seen; `None` if not at all.
    fn judged<'a>(&self, refusal: Refusal, raw: &RawEvent<'_>, client: &Client<'a>) -> Option<Client<'a>> {
        let wishes = Wishes { gpc: client.gpc, denied: raw::denies_consent(raw) };
        match self.options.policies.of(refusal.pixel_id).decide(wishes) {
            Decision::Record { gpc, anonymous } => Some(Client { gpc, anonymous, ..*client }),
            Decision::DropByGpc | Decision::DropByConsent => None,
        }
    }
}

/// Bytes of the system's own generator: what nobody can guess.
fn unguessable() -> [u8; 24] {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).expect("the operating system has random bytes");
    bytes
}

/// Of a query or body that is remembered only.
const GLIMPSE_BYTES: usize = 512;
/// What a rejected record takes beside its `raw`: names, identity, a long user agent and URL.
const REJECTED_OVERHEAD_BYTES: usize = 512;

/// More than an event's record can take: each byte of text escaped, and names, identity, and the pixel's own.
fn most_bytes(raw: &RawEvent<'_>, client: &Client<'_>) -> u64 {
    const OWN_BYTES: usize = 12 * 1024;
    let headers = [client.user_agent, client.referer, client.cookie].into_iter().flatten();
    let texts = raw.bytes() + headers.map(|header| header.len().min(encode::MAX_HEADER_BYTES)).sum::<usize>();
    (texts * 6 + OWN_BYTES) as u64
}

fn reason_of(refused: Refused) -> Rejection {
    match refused {
        Refused::Full { .. } => Rejection::JournalFull,
        Refused::Busy => Rejection::Overloaded,
        Refused::TooLarge => Rejection::BodyTooLarge,
        Refused::Poisoned => Rejection::JournalUnavailable,
        Refused::Closed => Rejection::ShuttingDown,
    }
}
