//! `/livez` and `/readyz`: atomics only, so that they answer at once whatever disk, Kafka or workers do.

use std::sync::atomic::{AtomicU8, Ordering};

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse};

use super::state;
use crate::journal::Health;

/// Where the program's life stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// Not everything runs yet.
    Starting,
    /// All of it does.
    Serving,
    /// Asked to end.
    Stopping,
}

/// The program's phase, shared.
#[derive(Debug, Default)]
pub struct Life(AtomicU8);

impl Life {
    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    /// The present one.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Stopping,
        }
    }
}

/// Fails only for what a restart mends: a worker that is dead or stuck, or a committer that ended by a fault of this
/// program. Not for disk, Kafka or recovery, and not while stopping, when workers end one by one.
pub(super) async fn livez(request: HttpRequest) -> HttpResponse {
    let state = state(&request);
    let faults = state.worker_faults();
    let mut wrong = String::new();
    for (count, what) in [(faults.stuck, "stuck"), (faults.dead, "dead")] {
        if count > 0 {
            wrong.push_str(&format!("{count} workers are {what}\n"));
        }
    }
    if !state.journal.is_sound() {
        wrong.push_str("the journal's thread is dead\n");
    }
    let status = if wrong.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = if wrong.is_empty() { "ok\n".to_owned() } else { wrong };
    HttpResponse::build(status)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .content_type("text/plain; charset=utf-8")
        .body(text)
}

/// Whether events are taken; names each check.
pub(super) async fn readyz(request: HttpRequest) -> HttpResponse {
    let state = state(&request);
    let serving = match state.life.phase() {
        Phase::Starting => "starting",
        Phase::Serving => "ok",
        Phase::Stopping => "stopping",
    };
    let journal = match state.journal.health() {
        _ if !state.journal.is_sound() => "dead",
        Health::Ready => "ok",
        Health::Full => "full",
        Health::Poisoned => "poisoned",
    };
    let ready = serving == "ok" && journal == "ok";
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    HttpResponse::build(status)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .content_type("application/json")
        .body(format!("{{\"ready\":{ready},\"checks\":{{\"serving\":\"{serving}\",\"journal\":\"{journal}\"}}}}\n"))
}
