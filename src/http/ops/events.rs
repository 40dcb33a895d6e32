//! `/events`: the live feed as server-sent events.
//!
//! A stream ends when the gateway stops, when its token is revoked (looked at with each heartbeat), or when its reader
//! is too slow; then the connection is cut, as a reader that doesn't read would not see an end either.

use std::future::poll_fn;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::rt::time::{Instant, sleep_until};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use serde::Deserialize;

use super::Connection;
use super::access::{self, Access, Denied};
use crate::event::encode::id_text;
use crate::feed::{Cut, Line, READERS_MAX, Reader, Refused, Wanted};
use crate::pixel::PixelId;
use crate::record::Kind;
use crate::registry::Registry;
use crate::registry::tokens::Grant;

/// Lines that are written at once, so that a burst costs few system calls.
const CHUNK_BYTES: usize = 32 << 10;
/// So that proxies and clients know that it lives, also while nothing happens.
pub const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
pub(super) struct Query {
    pixel_id: Option<String>,
}

/// One stream.
struct Stream {
    reader: Reader,
    access: Access,
    registry: Arc<Registry>,
    heartbeat: Duration,
    next_beat: Instant,
    begun: bool,
}

/// Answers.
pub(super) async fn events(request: HttpRequest, query: web::Query<Query>) -> HttpResponse {
    let state = super::state(&request);
    let access = match access::of(&request, state.address, &state.registry).await {
        Ok(access) => access,
        Err(denied) => return refuse(denied),
    };
    let only = match query.pixel_id.as_deref().map(|id| PixelId::parse(id.as_bytes()).ok_or(())) {
        None => None,
        Some(Ok(pixel)) => Some(pixel),
        Some(Err(())) => {
            let text = "pixel_id must be 1 to 20 digits without a leading zero";
            return problem(StatusCode::BAD_REQUEST, "invalid_pixel_id", text);
        }
    };
    let wanted = match &access {
        Access::Token(_, grant) if !grant.ad_accounts.is_empty() => {
            if only.is_some_and(|pixel| !allows(grant, &state.registry, pixel)) {
                let text = "This token is not for the ad account of this pixel";
                return problem(StatusCode::FORBIDDEN, "forbidden", text);
            }
            of_accounts(grant.clone(), state.registry.clone(), only)
        }
        _ => Box::new(move |pixel| only.is_none() || pixel == only),
    };
    let reader = match state.feed.join(state.journal.synced(), wanted, cut(&request)) {
        Ok(reader) => reader,
        Err(refused) => return unavailable(refused),
    };
    let next_beat = Instant::now() + state.heartbeat;
    let (registry, heartbeat) = (state.registry.clone(), state.heartbeat);
    stream_of(Stream { reader, access, registry, heartbeat, next_beat, begun: false })
}

fn stream_of(stream: Stream) -> HttpResponse {
    let chunks = stream::unfold(stream, |mut stream| async move {
        let chunk = stream.chunk().await?;
        Some((Ok::<Bytes, actix_web::Error>(chunk), stream))
    });
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        // nginx would gather the lines otherwise.
        .insert_header(("x-accel-buffering", "no"))
        .content_type("text/event-stream")
        .streaming(chunks)
}

impl Stream {
    /// What is written next; `None` at the end.
    async fn chunk(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Bytes::from_static(b": events of this gateway, live\n\n"));
        }
        let reader = &mut self.reader;
        tokio::select! {
            line = poll_fn(|context| reader.poll_next(context)) => {
                let mut chunk = BytesMut::new();
                write(&mut chunk, &line?);
                self.write_waiting(&mut chunk);
                Some(chunk.freeze())
            }
            () = sleep_until(self.next_beat) => {
                self.next_beat = Instant::now() + self.heartbeat;
                self.still_allowed().await.then_some(Bytes::from_static(b":\n\n"))
            }
        }
    }

    /// Adds lines that wait already.
    fn write_waiting(&mut self, chunk: &mut BytesMut) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        while chunk.len() < CHUNK_BYTES {
            // The end is seen again by the next call.
            let std::task::Poll::Ready(Some(line)) = self.reader.poll_next(&mut context) else { return };
            write(chunk, &line);
        }
    }

    /// A token may have been revoked meanwhile, or narrowed. One that can't be looked up now is believed.
    async fn still_allowed(&self) -> bool {
        let Access::Token(hash, granted) = &self.access else { return true };
        match access::check(&self.registry, *hash).await {
            Ok(now) => now.ad_accounts == granted.ad_accounts,
            Err(Denied::Unavailable(_)) => true,
            Err(Denied::Missing | Denied::Invalid) => false,
        }
    }
}

/// A record's JSON has no line breaks, so it is one line of data.
fn write(out: &mut BytesMut, line: &Line) {
    let event: &[u8] = match line.kind {
        Kind::Event => b"event: accepted\nid: ",
        Kind::Rejected => b"event: rejected\nid: ",
    };
    out.put_slice(event);
    out.put_slice(&id_text(line.id));
    out.put_slice(b"\ndata: ");
    out.put_slice(&line.body);
    out.put_slice(b"\n\n");
}

pub(super) fn allows(grant: &Grant, registry: &Registry, pixel: PixelId) -> bool {
    grant.allows(registry.find(pixel).as_ref().and_then(|entry| entry.pixel.ad_account_id.as_deref()))
}

/// Records of the grant's ad accounts; what names no known pixel belongs to none.
fn of_accounts(grant: Grant, registry: Arc<Registry>, only: Option<PixelId>) -> Wanted {
    Box::new(move |pixel| {
        let Some(pixel) = pixel.filter(|pixel| only.is_none_or(|only| only == *pixel)) else { return false };
        allows(&grant, &registry, pixel)
    })
}

/// Ends the connection under a stream that isn't read, from whatever thread.
fn cut(request: &HttpRequest) -> Cut {
    let connection = request.conn_data::<Connection>().map(|connection| connection.0.clone());
    Box::new(move || {
        if let Some(connection) = &connection {
            // It may have gone by itself.
            let _ = connection.shutdown(Shutdown::Both);
        }
    })
}

pub(super) fn refuse(denied: Denied) -> HttpResponse {
    let unauthorised = |challenge: &'static str, text| {
        let mut reply = problem_builder(StatusCode::UNAUTHORIZED);
        reply.insert_header((header::WWW_AUTHENTICATE, challenge));
        finish(reply, StatusCode::UNAUTHORIZED, "unauthorized", text)
    };
    match denied {
        Denied::Missing => unauthorised(
            "OAuth realm=\"pixelgate\"",
            "Needs the header \"Authorization: OAuth <management token>\", unless listener, peer and Host are loopback",
        ),
        Denied::Invalid => unauthorised(
            "OAuth realm=\"pixelgate\", error=\"invalid_token\"",
            "The token is unknown or has been revoked",
        ),
        Denied::Unavailable(error) => {
            tracing::warn!(%error, "a token can't be checked");
            problem(StatusCode::SERVICE_UNAVAILABLE, "registry_unavailable", "Tokens can't be checked at the moment")
        }
    }
}

fn unavailable(refused: Refused) -> HttpResponse {
    let text = match refused {
        Refused::Full => format!("{READERS_MAX} readers are connected, which is the most"),
        Refused::Closed => "The gateway is shutting down".to_owned(),
    };
    let reason = if refused == Refused::Full { "too_many_readers" } else { "shutting_down" };
    problem(StatusCode::SERVICE_UNAVAILABLE, reason, &text)
}

fn problem(status: StatusCode, reason: &str, text: &str) -> HttpResponse {
    finish(problem_builder(status), status, reason, text)
}

fn problem_builder(status: StatusCode) -> HttpResponseBuilder {
    let mut reply = HttpResponse::build(status);
    reply.insert_header((header::CACHE_CONTROL, "no-store")).content_type("application/problem+json");
    if status == StatusCode::SERVICE_UNAVAILABLE {
        reply.insert_header((header::RETRY_AFTER, "5"));
    }
    reply
}

fn finish(mut reply: HttpResponseBuilder, status: StatusCode, reason: &str, text: &str) -> HttpResponse {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": text,
        "status": status.as_u16(),
        "reason": reason,
    });
    reply.body(body.to_string())
}
