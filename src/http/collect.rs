//! The event routes: collect the request within bounds, offer it, wait for its receipt, reply.

use std::future::{Ready, ready};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::StreamExt;

use super::client::{Proxies, Visitor};
use super::reply::Shape;
use crate::event::rejection::Rejection;
use crate::event::{Body, Client, RawEvent};
use crate::ingest::{Denied, Ingest, Kept, Outcome};
use crate::metrics::{self, Route};
use crate::time::{Clock, SystemClock};

/// The first-party tag.
const TAG: &str = include_str!("tag.js");

/// Bounds of a request.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `limits.max_body_bytes`.
    pub max_body_bytes: usize,
    /// `server.max_uri_bytes`.
    pub max_uri_bytes: usize,
    /// `server.body_timeout`: between two chunks.
    pub body_timeout: Duration,
}

/// What a worker's routes share.
pub struct Worker {
    /// The worker's way into the journal.
    pub ingest: Ingest,
    /// Whose requests they are.
    pub proxies: Arc<Proxies>,
    /// Bounds.
    pub bounds: Bounds,
    /// The worker's counters.
    pub metrics: metrics::Worker,
}

/// Mounts the routes of websites.
pub fn configure(config: &mut ServiceConfig, worker: Rc<Worker>) {
    for path in ["/offsite_event.php", "/offsite_event"] {
        let worker = worker.clone();
        config.service(web::resource(path).to(move |request: HttpRequest, payload: web::Payload| {
            let worker = worker.clone();
            async move { answer(&worker, &request, payload).await }
        }));
    }
    let paths = ["/fp.js", "/{locale:[a-z][a-z]_[A-Z][A-Z]}/fp.js"];
    config
        .service(web::resource(paths).to(counted(&worker, Route::Tag, tag)))
        .service(web::resource("/robots.txt").to(counted(&worker, Route::Other, robots)))
        .service(web::resource("/favicon.ico").to(counted(&worker, Route::Other, favicon)))
        .default_service(web::to(counted(&worker, Route::Other, not_found)));
}

/// A handler that needs nothing of its request, with its place in the figures.
fn counted(
    worker: &Rc<Worker>,
    route: Route,
    reply: fn() -> HttpResponse,
) -> impl Fn(HttpRequest) -> Ready<HttpResponse> + Clone + 'static {
    let worker = worker.clone();
    move |request| {
        let begun = SystemClock.monotonic();
        let reply = reply();
        worker.count(route, &request, &reply, begun);
        ready(reply)
    }
}

impl Worker {
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

fn tag() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/javascript; charset=utf-8"))
        .insert_header((header::CACHE_CONTROL, "public, max-age=3600"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header(("cross-origin-resource-policy", "cross-origin"))
        .body(TAG)
}

async fn answer(worker: &Worker, request: &HttpRequest, payload: web::Payload) -> HttpResponse {
    let begun = SystemClock.monotonic();
    let head = request.head();
    let shape = Shape::of(&head.method, &head.headers);
    let visitor = worker.proxies.visitor(request);
    let reply = match offer(worker, request, &visitor, begun, payload).await {
        Ok(Some((outcome_id, warnings))) => shape.accepted(outcome_id, warnings),
        Ok(None) => shape.preflight(),
        Err(denied) => {
            // No await lies between the decision and this count.
            worker.metrics.rejected(denied.refusal.reason);
            shape.rejected(&denied)
        }
    };
    worker.count(Route::Event, request, &reply, begun);
    reply
}

type Told = Option<(Option<[u8; 16]>, crate::event::Warnings)>;

async fn offer(
    worker: &Worker,
    request: &HttpRequest,
    visitor: &Visitor,
    begun: Duration,
    payload: web::Payload,
) -> Result<Told, Denied> {
    let head = request.head();
    if let (Some(ip), true) = (visitor.ip, visitor.is_own) {
        worker.ingest.admit(ip, begun)?;
    }
    let target_bytes = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target_bytes > worker.bounds.max_uri_bytes {
        return Err(Rejection::UriTooLong.into());
    }
    let body = match head.method {
        Method::GET | Method::HEAD => Bytes::new(),
        Method::POST => collect(&worker.bounds, &head.headers, payload).await?,
        Method::OPTIONS => return Ok(None),
        _ => return Err(Rejection::MethodNotAllowed.into()),
    };
    // From here to the receipt nothing waits: the request is rejected now or enqueued now.
    let content_type = text_header(&head.headers, header::CONTENT_TYPE).unwrap_or_default();
    let raw = RawEvent { query: request.query_string().as_bytes(), body: read_as(&body, content_type)? };
    let prefetch = [head.headers.get("sec-purpose"), head.headers.get("purpose")].into_iter().flatten();
    let counts = head.method != Method::HEAD && !prefetch.into_iter().any(is_prefetch);
    let bytes = |name| head.headers.get(name).map(HeaderValue::as_bytes);
    let client = Client {
        ip: visitor.ip,
        user_agent: bytes(header::USER_AGENT),
        referer: bytes(header::REFERER),
        cookie: bytes(header::COOKIE),
        gpc: head.headers.get("sec-gpc").is_some_and(|value| value == "1"),
    };
    let offered = worker.ingest.offer(raw, &client, counts);
    if let (Err(denied), true) = (&offered, counts)
        && worker.ingest.keep_rejected(denied.refusal, &raw, &client) == Kept::Dropped
    {
        worker.metrics.reject_dropped();
    }
    match offered? {
        Outcome::Ignored(warnings) => {
            worker.metrics.ignored();
            worker.metrics.warned(warnings);
            Ok(Some((None, warnings)))
        }
        Outcome::Accepted(accepted) => {
            worker.metrics.warned(accepted.warnings);
            accepted.receipt.await.map_err(|_| Rejection::JournalUnavailable)?;
            Ok(Some((Some(accepted.id), accepted.warnings)))
        }
    }
}

fn is_prefetch(value: &HeaderValue) -> bool {
    memchr::memmem::find(value.as_bytes(), b"prefetch").is_some()
}

fn text_header(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What a body is read as, by its media type.
fn read_as<'a>(body: &'a [u8], content_type: &'a str) -> Result<Body<'a>, Rejection> {
    if body.is_empty() {
        return Ok(Body::None);
    }
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

/// The body, within its bounds of size and time.
async fn collect(bounds: &Bounds, headers: &HeaderMap, mut payload: web::Payload) -> Result<Bytes, Rejection> {
    let encoded = text_header(headers, header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    if encoded {
        return Err(Rejection::UnsupportedMediaType);
    }
    let declared = text_header(headers, header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if declared.is_some_and(|length| length > bounds.max_body_bytes as u64) {
        return Err(Rejection::BodyTooLarge);
    }
    let mut body = Vec::new();
    loop {
        match tokio::time::timeout(bounds.body_timeout, payload.next()).await {
            Err(_) => return Err(Rejection::BodyTimeout),
            Ok(None) => return Ok(body.into()),
            Ok(Some(Err(_))) => return Err(Rejection::MalformedBody),
            Ok(Some(Ok(chunk))) if body.len() + chunk.len() > bounds.max_body_bytes => {
                return Err(Rejection::BodyTooLarge);
            }
            Ok(Some(Ok(chunk))) => body.extend_from_slice(&chunk),
        }
    }
}

/// What is at no other path.
fn not_found() -> HttpResponse {
    HttpResponse::build(StatusCode::NOT_FOUND).content_type("text/plain").body("not found\n")
}
