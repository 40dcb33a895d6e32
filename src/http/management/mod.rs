//! The management API of the published page: routes, who may ask, what every answer carries.
//!
//! Answers come from this gateway's own registry ([`local`], their bytes in [`wire`]) or from the upstream ([`proxy`]).
//! Blocking work (SQLite) is done by `web::block`, never on the worker.

mod diagnostics;
mod headers;
mod last_events;
mod lesson;
mod local;
pub mod proxy;
pub mod wire;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};

use self::proxy::Proxy;
use self::wire::Snippet;
use super::body::{self, Fault};
use super::client::Proxies;
use super::reply::over_limit;
use crate::diagnostics::Diagnostics;
use crate::inflight::Inflight;
use crate::limits::{self, Limits, Over};
use crate::metrics::{Metrics, Route};
use crate::registry::tokens::{self, Grant, TokenHash};
use crate::registry::{self, Registry, report};
use crate::time::Clock;

/// The operator's words.
#[derive(Clone, Debug)]
pub struct Options {
    /// `management.listen`; absent = the public listener.
    pub listen: Option<SocketAddr>,
    /// `registry.snippet_value`.
    pub snippet_value: String,
    /// `registry.snippet_currency`.
    pub snippet_currency: String,
}

/// What the routes need.
pub struct State {
    /// The known pixels.
    pub registry: Arc<Registry>,
    /// What a fresh `js_pixel` carries.
    pub snippet: Snippet,
    /// `limits.management`.
    pub limits: Arc<Limits>,
    /// Who asks.
    pub proxies: Arc<Proxies>,
    /// For `X-Runtime`.
    pub clock: Arc<dyn Clock>,
    /// Whether clients reach it by TLS.
    pub is_tls: bool,
    /// The upstream that answers; without one the registry does.
    pub proxy: Option<proxy::Options>,
    /// What became of pixels' requests.
    pub diagnostics: Arc<Diagnostics>,
    /// Counts the answers.
    pub metrics: Arc<Metrics>,
    /// Bounds of one body.
    pub body: body::Bounds,
    /// The bound of all bodies and records together.
    pub inflight: Arc<Inflight>,
}

impl State {
    /// State with the contract's default bounds, no limiter, and the peer as the client.
    pub fn new(registry: Arc<Registry>, snippet: Snippet, clock: Arc<dyn Clock>) -> State {
        State {
            registry,
            snippet,
            limits: Arc::new(Limits::new(&limits::Options::OFF)),
            proxies: Arc::new(Proxies::new(None)),
            is_tls: false,
            proxy: None,
            metrics: Arc::new(Metrics::new(clock.now(), 0)),
            diagnostics: Diagnostics::new(String::new(), clock.clone(), |_| false),
            clock,
            body: body::Bounds { max_bytes: 64 << 10, pause: Duration::from_secs(10) },
            inflight: Arc::default(),
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// Mounts the routes.
pub fn configure(config: &mut ServiceConfig, state: Arc<State>) {
    let shared = (Arc::clone(&state), state.proxy.clone().map(Proxy::new));
    let at = |place: fn(String) -> Place| {
        let shared = shared.clone();
        move |request: HttpRequest, payload: web::Payload| {
            let id = request.match_info().get("id").unwrap_or_default().to_owned();
            answer(shared.clone(), request, payload, place(id))
        }
    };
    config
        .service(web::resource(["/offsitepixels", "/offsitepixels/"]).to(at(|_| Place::Collection)))
        .service(web::resource("/offsitepixels/last_events").to(at(|_| Place::LastEvents)))
        .service(web::resource("/offsitepixels/{id}/diagnostics").to(at(Place::Diagnostics)))
        .service(web::resource("/offsitepixels/{id}").to(at(Place::Single)));
}

/// What a path stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    Collection,
    /// Of a fleet; here only, never the upstream's.
    LastEvents,
    /// A pixel, by what stands for its id.
    Single(String),
    /// What this node knows of it; never the upstream's.
    Diagnostics(String),
}

impl Place {
    fn id(&self) -> Option<&str> {
        match self {
            Place::Collection | Place::LastEvents => None,
            Place::Single(id) | Place::Diagnostics(id) => Some(id),
        }
    }
}

/// An answer that is not 200, in the error shape.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    kind: &'static str,
    message: Cow<'static, str>,
    param: Option<&'static str>,
    retry_after: Option<Duration>,
    over: Option<Over>,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<Cow<'static, str>>) -> Failure {
        Failure { status, kind, message: message.into(), param: None, retry_after: None, over: None }
    }

    fn of_param(kind: &'static str, param: &'static str, message: impl Into<Cow<'static, str>>) -> Failure {
        Failure { param: Some(param), ..Failure::new(StatusCode::BAD_REQUEST, kind, message) }
    }
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Failure {
        match error {
            registry::Error::NameTaken => {
                let text = "The ad account already has a pixel of this name";
                Failure { param: Some("name"), ..Failure::new(StatusCode::CONFLICT, "name_taken", text) }
            }
            registry::Error::UnknownPixel => unknown_pixel(),
            registry::Error::Static => {
                let text = "This pixel is given by registry.pixels: it is changed there";
                Failure::new(StatusCode::FORBIDDEN, "static_pixel", text)
            }
            registry::Error::Full(max) => {
                let text = format!("The registry holds registry.max_pixels = {max} pixels");
                Failure::new(StatusCode::FORBIDDEN, "registry_full", text)
            }
            // The path and the system's words are for the log.
            other => {
                tracing::warn!(error = %other, "a management request could not be answered");
                unavailable()
            }
        }
    }
}

impl From<actix_web::error::BlockingError> for Failure {
    fn from(_: actix_web::error::BlockingError) -> Failure {
        unavailable()
    }
}

fn unknown_pixel() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "unknown_pixel", "There is no pixel with this id")
}

fn unavailable() -> Failure {
    let text = "The registry can't be used at the moment; events are still accepted";
    let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "registry_unavailable", text);
    Failure { retry_after: Some(Duration::from_secs(5)), ..failure }
}

/// One request, from its head to its answer.
async fn answer(
    (state, proxy): (Arc<State>, Option<Rc<Proxy>>),
    request: HttpRequest,
    mut payload: web::Payload,
    place: Place,
) -> HttpResponse {
    let started = state.clock.monotonic();
    let request_id = request_id(&request, proxy.is_some());
    let result = match &proxy {
        _ if request.method() == Method::OPTIONS => None,
        _ if matches!(place, Place::Diagnostics(_)) => {
            Some(diagnostics::answer(&state, &request, place.id()).await.map(Answer::Own))
        }
        None if place == Place::LastEvents => {
            Some(last_events::answer(&state, &request, &mut payload).await.map(Answer::Own))
        }
        None => Some(local::answer(&state, &request, &mut payload, place.id(), &request_id).await),
        Some(proxy) => {
            let answer = proxy::answer(&state, proxy, &request, &mut payload, &request_id).await;
            Some(answer.map(Answer::Upstreams))
        }
    };
    let allow = match (&proxy, &place) {
        (_, Place::Diagnostics(_)) => "GET, HEAD, OPTIONS",
        (Some(_), _) => "GET, HEAD, POST, PUT, DELETE, OPTIONS",
        (None, Place::Collection) => "GET, HEAD, POST, OPTIONS",
        (None, Place::LastEvents) => "POST, OPTIONS",
        (None, Place::Single(_)) => "GET, HEAD, PUT, DELETE, OPTIONS",
    };
    let took = state.clock.monotonic().saturating_sub(started);
    let begin = |status| begin(status, &request_id, took);
    let empty = || {
        let mut builder = begin(StatusCode::NO_CONTENT);
        builder.insert_header((header::CACHE_CONTROL, "no-cache"));
        builder
    };
    let mut reply = match result {
        None => empty().insert_header((header::ALLOW, allow)).finish(),
        Some(Ok(Answer::Own(body))) => success(begin(StatusCode::OK), &request, body),
        Some(Ok(Answer::Done)) => empty().finish(),
        Some(Ok(Answer::Upstreams(reply))) => reply,
        Some(Err(failure)) => {
            let mut builder = begin(failure.status);
            if failure.status == StatusCode::METHOD_NOT_ALLOWED {
                builder.insert_header((header::ALLOW, allow));
            }
            failed(builder, &failure)
        }
    };
    if proxy.is_none() && request.headers().contains_key(last_events::GATEWAY) {
        reply.headers_mut().insert(last_events::ACCEPTS, HeaderValue::from_static(report::PATH));
    }
    state.metrics.request(Route::Management, request.method().as_str(), reply.status().as_u16(), took);
    reply
}

/// A good answer.
enum Answer {
    /// A body with status 200.
    Own(Vec<u8>),
    /// Nothing to show: 204.
    Done,
    /// As it came.
    Upstreams(HttpResponse),
}

/// What the document shows on every answer.
fn begin(status: StatusCode, request_id: &str, took: Duration) -> HttpResponseBuilder {
    const HEADERS: [(&str, &str); 8] = [
        ("X-Frame-Options", "SAMEORIGIN"),
        ("X-XSS-Protection", "1; mode=block"),
        ("X-Content-Type-Options", "nosniff"),
        ("X-UA-Compatible", "chrome=1"),
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Allow-Methods", "POST, PUT, DELETE, GET, OPTIONS"),
        ("Access-Control-Request-Method", "*"),
        (
            "Access-Control-Allow-Headers",
            "Origin, X-Requested-With, Content-Type, Accept, Authorization, Content-Disposition",
        ),
    ];
    let mut builder = HttpResponse::build(status);
    for header in HEADERS {
        builder.insert_header(header);
    }
    builder.insert_header(("X-Request-Id", request_id));
    builder.insert_header(("X-Runtime", format!("{:.6}", took.as_secs_f64())));
    builder
}

/// The client's own id, at most 255 letters of it, else a new one. As far as Rails kept it: letters, digits, `_` and
/// `-`; for an upstream, which may be none, whatever is visible.
fn request_id(request: &HttpRequest, proxied: bool) -> String {
    let given = request.headers().get("X-Request-Id").map_or(&b""[..], HeaderValue::as_bytes);
    let kept = |byte: &&u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (proxied && byte.is_ascii_graphic())
    };
    let id: String = given.iter().filter(kept).take(255).map(|byte| char::from(*byte)).collect();
    if id.is_empty() { uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string() } else { id }
}

fn success(mut builder: HttpResponseBuilder, request: &HttpRequest, body: Vec<u8>) -> HttpResponse {
    let etag = wire::etag(&body);
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let known = |value: &HeaderValue| wire::matches(value.as_bytes(), &etag);
    let not_modified = reads && request.headers().get_all(header::IF_NONE_MATCH).any(known);
    builder.insert_header((header::ETAG, etag));
    builder.insert_header((header::CACHE_CONTROL, "max-age=0, private, must-revalidate"));
    if not_modified {
        return builder.status(StatusCode::NOT_MODIFIED).finish();
    }
    builder.insert_header((header::CONTENT_TYPE, "application/json; charset=utf-8")).body(body)
}

fn failed(mut builder: HttpResponseBuilder, failure: &Failure) -> HttpResponse {
    if failure.status == StatusCode::UNAUTHORIZED {
        let challenge = match failure.kind {
            "missing_token" => "OAuth realm=\"pixelgate\"",
            _ => "OAuth realm=\"pixelgate\", error=\"invalid_token\"",
        };
        builder.insert_header((header::WWW_AUTHENTICATE, challenge));
    }
    if let Some(wait) = failure.retry_after {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        builder.insert_header((header::RETRY_AFTER, seconds.max(1).to_string()));
    }
    if let Some(over) = &failure.over {
        over_limit(&mut builder, over);
    }
    builder.insert_header((header::CACHE_CONTROL, "no-cache"));
    builder.insert_header((header::CONTENT_TYPE, "application/json; charset=utf-8"));
    builder.body(wire::error(failure.kind, &failure.message, failure.param))
}

/// Who asks: the address, and the hash of a token if there is one.
struct Asker {
    ip: Option<IpAddr>,
    token: Option<TokenHash>,
}

/// Counts the request against its address and token.
fn limit(state: &State, request: &HttpRequest) -> Result<Asker, Failure> {
    let header = request.headers().get(header::AUTHORIZATION);
    let hash = header.and_then(|value| presented(value.as_bytes())).map(tokens::hash);
    // Of an unknown proxy, too: administrators are few, and need no more than one address may.
    let ip = state.proxies.visitor(request).ip;
    if let Err(over) = state.limits.management(ip, hash.as_ref(), state.clock.monotonic()) {
        let failure = Failure::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", "Too many requests");
        return Err(Failure { over: Some(over), ..failure });
    }
    Ok(Asker { ip, token: hash })
}

/// Limits, then checks the token.
async fn authorise(state: &State, request: &HttpRequest) -> Result<Grant, Failure> {
    let Some(hash) = limit(state, request)?.token else {
        let text = "The header \"Authorization: OAuth <token>\" is missing";
        return Err(Failure::new(StatusCode::UNAUTHORIZED, "missing_token", text));
    };
    let registry = Arc::clone(&state.registry);
    let grant = web::block(move || registry.check_token(&hash)).await??;
    grant.ok_or_else(|| {
        Failure::new(StatusCode::UNAUTHORIZED, "invalid_token", "The token is unknown or has been revoked")
    })
}

/// Why a body could not be had, as an answer.
fn no_body(state: &State, fault: Fault) -> Failure {
    let failure = |status, kind, text: &'static str| Failure::new(status, kind, text);
    match fault {
        Fault::Encoded => {
            let text = "An encoded body can't be read: send it without Content-Encoding";
            failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", text)
        }
        Fault::TooLarge => {
            let text = format!("The body has more than {} bytes", state.body.max_bytes);
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", text)
        }
        Fault::Late => failure(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body did not arrive in time"),
        Fault::Broken => failure(StatusCode::BAD_REQUEST, "malformed_body", "The body could not be read to its end"),
        Fault::NoRoom => {
            let text = "Too many requests are in flight";
            let failure = failure(StatusCode::SERVICE_UNAVAILABLE, "overloaded", text);
            Failure { retry_after: Some(Duration::from_secs(1)), ..failure }
        }
    }
}

/// The token of an `Authorization` value with the scheme `OAuth` or `Bearer`.
pub(in crate::http) fn presented(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii();
    let end = memchr::memchr(b' ', value)?;
    let (scheme, token) = (&value[..end], value[end..].trim_ascii());
    let known = scheme.eq_ignore_ascii_case(b"OAuth") || scheme.eq_ignore_ascii_case(b"Bearer");
    (known && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests;
