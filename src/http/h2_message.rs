//! Requests of HTTP/2 as actix has them, and its answers as hyper has them. The two use different versions of the same
//! types.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_http::{BoxedPayloadStream, Payload, Request, Response};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::error::PayloadError;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode, Uri, Version};
use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::h2::Place;

/// A body that comes, as actix reads it.
struct Chunks {
    body: Incoming,
    place: Rc<Place>,
}

/// An answer's body on its way.
pub(super) struct Answer {
    body: Option<BoxBody>,
    /// Bytes that are left, if that is known.
    left: Option<u64>,
    place: Rc<Place>,
}

/// About what a request's head takes: names, values, and four bytes a line.
pub(super) fn head_bytes(request: &hyper::Request<Incoming>) -> usize {
    let lines = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    lines.sum::<usize>() + target
}

/// The request for actix; `None` if it has no place there.
pub(super) fn translated(
    request: hyper::Request<Incoming>,
    peer: Option<SocketAddr>,
    place: Rc<Place>,
) -> Option<Request> {
    let (parts, body) = request.into_parts();
    let payload = match body.is_end_stream() {
        true => Payload::None,
        false => Payload::Stream { payload: Box::pin(Chunks { body, place }) as BoxedPayloadStream },
    };
    let mut request = Request::with_payload(payload);
    let head = request.head_mut();
    head.method = Method::from_bytes(parts.method.as_str().as_bytes()).ok()?;
    // As a line of HTTP/1.1 has it: whose host it is stands in a header.
    head.uri = Uri::try_from(parts.uri.path_and_query()?.as_str()).ok()?;
    head.version = Version::HTTP_2;
    head.peer_addr = peer;
    head.headers = headers(&parts.headers);
    if let (Some(host), false) = (parts.uri.authority(), head.headers.contains_key(header::HOST)) {
        head.headers.insert(header::HOST, HeaderValue::from_str(host.as_str()).ok()?);
    }
    Some(request)
}

/// All lines, and cookies as one line again (RFC 9113 §8.2.3).
fn headers(given: &hyper::HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(given.len());
    let mut cookies: Vec<&[u8]> = Vec::new();
    for (name, value) in given {
        if *name == hyper::header::COOKIE {
            cookies.push(value.as_bytes());
        } else if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_str().as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
        {
            headers.append(name, value);
        }
    }
    if let (false, Ok(cookies)) = (cookies.is_empty(), HeaderValue::from_bytes(&cookies.join(&b"; "[..]))) {
        headers.append(header::COOKIE, cookies);
    }
    headers
}

/// An answer for hyper.
pub(super) fn answered(reply: Response<BoxBody>, is_head: bool, place: Rc<Place>) -> hyper::Response<Answer> {
    let (head, body) = reply.into_parts();
    let status = head.status();
    let has_body = !status.is_informational() && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let left = match body.size() {
        BodySize::None => Some(0),
        BodySize::Sized(bytes) => Some(bytes),
        BodySize::Stream => None,
    };
    let is_sent = has_body && !is_head && left != Some(0);
    let mut answer = hyper::Response::new(Answer { body: is_sent.then_some(body), left, place });
    // Both have the same numbers and the same rules for a header's bytes.
    *answer.status_mut() = hyper::StatusCode::from_u16(status.as_u16()).unwrap_or_default();
    for (name, value) in head.headers() {
        if let (Ok(name), Ok(value)) = (
            hyper::header::HeaderName::from_bytes(name.as_str().as_bytes()),
            hyper::header::HeaderValue::from_bytes(value.as_bytes()),
        ) {
            answer.headers_mut().append(name, value);
        }
    }
    if let (Some(bytes), true) = (left, has_body) {
        answer.headers_mut().insert(hyper::header::CONTENT_LENGTH, bytes.into());
    }
    answer
}

impl Stream for Chunks {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(frame)) => frame,
            };
            self.place.goes_on(false);
            match frame.map(Frame::into_data) {
                Ok(Ok(chunk)) => return Poll::Ready(Some(Ok(chunk))),
                // Lines behind the body say nothing here.
                Ok(Err(_)) => {}
                Err(_) => return Poll::Ready(Some(Err(PayloadError::Incomplete(None)))),
            }
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let chunk = match Pin::new(body).poll_next(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(chunk)) => chunk,
        };
        this.place.goes_on(true);
        let chunk = chunk.map_err(|error| io::Error::other(error.to_string()));
        if let (Ok(chunk), Some(left)) = (&chunk, &mut this.left) {
            *left = left.saturating_sub(chunk.len() as u64);
        }
        Poll::Ready(Some(chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none() || self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        match (self.left, &self.body) {
            (Some(left), Some(_)) => SizeHint::with_exact(left),
            (_, None) => SizeHint::with_exact(0),
            (None, Some(_)) => SizeHint::default(),
        }
    }
}
