//! The event routes: collect the request within bounds, offer it, wait for its receipt, reply.

use std::borrow::Cow;
use std::future::{Ready, ready};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::RequestHead;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};

use super::body::{self, Fault};
use super::client::{Proxies, Visitor};
use super::facts::Facts;
use super::reply::{self, Shape};
use super::tag::Tag;
use crate::diagnostics::{self, Declined};
use crate::event::rejection::Rejection;
use crate::event::visitor::Visit;
use crate::event::{Body, Client, RawEvent, Refusal, Source, Warnings, tr};
use crate::feed::Feed;
use crate::inflight::Inflight;
use crate::ingest::{Accepted, Denied, Ignored, Ingest, Kept, Outcome};
use crate::metrics::{self, Route};
use crate::time::{Clock, SystemClock};

/// The paths of plain pixel requests.
pub(super) const PATHS: [&str; 2] = ["/offsite_event.php", "/offsite_event"];

/// Bounds of a request.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `server.max_header_bytes`.
    pub max_header_bytes: usize,
    /// `server.max_uri_bytes`.
    pub max_uri_bytes: usize,
    /// Of the body.
    pub body: body::Bounds,
}

/// What a worker's routes share.
pub struct Worker {
    /// The worker's way into the journal.
    pub ingest: Ingest,
    /// Whose requests they are.
    pub proxies: Arc<Proxies>,
    /// Bounds of one request.
    pub bounds: Bounds,
    /// The bound of all bodies and records together.
    pub inflight: Arc<Inflight>,
    /// The live feed.
    pub feed: Arc<Feed>,
    /// The worker's counters.
    pub metrics: metrics::Worker,
    /// The tags that pages load.
    pub tags: Arc<[Arc<Tag>]>,
    /// The worker's notes for pixels' owners.
    pub diagnostics: diagnostics::Worker,
}

/// Mounts the routes of websites.
pub fn configure(config: &mut ServiceConfig, worker: Rc<Worker>) {
    for (route, paths) in [(Source::OffsiteEvent, PATHS), (Source::Tr, ["/tr", "/tr/"])] {
        let worker = worker.clone();
        config.service(web::resource(paths).to(move |request: HttpRequest, payload: web::Payload| {
            let worker = worker.clone();
            async move { answer(&worker, route, &request, payload).await }
        }));
    }
    for tag in worker.tags.iter() {
        let (patterns, tag) = (tag.patterns(), tag.clone());
        config.service(web::resource(patterns).to(counted(&worker, Route::Tag, move |request| tag.reply(request))));
    }
    config
        .service(web::resource("/robots.txt").to(counted(&worker, Route::Other, |_| robots())))
        .service(web::resource("/favicon.ico").to(counted(&worker, Route::Other, |_| favicon())))
        .default_service(web::to(counted(&worker, Route::Other, |_| not_found())));
}

/// A handler that waits for nothing, with its place in the figures.
fn counted(
    worker: &Rc<Worker>,
    route: Route,
    reply: impl Fn(&HttpRequest) -> HttpResponse + Clone + 'static,
) -> impl Fn(HttpRequest) -> Ready<HttpResponse> + Clone + 'static {
    let worker = worker.clone();
    move |request: HttpRequest| {
        let begun = SystemClock.monotonic();
        let reply = reply(&request);
        worker.count(route, &request, &reply, begun);
        ready(reply)
    }
}

impl Worker {
    /// Keeps a rejected request if it may be kept; otherwise those who listen see it all the same.
    fn refused(&self, refusal: Refusal, raw: &RawEvent<'_>, client: &Client<'_>) {
        let kept = self.ingest.keep_rejected(refusal, raw, client);
        if kept == Kept::Dropped {
            self.metrics.reject_dropped();
        }
        if kept != Kept::Journaled
            && self.feed.listens()
            && let Some((id, record)) = self.ingest.rejected_record(refusal, raw, client)
        {
            self.feed.show_rejected(refusal.pixel_id, id, record);
        }
        if let Some(id) = refusal.pixel_id {
            self.diagnostics.rejected(id, refusal.reason, || self.ingest.rejected_glimpse(refusal, raw, client));
        }
    }

    fn count(&self, route: Route, request: &HttpRequest, reply: &HttpResponse, begun: Duration) {
        let took = SystemClock.monotonic().saturating_sub(begun);
        self.metrics.request(route, request.method().as_str(), reply.status().as_u16(), took);
    }
}

fn robots() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("User-agent: *\nDisallow: /\n")
}

fn favicon() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

async fn answer(worker: &Worker, route: Source, request: &HttpRequest, payload: web::Payload) -> HttpResponse {
    let begun = SystemClock.monotonic();
    let head = request.head();
    let facts = Facts::of(&head.headers);
    let shape = Shape::of(&head.method, &facts);
    let reply = match offer(worker, route, request, &facts, begun, payload).await {
        Ok(Told::Accepted(ids, warnings, cookies)) => {
            let mut reply = shape.accepted_all(&ids, warnings);
            reply::set_cookies(&mut reply, &cookies);
            reply
        }
        Ok(Told::Preflight) => shape.preflight(),
        Err(denied) => {
            // No await lies between the decision and this count.
            worker.metrics.rejected(denied.refusal.reason);
            shape.rejected(&denied)
        }
    };
    let route = if route == Source::Tr { Route::Tr } else { Route::Event };
    worker.count(route, request, &reply, begun);
    reply
}

/// What a request is told that is not refused.
enum Told {
    Preflight,
    /// The records that were made of its events, and what cookies are set.
    Accepted(Vec<[u8; 16]>, Warnings, Vec<String>),
}

async fn offer(
    worker: &Worker,
    route: Source,
    request: &HttpRequest,
    facts: &Facts<'_>,
    begun: Duration,
    mut payload: web::Payload,
) -> Result<Told, Denied> {
    let head = request.head();
    let client = worker.admit(worker.proxies.visitor(request), facts, begun)?;
    let query = request.query_string().as_bytes();
    let counts = head.method != Method::HEAD && !facts.is_prefetch();
    // Held until the record has taken over, so that nothing is ever in flight uncounted.
    let mut room = worker.inflight.body();
    let read = match (worker.bounds.check(head), &head.method) {
        (Err(reason), _) => Err(reason),
        (Ok(()), &Method::GET | &Method::HEAD) => Ok(Bytes::new()),
        (Ok(()), &Method::POST) => {
            body::collect(&worker.bounds.body, &head.headers, &mut payload, &mut room).await.map_err(reason_of)
        }
        (Ok(()), &Method::OPTIONS) => return Ok(Told::Preflight),
        (Ok(()), _) => Err(Rejection::MethodNotAllowed),
    };
    // From here to the receipt nothing waits: the request is rejected now or enqueued now.
    let read = read.as_ref().map_err(|reason| *reason).and_then(|body| read_as(body, facts.content_type));
    let raw = RawEvent { route, query, body: *read.as_ref().unwrap_or(&Body::None) };
    let mut visit = worker.ingest.visit(&client);
    let offered = match (&read, tr::batch(&raw)) {
        (Ok(_), Some(events)) => worker.decide_all(&raw, events, &client, &mut visit, counts),
        _ => worker.decide(route, query, read, &client, &mut visit, counts).map(|outcome| vec![outcome]),
    };
    drop(room);
    told_of_all(offered?, visit.cookies()).await
}

async fn told_of_all(outcomes: Vec<Outcome>, cookies: Vec<String>) -> Result<Told, Denied> {
    let (mut ids, mut all) = (Vec::new(), Warnings::default());
    for outcome in outcomes {
        match outcome {
            Outcome::Ignored(_, _, warnings) => all.merge(warnings),
            Outcome::Accepted(accepted) => {
                accepted.receipt.await.map_err(|_| Rejection::JournalUnavailable)?;
                ids.extend(accepted.id);
                all.merge(accepted.warnings);
            }
        }
    }
    Ok(Told::Accepted(ids, all, cookies))
}

impl Worker {
    /// Whether a visitor may ask at all, and what is known of it.
    pub(super) fn admit<'a>(&self, visitor: Visitor, facts: &Facts<'a>, now: Duration) -> Result<Client<'a>, Denied> {
        if let (Some(ip), true) = (visitor.ip, visitor.is_own) {
            self.ingest.admit(ip, now)?;
        }
        let Facts { user_agent, referer, cookie, origin, .. } = *facts;
        let gpc = facts.gpc();
        Ok(Client { ip: visitor.ip, user_agent, referer, cookie, origin, gpc, ..Client::default() })
    }

    /// The one step in which a request is rejected or enqueued, counted as what it is.
    pub(super) fn decide(
        &self,
        route: Source,
        query: &[u8],
        read: Result<Body<'_>, Rejection>,
        client: &Client<'_>,
        visit: &mut Visit<'_>,
        counts: bool,
    ) -> Result<Outcome, Denied> {
        let raw = RawEvent { route, query, body: *read.as_ref().unwrap_or(&Body::None) };
        let offered = read.map_err(Denied::from).and_then(|_| self.ingest.offer(raw, client, visit, counts));
        match &offered {
            Err(denied) if counts => self.refused(denied.refusal, &raw, client),
            Err(_) => {}
            Ok(outcome) => self.taken(outcome),
        }
        offered
    }

    /// As `decide`, for all events of a batch. Of a refused one, the event at fault is kept.
    fn decide_all(
        &self,
        raw: &RawEvent<'_>,
        events: Result<Vec<Cow<'_, str>>, Rejection>,
        client: &Client<'_>,
        visit: &mut Visit<'_>,
        counts: bool,
    ) -> Result<Vec<Outcome>, Denied> {
        let offered = match &events {
            Ok(events) => {
                let own = events.iter().map(|event| RawEvent { query: event.as_bytes(), body: Body::None, ..*raw });
                let raws: Vec<RawEvent<'_>> = own.collect();
                self.ingest.offer_all(&raws, client, visit, counts).map_err(|(index, denied)| (raws[index], denied))
            }
            Err(reason) => Err((*raw, Denied::from(*reason))),
        };
        match offered {
            Ok(outcomes) => {
                outcomes.iter().for_each(|outcome| self.taken(outcome));
                Ok(outcomes)
            }
            Err((raw, denied)) => {
                if counts {
                    self.refused(denied.refusal, &raw, client);
                }
                Err(denied)
            }
        }
    }

    /// Counts what is not refused.
    fn taken(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Ignored(why, id, warnings) => {
                self.metrics.ignored(*why);
                match why {
                    Ignored::Prefetch => {}
                    Ignored::Gpc => self.diagnostics.declined(*id, Declined::Gpc),
                    Ignored::Consent => self.diagnostics.declined(*id, Declined::Consent),
                }
                self.metrics.warned(*warnings);
            }
            Outcome::Accepted(accepted) => {
                let Accepted { id, pixel_id, is_trial, is_anonymous, warnings, .. } = accepted;
                // The committer counts the others.
                if id.is_none() {
                    self.metrics.duplicate();
                } else if *is_anonymous {
                    self.metrics.anonymised();
                }
                self.metrics.warned(*warnings);
                self.diagnostics.accepted(*pixel_id, *id, *is_trial, *warnings);
            }
        }
    }
}

impl Bounds {
    /// What is looked at before anything is read.
    fn check(&self, head: &RequestHead) -> Result<(), Rejection> {
        // As they were sent, but for blanks: name, colon, blank, value, end of line.
        let line_bytes = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
        if head.headers.iter().map(line_bytes).sum::<usize>() > self.max_header_bytes {
            return Err(Rejection::HeaderTooLarge);
        }
        let target_bytes = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
        if target_bytes > self.max_uri_bytes { Err(Rejection::UriTooLong) } else { Ok(()) }
    }
}

fn reason_of(fault: Fault) -> Rejection {
    match fault {
        Fault::Encoded => Rejection::UnsupportedMediaType,
        Fault::TooLarge => Rejection::BodyTooLarge,
        Fault::Late => Rejection::BodyTimeout,
        Fault::Broken => Rejection::MalformedBody,
        Fault::NoRoom => Rejection::Overloaded,
    }
}

/// What a body is read as, by its media type.
pub(super) fn read_as<'a>(body: &'a [u8], content_type: Option<&'a [u8]>) -> Result<Body<'a>, Rejection> {
    if body.is_empty() {
        return Ok(Body::None);
    }
    let content_type = content_type.unwrap_or_default();
    let is_text = content_type.iter().all(|byte| matches!(byte, b'\t' | 0x20..0x7F));
    let content_type = std::str::from_utf8(content_type).ok().filter(|_| is_text);
    let content_type = content_type.ok_or(Rejection::UnsupportedMediaType)?;
    let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    match kind.trim().to_ascii_lowercase().as_str() {
        "application/x-www-form-urlencoded" => Ok(Body::Form(body)),
        "application/json" => Ok(Body::Json(body)),
        "text/plain" | "" => Ok(Body::Text(body)),
        "multipart/form-data" => {
            let boundary = parameters.split(';').find_map(|parameter| {
                let (name, value) = parameter.trim().split_once('=')?;
                name.eq_ignore_ascii_case("boundary").then(|| value.trim_matches('"'))
            });
            boundary.map(|boundary| Body::Multipart(body, boundary)).ok_or(Rejection::MalformedBody)
        }
        _ => Err(Rejection::UnsupportedMediaType),
    }
}

/// What is at no other path.
fn not_found() -> HttpResponse {
    HttpResponse::build(StatusCode::NOT_FOUND).content_type("text/plain").body("not found\n")
}
