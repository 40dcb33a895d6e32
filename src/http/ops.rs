//! The operators' listener: liveness, readiness, figures.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix_web::http::{StatusCode, header};
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};

use crate::journal::{Health, Journal};
use crate::publish::Stats;
use crate::registry::Registry;

/// What the routes ask.
pub struct State {
    /// Figures and health.
    pub journal: Journal,
    /// Known pixels.
    pub registry: Arc<Registry>,
    /// The publisher's figures; `None` without Kafka.
    pub publishing: Option<Arc<Stats>>,
    /// Set when the start is complete, cleared when the stop begins.
    pub serving: Arc<AtomicBool>,
}

/// Mounts the routes.
pub fn configure(config: &mut ServiceConfig, state: Arc<State>) {
    config
        .app_data(web::Data::from(state))
        .route("/livez", web::get().to(async || "ok\n"))
        .route("/readyz", web::get().to(readyz))
        .route("/metrics", web::get().to(metrics));
}

fn state(request: &HttpRequest) -> &State {
    request.app_data::<web::Data<State>>().expect("configured with it")
}

async fn readyz(request: HttpRequest) -> HttpResponse {
    let state = state(&request);
    let serving = state.serving.load(Ordering::Acquire);
    let journal = match state.journal.health() {
        Health::Ready => "ok",
        Health::Full => "full",
        Health::Poisoned => "poisoned",
    };
    let checks = serde_json::json!({
        "serving": if serving { "ok" } else { "starting or stopping" },
        "journal": journal,
    });
    let ready = serving && journal == "ok";
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(status).json(serde_json::json!({ "ready": ready, "checks": checks }))
}

/// Figures kept with the journal; they survive restarts, hence gauges.
async fn metrics(request: HttpRequest) -> HttpResponse {
    let state = state(&request);
    let stats = state.journal.stats();
    let counts = stats.counts;
    let gauges = [
        ("journal_accepted_events", "Event records ever accepted.", counts.accepted),
        ("journal_published_events", "Event records delivered.", counts.published),
        ("journal_pending_events", "Event records not yet published.", counts.pending),
        ("journal_parked_events", "Event records that Kafka refused, kept aside.", counts.parked),
        ("journal_expired_events", "Event records removed by retention unpublished.", counts.expired),
        ("journal_damaged_events", "Event records lost to the disk.", counts.damaged),
        ("journal_next_position", "Position of the next record.", stats.next_position.0),
        ("publish_next_position", "Position of the next record to publish.", stats.publish_position.0),
        ("journal_bytes", "Bytes of the journal's files.", stats.bytes),
        ("journal_unpublished_bytes", "Bytes not yet published.", stats.unpublished_bytes),
        ("journal_max_bytes", "Configured bound.", stats.max_bytes),
        ("journal_filesystem_free_bytes", "Bytes the file system has left.", stats.free_bytes),
        ("registry_pixels", "Known pixels.", state.registry.pixel_count() as u64),
    ];
    let mut text = String::new();
    for (name, help, value) in gauges {
        // Writing to memory can't fail.
        let _ =
            write!(text, "# HELP pixelgate_{name} {help}\n# TYPE pixelgate_{name} gauge\npixelgate_{name} {value}\n");
    }
    if let Some(publishing) = &state.publishing {
        publish_metrics(publishing, &mut text);
    }
    HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")).body(text)
}

fn publish_metrics(publishing: &Stats, text: &mut String) {
    let _ = writeln!(text, "# HELP pixelgate_publish_blocked What holds publishing up.");
    let _ = writeln!(text, "# TYPE pixelgate_publish_blocked gauge");
    for (word, cause) in Stats::CAUSES {
        let blocked = u8::from(publishing.is_blocked_by(cause));
        let _ = writeln!(text, "pixelgate_publish_blocked{{cause=\"{word}\"}} {blocked}");
    }
    let restarts = publishing.restarts.load(Ordering::Relaxed);
    let _ = writeln!(text, "# HELP pixelgate_publisher_restarts_total Clients dropped and made again.");
    let _ = writeln!(text, "# TYPE pixelgate_publisher_restarts_total counter");
    let _ = writeln!(text, "pixelgate_publisher_restarts_total {restarts}");
}
