//! The operators' listener: liveness, readiness, figures, the live feed and the console.

mod access;
mod console;
mod events;
mod health;
pub mod pulse;

use std::any::Any;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Extensions;
use actix_web::http::header;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};

pub use self::events::HEARTBEAT;
pub use self::health::{Life, Phase};
use self::pulse::{Faults, Pulse};
use super::client::Proxies;
use super::management;
use super::tls::Renewal;
use crate::feed::Feed;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::metrics::{Metrics, Sources};
use crate::policy::Policies;
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
    /// The live feed.
    pub feed: Arc<Feed>,
    /// How often it says that it lives.
    pub heartbeat: Duration,
    /// Where this listener listens.
    pub address: SocketAddr,
    /// Where events come in.
    pub public: SocketAddr,
    /// Which pages may report for which pixel.
    pub policies: Arc<Policies>,
    /// The certificates of the public listener, if it is a secured one.
    pub renewal: Option<Arc<Renewal>>,
    /// What management's handlers need, for the console.
    pub management: Arc<management::State>,
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

impl State {
    /// What is wrong with the workers. Nothing while starting and stopping, when they come and end one by one.
    fn worker_faults(&self) -> Faults {
        if self.life.phase() == Phase::Serving { self.pulse.faults() } else { Faults::default() }
    }
}

/// A client's connection beneath HTTP, so that one can be cut from outside.
#[derive(Clone, Debug)]
struct Connection(Arc<TcpStream>);

/// For [`actix_web::HttpServer::on_connect`] of this listener.
pub fn remember_connection(stream: &dyn Any, data: &mut Extensions) {
    let Some(stream) = stream.downcast_ref::<actix_web::rt::net::TcpStream>() else { return };
    // Without a descriptor to spare, a reader that is too slow stays connected until it goes.
    if let Ok(copy) = stream.as_fd().try_clone_to_owned() {
        data.insert(Connection(Arc::new(TcpStream::from(copy))));
    }
}

/// Mounts the routes.
pub fn configure(config: &mut ServiceConfig, state: Arc<State>) {
    let management = state.management.clone();
    config
        .app_data(web::Data::from(state))
        // Some balancers probe by HEAD.
        .service(web::resource("/livez").route(web::get().to(health::livez)).route(web::head().to(health::livez)))
        .service(web::resource("/readyz").route(web::get().to(health::readyz)).route(web::head().to(health::readyz)))
        .route("/metrics", web::get().to(metrics))
        .route("/events", web::get().to(events::events))
        .configure(|services| console::configure(services, management));
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
        let faults = state.worker_faults();
        let sources = Sources {
            journal: &state.journal,
            registry: &state.registry,
            limits: &state.limits,
            untrusted_forwarded_requests: state.proxies.untrusted_requests(),
            worker_faults: [faults.stuck, faults.dead],
            publishing: state.publishing.as_deref(),
            feed: &state.feed,
            certificate: state.renewal.as_ref().map(|renewal| renewal.figures()),
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

#[cfg(test)]
mod tests;
