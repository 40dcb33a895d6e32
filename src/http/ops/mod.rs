//! The operators' listener: liveness, readiness, figures.

mod health;
pub mod pulse;

use std::sync::Arc;

use actix_web::http::header;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};

pub use self::health::{Life, Phase};
use self::pulse::Pulse;
use super::client::Proxies;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::metrics::{Metrics, Sources};
use crate::publish::Stats;
use crate::registry::Registry;
use crate::time::Clock;

/// What the routes ask.
pub struct State {
    /// Figures and health.
    pub journal: Journal,
    /// Known pixels.
    pub registry: Arc<Registry>,
    /// Requests over a limit.
    pub limits: Arc<Limits>,
    /// Requests of unknown proxies.
    pub proxies: Arc<Proxies>,
    /// The publisher's figures; `None` without Kafka.
    pub publishing: Option<Arc<Stats>>,
    /// The program's own figures.
    pub metrics: Arc<Metrics>,
    /// For ages.
    pub clock: Arc<dyn Clock>,
    /// Held by the scrape under way.
    pub scraping: Arc<tokio::sync::Mutex<()>>,
    /// Starting, serving or stopping.
    pub life: Arc<Life>,
    /// Whether the workers are alive.
    pub pulse: Arc<Pulse>,
}

/// Mounts the routes.
pub fn configure(config: &mut ServiceConfig, state: Arc<State>) {
    config
        .app_data(web::Data::from(state))
        // Some balancers probe by HEAD.
        .service(web::resource("/livez").route(web::get().to(health::livez)).route(web::head().to(health::livez)))
        .service(web::resource("/readyz").route(web::get().to(health::readyz)).route(web::head().to(health::readyz)))
        .route("/metrics", web::get().to(metrics));
}

fn state(request: &HttpRequest) -> &State {
    request.app_data::<web::Data<State>>().expect("configured with it")
}

/// The page of figures. Made off the serving thread, as it asks the disk; one at a time, so that a disk that hangs
/// can't fill the pool with scrapes.
async fn metrics(request: HttpRequest) -> HttpResponse {
    let state = request.app_data::<web::Data<State>>().expect("configured with it").clone();
    let turn = state.scraping.clone().lock_owned().await;
    let page = web::block(move || {
        // Held to the end of the work, also when its client has gone.
        let _turn = turn;
        let sources = Sources {
            journal: &state.journal,
            registry: &state.registry,
            limits: &state.limits,
            untrusted_forwarded_requests: state.proxies.untrusted_requests(),
            publishing: state.publishing.as_deref(),
            now: state.clock.now(),
        };
        state.metrics.page(&sources)
    });
    match page.await {
        Ok(page) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
            .body(page),
        Err(_) => HttpResponse::InternalServerError().body("the figures can't be gathered at the moment\n"),
    }
}
