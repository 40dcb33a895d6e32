//! Management requests passed on to `registry.upstream` and its replies passed back, byte for byte.
//!
//! Three routes only, matched here on the raw path before a target is built from it; what a request says of hosts
//! chooses nothing. The request's body is read whole first, within `limits.max_body_bytes`, so that no slow client
//! holds a call; the reply's is passed on as it arrives, and a client that doesn't take it loses it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::body::{BodyStream, SizedStream};
use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::headers;
use super::lesson::Lesson;
use super::{Failure, State, limit, no_body};
use crate::http::body;
use crate::pixel::MAX_DIGITS;
use crate::upstream::{self, Answer, Body, Call, Client, Connector, Gate, PathAndQuery};

/// Calls that may be open at once, of all workers. Above what people and programs that manage pixels do; each costs a
/// connection on both sides.
pub const CALLS: usize = 256;
/// Chunks of a reply between its reader and its writer.
const CHUNKS: usize = 1;

/// What every worker's [`Proxy`] is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the upstream is.
    pub upstream: upstream::Options,
    /// To it.
    pub connector: Connector,
    /// Shared by all workers, for [`CALLS`].
    pub gate: Arc<Gate>,
    /// `registry.forward_cookies`.
    pub forward_cookies: Vec<String>,
    /// `server.max_uri_bytes`.
    pub max_uri_bytes: usize,
}

/// One worker's way to the upstream.
pub struct Proxy {
    client: Client,
    forward_cookies: Vec<String>,
    /// Also the longest that a client may take for a chunk.
    timeout: Duration,
    max_uri_bytes: usize,
}

impl Proxy {
    /// For the thread that it is made on.
    pub fn new(options: Options) -> Rc<Proxy> {
        let Options { upstream, connector, gate, forward_cookies, max_uri_bytes } = options;
        let timeout = upstream.timeout;
        let client = Client::new(upstream, connector, gate);
        Rc::new(Proxy { client, forward_cookies, timeout, max_uri_bytes })
    }
}

/// A reply's bytes; an error when it breaks off.
type Chunk = Result<Bytes, upstream::Error>;

/// Passes a request on and its reply back, or says why not.
pub(super) async fn answer(
    state: &Arc<State>,
    proxy: &Rc<Proxy>,
    request: &HttpRequest,
    payload: &mut web::Payload,
    request_id: &str,
) -> Result<HttpResponse, Failure> {
    let method = method(request)?;
    let target = target(request, proxy.max_uri_bytes)?;
    let asker = limit(state, request)?;
    let framed_twice = request.headers().contains_key(header::CONTENT_LENGTH)
        && request.headers().contains_key(header::TRANSFER_ENCODING);
    if framed_twice {
        let text = "Content-Length and Transfer-Encoding exclude each other";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "malformed_request", text));
    }
    let mut room = state.inflight.body();
    let body = body::collect_as_is(&state.body, request.headers(), payload, &mut room).await;
    let body = body.map_err(|fault| no_body(state, fault))?;
    let proto = if state.is_tls { "https" } else { "http" };
    let headers = headers::to_upstream(request, asker.ip, request_id, proto, &proxy.forward_cookies);
    let call = Call { method, target, headers, body };
    let (head_sender, head) = oneshot::channel();
    let (chunk_sender, chunks) = mpsc::channel(CHUNKS);
    // On its own, so that a creation whose client has left is still followed to its end.
    let lesson = Lesson::of(&state.registry, &call);
    actix_web::rt::spawn(exchange(Rc::clone(proxy), call, lesson, head_sender, chunk_sender));
    let answer = head.await.unwrap_or(Err(upstream::Error::Slow)).map_err(failure)?;
    reply(proxy, answer, chunks)
}

/// What of an answer precedes its body.
struct Head {
    status: u16,
    headers: upstream::HeaderMap,
}

async fn exchange(
    proxy: Rc<Proxy>,
    call: Call,
    lesson: Option<Lesson>,
    mut head: oneshot::Sender<Result<Head, upstream::Error>>,
    chunks: mpsc::Sender<Chunk>,
) {
    let repeatable = matches!(call.method, upstream::Method::GET | upstream::Method::HEAD);
    let answer = tokio::select! {
        answer = proxy.client.call(&call) => answer,
        // Nobody waits for what was only to be read.
        () = head.closed(), if repeatable => return,
    };
    match answer {
        Err(error) => drop(head.send(Err(error))),
        Ok(Answer { status, headers, body }) => {
            let mut lesson = lesson.and_then(|mut lesson| lesson.begins(status, &headers).then_some(lesson));
            if let Some(lesson) = lesson.take_if(|lesson| lesson.is_in_the_head()) {
                lesson.finish().await;
            }
            // A creation is learnt also when nobody waits for its reply any more.
            if head.send(Ok(Head { status, headers })).is_ok() || lesson.is_some() {
                match lesson {
                    Some(lesson) => pass_and_learn(body, lesson, &chunks, proxy.timeout).await,
                    None => pass(body, &chunks, proxy.timeout).await,
                }
            }
        }
    }
}

/// Passes a body on. Ends early when its reader is gone or slower than the limit.
async fn pass(mut body: Body, chunks: &mpsc::Sender<Chunk>, limit: Duration) {
    loop {
        let next = body.chunk().await;
        let last = !matches!(next, Ok(Some(_)));
        if let Some(chunk) = next.transpose() {
            if let Err(error) = &chunk {
                tracing::warn!(%error, "a reply of registry.upstream broke off");
            }
            if !matches!(timeout(limit, chunks.send(chunk)).await, Ok(Ok(()))) {
                return;
            }
        }
        if last {
            return;
        }
    }
}

/// Passes a body on whose last bytes wait until what it teaches is known: who has read it all may fire its pixels.
async fn pass_and_learn(mut body: Body, mut lesson: Lesson, chunks: &mpsc::Sender<Chunk>, limit: Duration) {
    let mut held: Option<Bytes> = None;
    let mut taken = true;
    loop {
        let next = body.chunk().await;
        let before = match &next {
            Ok(Some(chunk)) => {
                lesson.take(chunk);
                held.replace(chunk.clone())
            }
            _ => held.take(),
        };
        let over = !matches!(next, Ok(Some(_)));
        let error = next.err();
        if over && error.is_none() {
            lesson.finish().await;
            if let Some(last) = before {
                let _ = timeout(limit, chunks.send(Ok(last))).await;
            }
            return;
        }
        for chunk in before.map(Ok).into_iter().chain(error.map(Err)) {
            if let Err(error) = &chunk {
                tracing::warn!(%error, "a reply of registry.upstream broke off");
            }
            taken = taken && matches!(timeout(limit, chunks.send(chunk)).await, Ok(Ok(())));
        }
        if over {
            return;
        }
    }
}

fn method(request: &HttpRequest) -> Result<upstream::Method, Failure> {
    match *request.method() {
        Method::GET => Ok(upstream::Method::GET),
        Method::HEAD => Ok(upstream::Method::HEAD),
        Method::POST => Ok(upstream::Method::POST),
        Method::PUT => Ok(upstream::Method::PUT),
        Method::DELETE => Ok(upstream::Method::DELETE),
        _ => {
            let text = "This resource doesn't have this method";
            Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text))
        }
    }
}

/// The target for the upstream: one of the routes, and the query as it is.
fn target(request: &HttpRequest, max_bytes: usize) -> Result<PathAndQuery, Failure> {
    let uri = request.uri();
    if uri.authority().is_some() || uri.scheme().is_some() {
        let text = "The request's target must be a path, not a URL";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "malformed_request", text));
    }
    let whole = uri.path_and_query().map_or("", |target| target.as_str());
    if whole.len() > max_bytes {
        let text = format!("The request's target has more than {max_bytes} bytes");
        return Err(Failure::new(StatusCode::URI_TOO_LONG, "uri_too_long", text));
    }
    if !is_route(uri.path()) {
        return Err(Failure::new(StatusCode::NOT_FOUND, "unknown_pixel", "There is nothing at this path"));
    }
    whole.parse().map_err(|_| {
        Failure::new(StatusCode::BAD_REQUEST, "malformed_request", "The request's target can't be passed on")
    })
}

/// `/offsitepixels` or `/offsitepixels/{digits}`, undecoded.
fn is_route(path: &str) -> bool {
    let Some(below) = path.strip_prefix("/offsitepixels") else { return false };
    let is_id = |id: &str| (1..=MAX_DIGITS).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit());
    below.is_empty() || below.strip_prefix('/').is_some_and(is_id)
}

fn failure(error: upstream::Error) -> Failure {
    let (kind, text) = match &error {
        upstream::Error::Busy => ("upstream_busy", "Too many requests are waiting for the upstream"),
        upstream::Error::Slow => ("upstream_timeout", "The upstream did not answer in time"),
        upstream::Error::Resting => ("upstream_unavailable", "The upstream did not answer lately; try again soon"),
        _ => ("upstream_unavailable", "The upstream could not be reached or broke off"),
    };
    let waits = matches!(error, upstream::Error::Busy | upstream::Error::Resting);
    // Told by the calls that failed, not by those that were not made.
    if !waits {
        tracing::warn!(%error, "a management request got no answer");
    }
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    Failure { retry_after: waits.then_some(Duration::from_secs(1)), ..Failure::new(status, kind, text) }
}

fn reply(proxy: &Proxy, head: Head, chunks: mpsc::Receiver<Chunk>) -> Result<HttpResponse, Failure> {
    let broken = |_| failure(upstream::Error::Broken("its status".to_owned()));
    let mut builder = HttpResponse::build(StatusCode::from_u16(head.status).map_err(broken)?);
    headers::to_client(&head.headers, &proxy.forward_cookies, &mut builder);
    let length = headers::length(&head.headers);
    let bodiless = matches!(head.status, 204 | 304);
    match length {
        // What a 304 says of the length is of the body that it stands for.
        Some(length) if bodiless => Ok(builder.insert_header((header::CONTENT_LENGTH, length)).finish()),
        None if bodiless => Ok(builder.finish()),
        Some(length) => Ok(builder.body(SizedStream::new(length, received(chunks)))),
        None => Ok(builder.body(BodyStream::new(received(chunks)))),
    }
}

fn received(chunks: mpsc::Receiver<Chunk>) -> impl Stream<Item = Chunk> {
    stream::unfold(chunks, |mut chunks| async move { Some((chunks.recv().await?, chunks)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_matched_before_anything_is_decoded() {
        for good in ["/offsitepixels", "/offsitepixels/6014360342904", "/offsitepixels/00000000000000000001"] {
            assert!(is_route(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "/offsitepixels/",
            "/offsitepixelsx",
            "/offsitepixels1",
            "/offsitepixels//1",
            "/offsitepixels/1/",
            "/offsitepixels/1/diagnostics",
            "/offsitepixels/%31",
            "/offsitepixels%2F1",
            "/offsitepixels/1%2F..%2F..%2Fadmin",
            "/offsitepixels/..",
            "/offsitepixels/+1",
            "/offsitepixels/1;a=b",
            "/offsitepixels/١",
            "/offsitepixels/111111111111111111111",
            "/offsitepixels/../admin",
            "//offsitepixels",
        ] {
            assert!(!is_route(bad), "{bad}");
        }
    }
}
