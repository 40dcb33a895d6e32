//! Management requests answered by this gateway's own registry: the flat list of checks, and the answers.

use std::sync::Arc;

use actix_web::http::header::HeaderValue;
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpMessage, HttpRequest, web};

use super::wire::{self, Malformed, Params, View};
use super::{Answer, Failure, State, authorise, no_body, unknown_pixel};
use crate::http::body;
use crate::inflight;
use crate::pixel::PixelId;
use crate::registry::audit::By;
use crate::registry::tokens::Grant;
use crate::registry::{Edit, Entry, NewPixel, PREFER_ARCHIVED, is_ad_account};

/// The document's tags.
const TAGS: [&str; 6] = ["CHECKOUT", "REGISTRATION", "LEAD", "KEY_PAGE_VIEW", "ADD_TO_CART", "OTHER"];
/// Characters, not bytes.
const NAME_CHARS_MAX: usize = 255;

/// Answers a request, or says why not.
pub(super) async fn answer(
    state: &Arc<State>,
    request: &HttpRequest,
    payload: &mut web::Payload,
    id: Option<&str>,
    request_id: &str,
) -> Result<Answer, Failure> {
    let (reads, writes) = match (request.method(), id) {
        (&Method::GET | &Method::HEAD, _) => (true, false),
        (&Method::POST, None) | (&Method::PUT | &Method::DELETE, Some(_)) => (false, true),
        _ => (false, false),
    };
    if !reads && !writes {
        let text = "This resource doesn't have this method";
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text));
    }
    let grant = authorise(state, request).await?;
    if writes && grant.read_only {
        return Err(Failure::new(StatusCode::FORBIDDEN, "read_only_token", "This token may only read"));
    }
    let asker = Asker { grant, request_id };
    match id {
        None if reads => list(state, request, &asker.grant).await.map(Answer::Own),
        None => create(state, request, payload, asker).await.map(Answer::Own),
        Some(id) => {
            let entry = find(state, &asker.grant, id)?;
            match *request.method() {
                Method::PUT => {
                    let params = read_params(state, request, payload).await?;
                    let edit = edit_of(params, &entry)?;
                    change(state, entry.pixel.id, edit, asker).await?;
                    let changed = state.registry.find(entry.pixel.id).unwrap_or(entry);
                    Ok(Answer::Own(show(state, &changed)))
                }
                Method::DELETE => {
                    let edit = Edit { archived: Some(true), ..Edit::default() };
                    change(state, entry.pixel.id, edit, asker).await.map(|()| Answer::Done)
                }
                _ => Ok(Answer::Own(show(state, &entry))),
            }
        }
    }
}

/// Who may do what, and in which request it is asked for.
struct Asker<'a> {
    grant: Grant,
    request_id: &'a str,
}

fn find(state: &State, grant: &Grant, id: &str) -> Result<Arc<Entry>, Failure> {
    let found = PixelId::parse(id.as_bytes()).and_then(|id| state.registry.find(id));
    let entry = found.ok_or_else(unknown_pixel)?;
    check_scope(grant, entry.pixel.ad_account_id.as_deref())?;
    Ok(entry)
}

fn show(state: &State, entry: &Entry) -> Vec<u8> {
    let view = View {
        id: &entry.pixel.id.to_string(),
        name: entry.pixel.name.as_deref().unwrap_or_default(),
        tag: entry.pixel.tag.as_deref().unwrap_or("other"),
        status: entry.status(state.registry.now()).as_str(),
        creator: &entry.creator,
        archived: entry.pixel.archived,
    };
    wire::single(&view, &state.snippet)
}

async fn list(state: &Arc<State>, request: &HttpRequest, grant: &Grant) -> Result<Vec<u8>, Failure> {
    let mut params = Params::default();
    params.read_form(request.query_string().as_bytes()).map_err(malformed)?;
    let account = ad_account(params.fb_ad_account_id)?;
    check_scope(grant, Some(&account))?;
    let archived = match (params.archived.as_deref(), prefers_archived(request)) {
        (Some("any"), _) | (None, true) => None,
        (Some("true"), _) => Some(true),
        (Some("false") | None, _) => Some(false),
        (Some(_), _) => {
            let text = "archived must be true, false or any";
            return Err(Failure::of_param("invalid_parameter", "archived", text));
        }
    };
    let state = Arc::clone(state);
    // No I/O, but as long as the list: not on the worker.
    let body = web::block(move || {
        let pixels = state.registry.list(&account);
        let wanted = pixels.iter().filter(|entry| archived.is_none_or(|wanted| wanted == entry.pixel.archived));
        wire::list(wanted.map(|entry| show(&state, entry)))
    });
    Ok(body.await?)
}

/// Whether a gateway asks: `Prefer: archived=any` (RFC 7240, so that other authorities may ignore it).
fn prefers_archived(request: &HttpRequest) -> bool {
    let prefers = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b',').any(|one| one.trim_ascii() == PREFER_ARCHIVED.as_bytes())
    };
    request.headers().get_all("Prefer").any(prefers)
}

async fn create(
    state: &State,
    request: &HttpRequest,
    payload: &mut web::Payload,
    asker: Asker<'_>,
) -> Result<Vec<u8>, Failure> {
    let params = read_params(state, request, payload).await?;
    let account = ad_account(params.fb_ad_account_id)?;
    check_scope(&asker.grant, Some(&account))?;
    let name = name(required(params.name, "name")?)?;
    let tag = tag(required(params.tag, "tag")?)?;
    let (registry, request_id) = (Arc::clone(&state.registry), asker.request_id.to_owned());
    let created = web::block(move || {
        let token_name = &asker.grant.name;
        let by = By::token(token_name, &request_id);
        registry.create(NewPixel { ad_account_id: &account, name: &name, tag: &tag, token_name }, &by)
    });
    let id = created.await??;
    Ok(wire::created(&id.to_string()))
}

/// What a PUT asks for. The ad account may be repeated, as in a creation, and not changed.
fn edit_of(params: Params, entry: &Entry) -> Result<Edit, Failure> {
    if params.fb_ad_account_id.is_some() && params.fb_ad_account_id != entry.pixel.ad_account_id {
        let text = "A pixel stays in the ad account that it was created in";
        return Err(Failure::of_param("invalid_parameter", "fb_ad_account_id", text));
    }
    let archived = match params.archived.as_deref() {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(_) => return Err(Failure::of_param("invalid_parameter", "archived", "archived must be true or false")),
    };
    let name = params.name.map(|given| required(Some(given), "name").and_then(name)).transpose()?;
    let tag = params.tag.map(|given| required(Some(given), "tag").and_then(tag)).transpose()?;
    let edit = Edit { name, tag, archived };
    if edit == Edit::default() {
        let text = "There is nothing to change: give name, tag or archived";
        return Err(Failure::new(StatusCode::BAD_REQUEST, "missing_parameter", text));
    }
    Ok(edit)
}

async fn change(state: &State, id: PixelId, edit: Edit, asker: Asker<'_>) -> Result<(), Failure> {
    let (registry, request_id) = (Arc::clone(&state.registry), asker.request_id.to_owned());
    let changed = web::block(move || registry.edit(id, &edit, &By::token(&asker.grant.name, &request_id)));
    Ok(changed.await??)
}

pub(super) fn check_scope(grant: &Grant, ad_account: Option<&str>) -> Result<(), Failure> {
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

fn name(given: String) -> Result<String, Failure> {
    if given.chars().count() > NAME_CHARS_MAX {
        let text = format!("name must have at most {NAME_CHARS_MAX} characters");
        return Err(Failure::of_param("invalid_parameter", "name", text));
    }
    Ok(given)
}

/// A tag as it is stored and answered.
fn tag(given: String) -> Result<String, Failure> {
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
        Malformed::Type("archived") => {
            Failure::of_param("invalid_parameter", "archived", "archived must be true or false")
        }
        Malformed::Type(param) => {
            Failure::of_param("invalid_parameter", param, format!("{param} must be a string or a number"))
        }
    }
}

/// The parameters of a write: those of the query, over them those of the body.
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
