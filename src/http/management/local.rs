//! Management requests answered by this gateway's own registry: the flat list of checks, and the three answers.

use std::sync::Arc;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpMessage, HttpRequest, web};

use super::wire::{self, Malformed, Params, View};
use super::{Failure, State, authorise, no_body};
use crate::http::body;
use crate::inflight;
use crate::pixel::PixelId;
use crate::registry::tokens::Grant;
use crate::registry::{Entry, NewPixel, is_ad_account};

/// The document's tags.
const TAGS: [&str; 6] = ["CHECKOUT", "REGISTRATION", "LEAD", "KEY_PAGE_VIEW", "ADD_TO_CART", "OTHER"];
/// Characters, not bytes.
const NAME_CHARS_MAX: usize = 255;

/// Answers a request with a body, or says why not.
pub(super) async fn answer(
    state: &Arc<State>,
    request: &HttpRequest,
    payload: &mut web::Payload,
    id: Option<&str>,
) -> Result<Vec<u8>, Failure> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let creates = id.is_none() && *request.method() == Method::POST;
    if !reads && !creates {
        let text = "This resource doesn't have this method";
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text));
    }
    let grant = authorise(state, request).await?;
    match id {
        Some(id) => single(state, &grant, id),
        None if creates => create(state, request, payload, grant).await,
        None => list(state, request, &grant).await,
    }
}

fn single(state: &State, grant: &Grant, id: &str) -> Result<Vec<u8>, Failure> {
    let found = PixelId::parse(id.as_bytes()).and_then(|id| state.registry.find(id));
    let Some(entry) = found else {
        return Err(Failure::new(StatusCode::NOT_FOUND, "unknown_pixel", "There is no pixel with this id"));
    };
    check_scope(grant, entry.pixel.ad_account_id.as_deref())?;
    Ok(show(state, &entry))
}

fn show(state: &State, entry: &Entry) -> Vec<u8> {
    let view = View {
        id: &entry.pixel.id.to_string(),
        name: entry.pixel.name.as_deref().unwrap_or_default(),
        tag: entry.pixel.tag.as_deref().unwrap_or("other"),
        status: entry.status(state.registry.now()).as_str(),
        creator: &entry.creator,
    };
    wire::single(&view, &state.snippet)
}

async fn list(state: &Arc<State>, request: &HttpRequest, grant: &Grant) -> Result<Vec<u8>, Failure> {
    let mut params = Params::default();
    params.read_form(request.query_string().as_bytes()).map_err(malformed)?;
    let account = ad_account(params.fb_ad_account_id)?;
    check_scope(grant, Some(&account))?;
    let state = Arc::clone(state);
    // No I/O, but as long as the list: not on the worker.
    let body = web::block(move || {
        let pixels = state.registry.list(&account);
        wire::list(pixels.iter().map(|entry| show(&state, entry)))
    });
    Ok(body.await?)
}

async fn create(
    state: &State,
    request: &HttpRequest,
    payload: &mut web::Payload,
    grant: Grant,
) -> Result<Vec<u8>, Failure> {
    if grant.read_only {
        return Err(Failure::new(StatusCode::FORBIDDEN, "read_only_token", "This token may only read"));
    }
    let params = read_params(state, request, payload).await?;
    let account = ad_account(params.fb_ad_account_id)?;
    check_scope(&grant, Some(&account))?;
    let name = name(params.name)?;
    let tag = tag(params.tag)?;
    let registry = Arc::clone(&state.registry);
    let created = web::block(move || {
        registry.create(NewPixel { ad_account_id: &account, name: &name, tag: &tag, token_name: &grant.name })
    });
    let id = created.await??;
    Ok(wire::created(&id.to_string()))
}

fn check_scope(grant: &Grant, ad_account: Option<&str>) -> Result<(), Failure> {
    if grant.allows(ad_account) {
        return Ok(());
    }
    Err(Failure::new(StatusCode::FORBIDDEN, "account_not_allowed", "This token is not for this ad account"))
}

fn ad_account(given: Option<String>) -> Result<String, Failure> {
    let param = "fb_ad_account_id";
    let given = required(given, param)?;
    if !is_ad_account(&given) {
        let text = "fb_ad_account_id must be 1 to 20 digits without a leading zero";
        return Err(Failure::of_param("invalid_parameter", param, text));
    }
    Ok(given)
}

fn name(given: Option<String>) -> Result<String, Failure> {
    let given = required(given, "name")?;
    if given.chars().count() > NAME_CHARS_MAX {
        let text = format!("name must have at most {NAME_CHARS_MAX} characters");
        return Err(Failure::of_param("invalid_parameter", "name", text));
    }
    Ok(given)
}

/// A tag as it is stored and answered.
fn tag(given: Option<String>) -> Result<String, Failure> {
    let given = required(given, "tag")?;
    if !TAGS.contains(&given.as_str()) {
        let text = format!("tag must be one of {}", TAGS.join(", "));
        return Err(Failure::of_param("invalid_parameter", "tag", text));
    }
    Ok(given.to_ascii_lowercase())
}

fn required(given: Option<String>, param: &'static str) -> Result<String, Failure> {
    given.filter(|text| !text.trim().is_empty()).ok_or_else(|| {
        Failure::of_param("missing_parameter", param, format!("The parameter {param} is missing or blank"))
    })
}

fn malformed(why: Malformed) -> Failure {
    match why {
        Malformed::Utf8 => Failure::new(StatusCode::BAD_REQUEST, "malformed_body", "A parameter is not UTF-8"),
        Malformed::Json => Failure::new(StatusCode::BAD_REQUEST, "malformed_body", "The body is not a JSON object"),
        Malformed::Type(param) => {
            Failure::of_param("invalid_parameter", param, format!("{param} must be a string or a number"))
        }
    }
}

/// The parameters of a creation: those of the query, over them those of the body.
async fn read_params(state: &State, request: &HttpRequest, payload: &mut web::Payload) -> Result<Params, Failure> {
    let mut params = Params::default();
    params.read_form(request.query_string().as_bytes()).map_err(malformed)?;
    let mut room = state.inflight.body();
    let body = read_body(state, request, payload, &mut room).await?;
    let read = match request.content_type().trim().to_ascii_lowercase().as_str() {
        _ if body.is_empty() => Ok(()),
        "application/x-www-form-urlencoded" => params.read_form(&body),
        "application/json" => params.read_json(&body),
        _ => {
            let text = "The body must be application/x-www-form-urlencoded or application/json";
            return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", text));
        }
    };
    read.map_err(malformed)?;
    Ok(params)
}

async fn read_body(
    state: &State,
    request: &HttpRequest,
    payload: &mut web::Payload,
    room: &mut inflight::Body<'_>,
) -> Result<web::Bytes, Failure> {
    body::collect(&state.body, request.headers(), payload, room).await.map_err(|fault| no_body(state, fault))
}
