//! The console at `/`: one page with its script and style, embedded, and the few answers that only it needs.
//!
//! The page holds no data, so whoever may not see any gets the same page with 401, and it asks for a token. What it
//! shows comes from `/metrics`, `/readyz`, `/events`, `/api/pixels`, and from management's own handlers, which are
//! mounted at `/api/offsitepixels` and ask for a token always.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVerifyMode};
use serde::Deserialize;
use serde_json::json;

use super::access::{self, Access, Denied};
use super::events::{self, allows};
use crate::http::management;
use crate::pixel::PixelId;
use crate::policy::Origins;
use crate::registry::tokens::Grant;
use crate::registry::{Entry, Registry};

const PAGE: &str = include_str!("console/page.html");
const SCRIPT: &str = include_str!("console/console.js");
const STYLE: &str = include_str!("console/console.css");

/// Nothing from elsewhere, nothing inline, and nobody frames it.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Most pixels in one answer.
const PIXELS_MAX: usize = 500;
/// How long a trial event may take.
const TRIAL: Duration = Duration::from_secs(5);
/// Most of a trial's answer that is read.
const ANSWER_BYTES: u64 = 16 << 10;

/// Mounts the routes.
pub(super) fn configure(config: &mut ServiceConfig, management: Arc<management::State>) {
    let file = |kind: &'static str, text: &'static str| {
        web::get().to(move || async move { guarded(StatusCode::OK).content_type(kind).body(text) })
    };
    config
        .service(web::resource("/").route(web::get().to(page)).route(web::head().to(page)))
        .route("/console.js", file("text/javascript; charset=utf-8", SCRIPT))
        .route("/console.css", file("text/css; charset=utf-8", STYLE))
        .route("/favicon.ico", web::get().to(|| async { HttpResponse::NoContent().finish() }))
        .service(
            web::scope("/api")
                .route("/pixels", web::get().to(pixels))
                .route("/trial", web::post().to(trial))
                .configure(|services| management::configure(services, management)),
        );
}

/// What every answer of the console carries.
fn guarded(status: StatusCode) -> HttpResponseBuilder {
    let mut reply = HttpResponse::build(status);
    reply
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header(("cross-origin-opener-policy", "same-origin"))
        .insert_header(("cross-origin-resource-policy", "same-origin"));
    reply
}

async fn page(request: HttpRequest) -> HttpResponse {
    let state = super::state(&request);
    let mut reply = match access::of(&request, state.address, &state.registry).await {
        Ok(_) => guarded(StatusCode::OK),
        Err(Denied::Unavailable(_)) => guarded(StatusCode::SERVICE_UNAVAILABLE),
        Err(Denied::Missing | Denied::Invalid) => {
            let mut reply = guarded(StatusCode::UNAUTHORIZED);
            reply.insert_header((header::WWW_AUTHENTICATE, "OAuth realm=\"pixelgate\""));
            reply
        }
    };
    reply.content_type("text/html; charset=utf-8").body(PAGE)
}

#[derive(Deserialize)]
struct Wanted {
    #[serde(default)]
    q: String,
    limit: Option<usize>,
}

/// Those with the newest events, of the ad accounts that the token is for.
async fn pixels(request: HttpRequest, wanted: web::Query<Wanted>) -> HttpResponse {
    let state = super::state(&request);
    let grant = match access::of(&request, state.address, &state.registry).await {
        Ok(Access::Local) => None,
        Ok(Access::Token(_, grant)) => Some(grant),
        Err(denied) => return events::refuse(denied),
    };
    let registry = state.registry.clone();
    // As long as the list: not on the serving thread.
    let body = web::block(move || list(&registry, grant.as_ref(), &wanted)).await;
    match body {
        Ok(body) => guarded(StatusCode::OK).content_type("application/json").body(body),
        Err(_) => guarded(StatusCode::SERVICE_UNAVAILABLE).finish(),
    }
}

fn list(registry: &Registry, grant: Option<&Grant>, wanted: &Wanted) -> String {
    let text = wanted.q.trim().to_lowercase();
    let fits = |entry: &Entry| {
        let pixel = &entry.pixel;
        grant.is_none_or(|grant| grant.allows(pixel.ad_account_id.as_deref()))
            && (text.is_empty()
                || pixel.id.to_string().contains(&text)
                || pixel.name.as_ref().is_some_and(|name| name.to_lowercase().contains(&text)))
    };
    let (found, total) = registry.newest(wanted.limit.unwrap_or(PIXELS_MAX).min(PIXELS_MAX), fits);
    let now = registry.now();
    let pixels = found.iter().map(|entry| {
        let pixel = &entry.pixel;
        json!({
            "id": pixel.id.to_string(),
            "name": pixel.name,
            "tag": pixel.tag,
            "ad_account_id": pixel.ad_account_id,
            "status": entry.status(now).as_str(),
            "last_event_at": entry.last_event().map(|time| time.to_rfc3339()),
            "archived": pixel.archived,
        })
    });
    json!({"total": total, "pixels": pixels.collect::<Vec<_>>()}).to_string()
}

#[derive(Deserialize)]
struct Trial {
    id: String,
}

/// Sends an event with `test=1` to the public listener, as a page would.
async fn trial(request: HttpRequest, wanted: web::Query<Trial>) -> HttpResponse {
    let state = super::state(&request);
    let access = match access::of(&request, state.address, &state.registry).await {
        Ok(access) => access,
        Err(denied) => return events::refuse(denied),
    };
    let Some(pixel) = PixelId::parse(wanted.id.as_bytes()) else {
        return told(StatusCode::BAD_REQUEST, "id must be 1 to 20 digits without a leading zero");
    };
    if let Access::Token(_, grant) = &access
        && (grant.read_only || (!grant.ad_accounts.is_empty() && !allows(grant, &state.registry, pixel)))
    {
        return told(StatusCode::FORBIDDEN, "this token may not send events of this pixel");
    }
    let (public, is_tls) = (reachable(state.public), state.renewal.is_some());
    // As from a page that may report: what is tried is the way, not this page's place on the list.
    let page = state.policies.of(Some(pixel)).origins.and_then(Origins::page);
    match web::block(move || fire(public, is_tls, pixel, page.as_deref())).await {
        Ok(Ok(outcome)) => told(StatusCode::OK, &outcome),
        Ok(Err(error)) => told(StatusCode::BAD_GATEWAY, &format!("the public listener did not answer: {error}")),
        Err(_) => told(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping"),
    }
}

fn told(status: StatusCode, message: &str) -> HttpResponse {
    guarded(status).content_type("application/json").body(json!({"message": message}).to_string())
}

/// One request over the network, so that it proves the whole way; what became of it.
fn fire(public: SocketAddr, is_tls: bool, pixel: PixelId, page: Option<&str>) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&public, TRIAL)?;
    stream.set_read_timeout(Some(TRIAL))?;
    stream.set_write_timeout(Some(TRIAL))?;
    if is_tls { ask(secured(stream)?, public, pixel, page) } else { ask(stream, public, pixel, page) }
}

/// TLS to ourselves: the certificate is for another name than this address, and whoever could come between is here.
fn secured(stream: TcpStream) -> io::Result<SslStream<TcpStream>> {
    let configured = SslConnector::builder(SslMethod::tls_client()).and_then(|mut builder| {
        builder.set_verify(SslVerifyMode::NONE);
        builder.build().configure()
    });
    let configured = configured.map_err(io::Error::other)?.use_server_name_indication(false).verify_hostname(false);
    configured.connect("", stream).map_err(|error| io::Error::other(error.to_string()))
}

fn ask(mut stream: impl Read + Write, public: SocketAddr, pixel: PixelId, page: Option<&str>) -> io::Result<String> {
    let target = format!("/offsite_event.php?id={pixel}&test=1&ev=console");
    let head = format!("GET {target} HTTP/1.1\r\nHost: {public}\r\nUser-Agent: pixelgate console\r\n");
    let origin = page.map_or_else(String::new, |page| format!("Origin: {page}\r\n"));
    stream.write_all(format!("{head}{origin}Connection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let line = |name: &str| {
        let mut lines = answer.split("\r\n\r\n").next().unwrap_or_default().lines();
        lines.find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    Ok(match (line("x-pixelgate-record-id"), line("x-pixelgate-reason")) {
        (Some(record), _) => format!("accepted, record {record}"),
        (None, Some(reason)) => format!("rejected, {reason}"),
        (None, None) => answer.lines().next().unwrap_or("no answer").to_owned(),
    })
}

/// Where this machine reaches a listener.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
