//! A request's body, within its bounds: bytes, time, and what all requests may have in flight.

use std::time::Duration;

use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use actix_web::web::{Bytes, Payload};
use futures_util::{FutureExt, StreamExt};
use tokio::time::timeout;

use crate::inflight;

/// A whole body may take this many times the longest pause, so that nobody holds a place with a byte now and then.
const PAUSES: u32 = 6;

/// Bounds of one body.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `limits.max_body_bytes`.
    pub max_bytes: usize,
    /// `server.body_timeout`: between two chunks.
    pub pause: Duration,
}

impl Bounds {
    /// The longest that a whole body may take.
    pub fn longest(&self) -> Duration {
        self.pause.saturating_mul(PAUSES)
    }
}

/// Why there is no body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is encoded (compressed).
    Encoded,
    /// It is, or says it will be, over the bound.
    TooLarge,
    /// It didn't come in time.
    Late,
    /// It ended early, or its chunks are no chunks.
    Broken,
    /// All bodies together have too much in flight.
    NoRoom,
}

/// The whole body. `room` is to be held for as long as the body is.
pub async fn collect(
    bounds: &Bounds,
    headers: &HeaderMap,
    payload: &mut Payload,
    room: &mut inflight::Body<'_>,
) -> Result<Bytes, Fault> {
    let plain = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).all(|coding| plain(coding.as_bytes().trim_ascii())) {
        return Err(Fault::Encoded);
    }
    collect_as_is(bounds, headers, payload, room).await
}

/// The whole body, encoded or not: for whoever only passes it on.
pub async fn collect_as_is(
    bounds: &Bounds,
    headers: &HeaderMap,
    payload: &mut Payload,
    room: &mut inflight::Body<'_>,
) -> Result<Bytes, Fault> {
    let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > bounds.max_bytes as u64) {
        return Err(Fault::TooLarge);
    }
    let mut gathered = Gathered { bounds, room, first: Bytes::new(), all: Vec::new() };
    // What came together with the head needs no timers.
    while let Some(chunk) = payload.next().now_or_never() {
        if gathered.is_over(chunk)? {
            return Ok(gathered.into_bytes());
        }
    }
    let rest = async {
        loop {
            let chunk = timeout(bounds.pause, payload.next()).await.map_err(|_| Fault::Late)?;
            if gathered.is_over(chunk)? {
                return Ok(());
            }
        }
    };
    timeout(bounds.longest(), rest).await.map_err(|_| Fault::Late)??;
    Ok(gathered.into_bytes())
}

/// What has come so far.
struct Gathered<'a, 'b> {
    bounds: &'a Bounds,
    room: &'a mut inflight::Body<'b>,
    /// Nearly always the only chunk, which then is not copied.
    first: Bytes,
    /// All chunks, if there is more than one.
    all: Vec<u8>,
}

impl Gathered<'_, '_> {
    fn is_over(&mut self, chunk: Option<Result<Bytes, PayloadError>>) -> Result<bool, Fault> {
        let Some(chunk) = chunk else { return Ok(true) };
        let chunk = chunk.map_err(|_| Fault::Broken)?;
        if self.first.len().max(self.all.len()) + chunk.len() > self.bounds.max_bytes {
            return Err(Fault::TooLarge);
        }
        if !self.room.grow(chunk.len()) {
            return Err(Fault::NoRoom);
        }
        if self.first.is_empty() {
            self.first = chunk;
        } else {
            if self.all.is_empty() {
                self.all.extend_from_slice(&self.first);
            }
            self.all.extend_from_slice(&chunk);
        }
        Ok(false)
    }

    fn into_bytes(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.into() }
    }
}
