//! `POST /offsitepixels/last_events`: gateways of a fleet tell their authority when pixels fired last.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::HeaderName;
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpMessage, HttpRequest, web};
use serde::Deserialize;

use super::{Failure, State, authorise, no_body};
use crate::http::body;
use crate::pixel::PixelId;
use crate::registry::report::PIXELS_MAX;

/// Said by gateways in their own calls.
pub(super) const GATEWAY: &str = "x-pixelgate-gateway";
/// Answered to those only, as answers to others are the document's, header for header.
pub(super) const ACCEPTS: HeaderName = HeaderName::from_static("x-pixelgate-accepts");

#[derive(Deserialize)]
struct Report {
    last_event_ages_ms: HashMap<String, u64>,
}

/// Answers with a body, or says why not.
pub(super) async fn answer(
    state: &Arc<State>,
    request: &HttpRequest,
    payload: &mut web::Payload,
) -> Result<Vec<u8>, Failure> {
    if *request.method() != Method::POST {
        let text = "This resource doesn't have this method";
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text));
    }
    let grant = authorise(state, request).await?;
    if grant.read_only {
        return Err(Failure::new(StatusCode::FORBIDDEN, "read_only_token", "This token may only read"));
    }
    if !request.content_type().trim().eq_ignore_ascii_case("application/json") {
        let text = "The body must be application/json";
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", text));
    }
    let mut room = state.inflight.body();
    let body = body::collect(&state.body, request.headers(), payload, &mut room).await;
    let body = body.map_err(|fault| no_body(state, fault))?;
    let ages = serde_json::from_slice::<Report>(&body).map_err(|_| malformed())?.last_event_ages_ms;
    if ages.len() > PIXELS_MAX {
        let text = format!("A report has at most {PIXELS_MAX} pixels");
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", text));
    }
    let all = ages.len();
    let ages =
        ages.into_iter().filter_map(|(id, age)| Some((PixelId::parse(id.as_bytes())?, Duration::from_millis(age))));
    let (taken, _) = state.registry.take_report(&grant, ages);
    Ok(format!("{{\"taken\":{taken},\"ignored\":{}}}", all - taken).into_bytes())
}

fn malformed() -> Failure {
    let text = "The body must be {\"last_event_ages_ms\": {\"<pixel id>\": <milliseconds since its last event>}}";
    Failure::new(StatusCode::BAD_REQUEST, "malformed_body", text)
}
