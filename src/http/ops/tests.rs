//! What only a look from inside can time: heartbeats of the live feed, and a token that is revoked meanwhile.

use std::pin::Pin;

use actix_web::App;
use actix_web::body::MessageBody;
use actix_web::test::{TestRequest, call_service, init_service};

use super::*;
use crate::journal::tests as journal;
use crate::policy::{Overlay, Treatment};
use crate::registry::audit::By;
use crate::registry::tokens::{self, Grant};
use crate::registry::{Mode, Options};
use crate::time::{SystemClock, Timestamp};

struct Bench {
    state: Arc<State>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal::open(journal::options(dir.path()));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (pixels, learning) = (Vec::new(), crate::registry::Learning::none());
        let options = Options {
            mode: Mode::Local,
            data_dir: dir.path().into(),
            pixels,
            max_pixels: 10,
            learning,
            database: None,
        };
        let registry = Registry::open(options, clock.clone()).unwrap();
        let snippet = management::wire::Snippet::new("http://127.0.0.1", "0.00".into(), "USD".into());
        let management = Arc::new(management::State::new(registry.clone(), snippet, clock.clone()));
        let state = State {
            registry,
            limits: Arc::new(Limits::new(&crate::limits::Options::OFF)),
            proxies: Arc::new(Proxies::new(None)),
            publishing: None,
            feed: Arc::new(Feed::start(journal.clone()).unwrap()),
            journal,
            heartbeat: Duration::from_millis(20),
            address: "0.0.0.0:8081".parse().unwrap(),
            public: "127.0.0.1:1".parse().unwrap(),
            policies: Arc::new(Policies::new([], Overlay::default(), Treatment::Ignore)),
            renewal: None,
            management,
            metrics: Arc::new(Metrics::new(clock.now(), 100)),
            clock,
            scraping: Arc::default(),
            life: Arc::default(),
            pulse: Pulse::new(1),
        };
        Bench { state: Arc::new(state), dir }
    }

    fn end(self) {
        self.state.feed.close();
        self.state.feed.join_thread();
        journal::close(self.state.journal.clone());
    }
}

#[actix_web::test]
async fn a_stream_beats_until_its_token_is_revoked() {
    let bench = Bench::new();
    let grant = Grant { name: "watcher".into(), ad_accounts: Vec::new(), read_only: true };
    let token = tokens::create(bench.dir.path(), &grant, &By::user(0), Timestamp(1)).unwrap();
    let app = init_service(App::new().configure(|services| configure(services, bench.state.clone()))).await;
    let request = TestRequest::get().uri("/events").insert_header(("Authorization", format!("Bearer {token}")));
    let reply = call_service(&app, request.to_request()).await;
    assert_eq!(reply.status(), 200);
    let mut body = Box::pin(reply.into_body());
    let mut next = async || {
        let chunk = std::future::poll_fn(|context| Pin::as_mut(&mut body).poll_next(context));
        actix_web::rt::time::timeout(Duration::from_secs(20), chunk).await.expect("in time").map(Result::unwrap)
    };
    assert!(next().await.unwrap().starts_with(b": "));
    for _ in 0..3 {
        assert_eq!(next().await.unwrap(), ":\n\n");
    }
    assert!(tokens::revoke(bench.dir.path(), "watcher", &By::user(0), Timestamp(2)).unwrap());
    // At most one beat was on its way.
    while let Some(beat) = next().await {
        assert_eq!(beat, ":\n\n");
    }
    assert!(
        !bench.state.feed.listens() || {
            drop(body);
            !bench.state.feed.listens()
        }
    );
    bench.end();
}

#[actix_web::test]
async fn before_everything_runs_it_is_alive_and_not_ready() {
    let bench = Bench::new();
    let app = init_service(App::new().configure(|services| configure(services, bench.state.clone()))).await;
    let get = async |path: &str| {
        let reply = call_service(&app, TestRequest::get().uri(path).to_request()).await;
        (reply.status().as_u16(), actix_web::test::read_body(reply).await)
    };
    assert_eq!(get("/livez").await.0, 200);
    let (status, body) = get("/readyz").await;
    assert_eq!(
        (status, &body[..]),
        (503, &b"{\"ready\":false,\"checks\":{\"serving\":\"starting\",\"journal\":\"ok\"}}\n"[..])
    );
    bench.state.life.enter(Phase::Serving);
    assert_eq!(get("/readyz").await.0, 200);
    let (status, body) = get("/livez").await;
    assert_eq!((status, &body[..]), (503, &b"1 workers are dead\n"[..]));
    let dead = async |count: u32| {
        let (_, page) = get("/metrics").await;
        String::from_utf8_lossy(&page).contains(&format!("pixelgate_worker_faults{{kind=\"dead\"}} {count}\n"))
    };
    assert!(dead(1).await);
    assert!(!dead(0).await);
    let heart = bench.state.pulse.heart();
    assert_eq!(get("/livez").await.0, 200);
    assert!(dead(0).await);
    drop(heart);
    bench.state.life.enter(Phase::Stopping);
    assert_eq!((get("/livez").await.0, get("/readyz").await.0), (200, 503));
    assert!(dead(0).await, "who stops misses nobody: workers end one by one");
    bench.end();
}
