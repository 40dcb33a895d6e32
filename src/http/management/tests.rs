//! The management routes as clients see them.

use std::io::{Read, Write};
use std::net::TcpStream;

use actix_web::body::MessageBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::test::{TestRequest, init_service, read_body};
use actix_web::{App, HttpServer};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::pixel::PixelId;
use crate::registry::audit::By;
use crate::registry::tokens::FIRST_TOKEN_FILE;
use crate::registry::{FILE, Mode};
use crate::time::{SystemClock, Timestamp};

/// A registry in a directory of its own, and its first token.
struct Bench {
    dir: TempDir,
    registry: Arc<Registry>,
    token: String,
}

fn registry_options(dir: &std::path::Path) -> registry::Options {
    let learning = registry::Learning::none();
    registry::Options {
        mode: Mode::Local,
        data_dir: dir.into(),
        pixels: Vec::new(),
        max_pixels: 1000,
        learning,
        database: None,
    }
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(registry_options(dir.path()), Arc::new(SystemClock)).unwrap();
        let token = std::fs::read_to_string(dir.path().join(FIRST_TOKEN_FILE)).unwrap().trim().to_owned();
        Bench { dir, registry, token }
    }

    fn state(&self) -> State {
        let snippet = Snippet::new("https://px.example.com", "0.01".into(), "GBP".into());
        State::new(Arc::clone(&self.registry), snippet, Arc::new(SystemClock))
    }

    fn token(&self, name: &str, accounts: &[&str], read_only: bool) -> String {
        let ad_accounts = accounts.iter().map(|&account| account.into()).collect();
        let grant = Grant { name: name.into(), ad_accounts, read_only };
        tokens::create(self.dir.path(), &grant, &By::user(0), Timestamp(1)).unwrap()
    }
}

/// What a test looks at of an answer.
struct Answer {
    status: u16,
    headers: actix_web::http::header::HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// `status type param` of an error, whose whole shape is checked.
    fn error(&self) -> String {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("{}", self.body));
        assert!(json.as_object().unwrap().len() == 1 && !error["message"].as_str().unwrap().is_empty());
        assert!(error.keys().all(|key| ["type", "message", "param"].contains(&&**key)), "{}", self.body);
        assert_eq!(self.header("Content-Type"), "application/json; charset=utf-8");
        assert_eq!(self.header("Cache-Control"), "no-cache");
        let param = error.get("param").map_or("-", |param| param.as_str().unwrap());
        format!("{} {} {param}", self.status, error["type"].as_str().unwrap())
    }
}

/// One request to a gateway's routes.
async fn ask(state: &Arc<State>, request: TestRequest) -> Answer {
    let configured = Arc::clone(state);
    let app = init_service(App::new().configure(move |config| configure(config, configured))).await;
    answer_of(app.call(request.to_request()).await.unwrap()).await
}

async fn answer_of(response: ServiceResponse<impl MessageBody>) -> Answer {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = String::from_utf8(read_body(response).await.to_vec()).unwrap();
    Answer { status, headers, body }
}

fn get(token: &str, uri: &str) -> TestRequest {
    TestRequest::get().uri(uri).insert_header(("Authorization", format!("OAuth {token}")))
}

fn post(token: &str, kind: &str, body: impl Into<web::Bytes>) -> TestRequest {
    let request = TestRequest::post().uri("/offsitepixels").set_payload(body);
    request.insert_header(("Authorization", format!("OAuth {token}"))).insert_header(("Content-Type", kind))
}

const FORM: &str = "application/x-www-form-urlencoded";
const SHOES: &str = "fb_ad_account_id=9&name=Shoes+purchase&tag=CHECKOUT";

#[actix_web::test]
async fn who_may_not_ask_is_told_why() {
    let bench = Bench::new();
    let state = Arc::new(bench.state());
    let (reader, other) = (bench.token("reader", &[], true), bench.token("other", &["8"], false));
    let revoked = bench.token("revoked", &[], false);
    tokens::revoke(bench.dir.path(), "revoked", &By::user(0), Timestamp(2)).unwrap();
    let list = "/offsitepixels?fb_ad_account_id=9";
    let id = ask(&state, post(&bench.token, FORM, SHOES)).await.json()["id"].as_str().unwrap().to_owned();
    let single = format!("/offsitepixels/{id}");

    for (header, kind) in [
        (None, "missing_token"),
        (Some("OAuth".to_owned()), "missing_token"),
        (Some("OAuth ".to_owned()), "missing_token"),
        (Some(format!("Basic {}", bench.token)), "missing_token"),
        (Some(bench.token.clone()), "missing_token"),
        (Some("OAuth wrong".to_owned()), "invalid_token"),
        (Some(format!("OAuth {}x", bench.token)), "invalid_token"),
        (Some(format!("Bearer {revoked}")), "invalid_token"),
    ] {
        for uri in [list, &single] {
            let mut request = TestRequest::get().uri(uri);
            if let Some(header) = &header {
                request = request.insert_header(("Authorization", &**header));
            }
            let answer = ask(&state, request).await;
            assert_eq!(answer.error(), format!("401 {kind} -"), "{header:?}");
            assert!(answer.header("WWW-Authenticate").starts_with("OAuth realm="));
        }
    }
    assert_eq!(ask(&state, post(&reader, FORM, SHOES)).await.error(), "403 read_only_token -");
    assert_eq!(ask(&state, get(&reader, list)).await.status, 200);
    assert_eq!(ask(&state, post(&other, FORM, SHOES)).await.error(), "403 account_not_allowed -");
    assert_eq!(ask(&state, get(&other, list)).await.error(), "403 account_not_allowed -");
    assert_eq!(ask(&state, get(&other, &single)).await.error(), "403 account_not_allowed -");
    assert_eq!(ask(&state, get(&other, "/offsitepixels?fb_ad_account_id=8")).await.body, "[]");
    let bearer = TestRequest::get().uri(list).insert_header(("Authorization", format!("bearer {reader}")));
    assert_eq!(ask(&state, bearer).await.status, 200);
}

#[actix_web::test]
async fn wrong_requests_name_the_parameter() {
    let bench = Bench::new();
    let state = Arc::new(bench.state());
    let long = format!("fb_ad_account_id=9&tag=OTHER&name={}", "é".repeat(256));
    for (body, expected) in [
        ("", "400 missing_parameter fb_ad_account_id"),
        ("fb_ad_account_id=&name=x&tag=OTHER", "400 missing_parameter fb_ad_account_id"),
        ("fb_ad_account_id=9&tag=OTHER", "400 missing_parameter name"),
        ("fb_ad_account_id=9&tag=OTHER&name=+", "400 missing_parameter name"),
        ("fb_ad_account_id=9&name=x", "400 missing_parameter tag"),
        ("fb_ad_account_id=x&name=x&tag=OTHER", "400 invalid_parameter fb_ad_account_id"),
        ("fb_ad_account_id=-9&name=x&tag=OTHER", "400 invalid_parameter fb_ad_account_id"),
        ("fb_ad_account_id=123456789012345678901&name=x&tag=OTHER", "400 invalid_parameter fb_ad_account_id"),
        ("fb_ad_account_id=9&name=x&tag=SALE", "400 invalid_parameter tag"),
        ("fb_ad_account_id=9&name=x&tag=checkout", "400 invalid_parameter tag"),
        ("fb_ad_account_id=9&name=%FF&tag=OTHER", "400 malformed_body -"),
        (&long, "400 invalid_parameter name"),
    ] {
        assert_eq!(ask(&state, post(&bench.token, FORM, body.to_owned())).await.error(), expected, "{body}");
    }
    let json = |body: &'static str| ask(&state, post(&bench.token, "application/json", body));
    assert_eq!(json("[1]").await.error(), "400 malformed_body -");
    assert_eq!(json(r#"{"fb_ad_account_id":"#).await.error(), "400 malformed_body -");
    assert_eq!(json(r#"{"fb_ad_account_id":9,"name":[1],"tag":"OTHER"}"#).await.error(), "400 invalid_parameter name");
    assert_eq!(json(r#"{"fb_ad_account_id":9.5,"name":"x"}"#).await.error(), "400 invalid_parameter fb_ad_account_id");
    let uri = "/offsitepixels";
    assert_eq!(ask(&state, get(&bench.token, uri)).await.error(), "400 missing_parameter fb_ad_account_id");
    let uri = "/offsitepixels?fb_ad_account_id=act_9";
    assert_eq!(ask(&state, get(&bench.token, uri)).await.error(), "400 invalid_parameter fb_ad_account_id");
    for id in ["6014360342904", "0", "x", "99999999999999999999999", "%2e"] {
        let answer = ask(&state, get(&bench.token, &format!("/offsitepixels/{id}"))).await;
        assert_eq!(answer.error(), "404 unknown_pixel -", "{id}");
    }
    assert_eq!(bench.registry.pixel_count(), 0);
}

#[actix_web::test]
async fn bodies_that_are_not_taken() {
    let bench = Bench::new();
    let state = Arc::new(State { body: body::Bounds { max_bytes: 100, ..bench.state().body }, ..bench.state() });
    for kind in ["text/plain", "multipart/form-data; boundary=x", "application/xml", ""] {
        let answer = ask(&state, post(&bench.token, kind, SHOES)).await;
        assert_eq!(answer.error(), "415 unsupported_media_type -", "{kind}");
    }
    let encoded = post(&bench.token, FORM, SHOES).insert_header(("Content-Encoding", "gzip"));
    assert_eq!(ask(&state, encoded).await.error(), "415 unsupported_media_type -");
    assert_eq!(ask(&state, post(&bench.token, FORM, "x".repeat(101))).await.error(), "413 body_too_large -");
    let announced = post(&bench.token, FORM, "").insert_header(("Content-Length", "101"));
    assert_eq!(ask(&state, announced).await.error(), "413 body_too_large -");
    let kind = "Application/X-WWW-Form-Urlencoded; charset=UTF-8";
    assert_eq!(ask(&state, post(&bench.token, kind, SHOES)).await.status, 200);
}

#[actix_web::test]
async fn methods_without_a_meaning_are_listed() {
    let bench = Bench::new();
    let state = Arc::new(bench.state());
    let all = [
        ("/offsitepixels", "GET, HEAD, POST, OPTIONS", [Method::PUT, Method::DELETE]),
        ("/offsitepixels/60", "GET, HEAD, PUT, DELETE, OPTIONS", [Method::POST, Method::CONNECT]),
    ];
    for (uri, allow, without) in all {
        for method in without.into_iter().chain([Method::PATCH, Method::TRACE]) {
            let answer = ask(&state, TestRequest::with_uri(uri).method(method)).await;
            assert_eq!(answer.error(), "405 method_not_allowed -");
            assert_eq!(answer.header("Allow"), allow);
        }
        let answer = ask(&state, TestRequest::with_uri(uri).method(Method::OPTIONS)).await;
        assert_eq!((answer.status, &*answer.body, answer.header("Allow")), (204, "", allow));
        let allowed = "Origin, X-Requested-With, Content-Type, Accept, Authorization, Content-Disposition";
        assert_eq!(answer.header("Access-Control-Allow-Headers"), allowed);
    }
    let answer = ask(&state, TestRequest::post().uri("/offsitepixels/60")).await;
    assert_eq!(answer.error(), "405 method_not_allowed -");
}

#[actix_web::test]
async fn too_many_requests_are_told_how_long_to_wait() {
    let bench = Bench::new();
    let one_an_hour = limits::Rate { count: 1, period: Duration::from_secs(3600), burst: 1 };
    let options =
        limits::Options { mode: limits::Mode::Enforce, management: Some(one_an_hour), ..limits::Options::OFF };
    let trusted = Some(vec!["10.0.0.0/8".parse().unwrap()]);
    let state =
        State { limits: Arc::new(Limits::new(&options)), proxies: Arc::new(Proxies::new(trusted)), ..bench.state() };
    let state = Arc::new(state);
    let from = |address: &str, token: &str| {
        let request = get(token, "/offsitepixels?fb_ad_account_id=9").peer_addr("10.0.0.1:1".parse().unwrap());
        request.insert_header(("X-Forwarded-For", address))
    };
    assert_eq!(ask(&state, from("192.0.2.1", "a")).await.status, 401);
    for (address, token) in [("192.0.2.1", "b"), ("192.0.2.2", "a")] {
        let answer = ask(&state, from(address, token)).await;
        assert_eq!(answer.error(), "429 rate_limited -");
        let wait = answer.header("Retry-After");
        assert!((3500..=3600).contains(&wait.parse::<u32>().unwrap()), "{wait}");
        assert_eq!(answer.header("RateLimit"), format!("\"management\";r=0;t={wait}"));
        assert_eq!(answer.header("RateLimit-Policy"), "\"management\";q=1;w=3600");
    }
    assert_eq!(ask(&state, from("192.0.2.3", "c")).await.status, 401);
}

#[actix_web::test]
async fn a_registry_that_cannot_be_written_answers_503() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let options = registry_options(&dir.path().join("file/registry"));
    let registry = Registry::open(options, Arc::new(SystemClock)).unwrap();
    let snippet = Snippet::new("http://127.0.0.1:8080", "0.00".into(), "USD".into());
    let state = Arc::new(State::new(registry, snippet, Arc::new(SystemClock)));
    let answer = ask(&state, post("token", FORM, SHOES)).await;
    assert_eq!((answer.error(), answer.header("Retry-After")), ("503 registry_unavailable -".into(), "5"));
    assert!(!answer.body.contains("registry.sqlite"), "paths are not for clients");
}

#[actix_web::test]
async fn one_of_two_creations_of_a_name_is_answered_409() {
    let bench = Bench::new();
    let state = Arc::new(bench.state());
    let both = futures_util::future::join(
        ask(&state, post(&bench.token, FORM, SHOES)),
        ask(&state, post(&bench.token, FORM, SHOES)),
    );
    let (one, two) = both.await;
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    let taken = if one.status == 409 { one } else { two };
    assert_eq!(taken.error(), "409 name_taken name");
}

#[actix_web::test]
async fn a_pixel_is_created_listed_and_read_as_published() {
    let bench = Bench::new();
    let state = Arc::new(bench.state());
    let token = bench.token("John Doe", &[], false);
    let created = ask(&state, post(&token, FORM, SHOES)).await;
    let id = created.json()["id"].as_str().unwrap().to_owned();
    assert_eq!((created.status, &*created.body), (200, &*format!("{{\"id\":\"{id}\"}}")));
    let json = r#"{"fb_ad_account_id": 9, "name": "Lead é", "tag": "KEY_PAGE_VIEW", "more": {}}"#;
    let second = ask(&state, post(&token, "application/json; charset=utf-8", json)).await;
    let query = "/offsitepixels?fb_ad_account_id=9&name=query&tag=OTHER";
    let third = ask(&state, post(&token, FORM, "name=body").uri(query)).await;
    assert_eq!((second.status, third.status), (200, 200));

    let answer = ask(&state, get(&token, "/offsitepixels?fb_ad_account_id=9")).await;
    let list = answer.json();
    let shown = |key: &str| list.as_array().unwrap().iter().map(|pixel| pixel[key].clone()).collect::<Vec<_>>();
    assert_eq!(shown("name"), ["Shoes purchase", "Lead é", "body"]);
    assert_eq!(shown("tag"), ["checkout", "key_page_view", "other"]);
    assert_eq!(shown("status"), ["Unverified", "Unverified", "Unverified"]);
    assert_eq!(shown("creator")[0], "9 (John Doe)");
    assert!(list[0]["js_pixel"].as_str().unwrap().contains("fpw.src = '//px.example.com/en_US/fp.js';"));

    let single = ask(&state, get(&token, &format!("/offsitepixels/{id}"))).await;
    assert_eq!(single.json(), list[0]);
    bench.registry.note_event(PixelId::parse(id.as_bytes()).unwrap(), SystemClock.now());
    let fired = ask(&state, get(&token, &format!("/offsitepixels/{id}"))).await;
    assert_eq!(fired.json()["status"], "Active");
    assert_ne!(fired.header("ETag"), single.header("ETag"));
    for (answer, bytes) in [(&created, &created.body), (&answer, &answer.body), (&single, &single.body)] {
        assert_eq!(answer.header("ETag"), wire::etag(bytes.as_bytes()));
        assert_eq!(answer.header("Cache-Control"), "max-age=0, private, must-revalidate");
        assert_eq!(answer.header("Content-Type"), "application/json; charset=utf-8");
    }
    let slash = ask(&state, get(&token, "/offsitepixels/?fb_ad_account_id=9")).await;
    assert_eq!(slash.status, 200);
}

#[actix_web::test]
async fn an_answer_that_is_known_already_is_304() {
    let bench = Bench::new();
    let state = Arc::new(bench.state());
    let uri = "/offsitepixels?fb_ad_account_id=9";
    let etag = ask(&state, get(&bench.token, uri)).await.header("ETag").to_owned();
    for known in [etag.clone(), format!("\"x\", W/{etag}"), "*".into()] {
        let answer = ask(&state, get(&bench.token, uri).insert_header(("If-None-Match", known))).await;
        assert_eq!((answer.status, &*answer.body, answer.header("ETag")), (304, "", &*etag));
        assert_eq!(answer.header("Access-Control-Allow-Origin"), "*");
        assert!(answer.headers.get("Content-Type").is_none());
    }
    let other = ask(&state, get(&bench.token, uri).insert_header(("If-None-Match", "\"x\""))).await;
    assert_eq!((other.status, &*other.body), (200, "[]"));
    let wrong = ask(&state, get("wrong", uri).insert_header(("If-None-Match", etag))).await;
    assert_eq!(wrong.error(), "401 invalid_token -", "what is known is not for everybody");
}

#[actix_web::test]
async fn every_answer_carries_the_published_headers() {
    let bench = Bench::new();
    let state = Arc::new(bench.state());
    let list = "/offsitepixels?fb_ad_account_id=9";
    for request in [get(&bench.token, list), get("wrong", list), TestRequest::delete().uri(list)] {
        let answer = ask(&state, request.insert_header(("X-Request-Id", "kept-1_2\u{1F600}/<x>"))).await;
        assert_eq!(answer.header("X-Frame-Options"), "SAMEORIGIN");
        assert_eq!(answer.header("X-XSS-Protection"), "1; mode=block");
        assert_eq!(answer.header("X-Content-Type-Options"), "nosniff");
        assert_eq!(answer.header("X-UA-Compatible"), "chrome=1");
        assert_eq!(answer.header("Access-Control-Allow-Origin"), "*");
        assert_eq!(answer.header("Access-Control-Allow-Methods"), "POST, PUT, DELETE, GET, OPTIONS");
        assert_eq!(answer.header("Access-Control-Request-Method"), "*");
        assert_eq!(answer.header("X-Request-Id"), "kept-1_2x");
        let (whole, fraction) = answer.header("X-Runtime").split_once('.').unwrap();
        assert!(whole.parse::<u32>().is_ok() && fraction.len() == 6);
    }
    let made = ask(&state, get(&bench.token, list)).await;
    let made = uuid::Uuid::parse_str(made.header("X-Request-Id")).unwrap();
    assert_eq!(made.get_version_num(), 4);
}

#[actix_web::test]
async fn head_is_get_without_the_body_on_the_wire() {
    let bench = Bench::new();
    let state = Arc::new(State {
        body: body::Bounds { pause: Duration::from_millis(50), ..bench.state().body },
        ..bench.state()
    });
    let server = HttpServer::new(move || {
        let state = Arc::clone(&state);
        App::new().configure(move |config| configure(config, state))
    });
    let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
    let address = server.addrs()[0];
    let running = server.run();
    let handle = running.handle();
    let served = tokio::spawn(running);
    let head = format!("Host: x\r\nAuthorization: OAuth {}\r\nConnection: close\r\n", bench.token);
    let talk = move |text: String| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply.to_lowercase()
    };
    let uri = "/offsitepixels?fb_ad_account_id=9";
    let requests = [
        format!("HEAD {uri} HTTP/1.1\r\n{head}\r\n"),
        format!("GET {uri} HTTP/1.1\r\n{head}\r\n"),
        format!("POST /offsitepixels HTTP/1.1\r\n{head}Content-Type: {FORM}\r\nContent-Length: 9\r\n\r\nname="),
    ];
    let replies = tokio::task::spawn_blocking(move || requests.map(talk)).await.unwrap();
    let split: Vec<_> = replies.iter().map(|reply| reply.split_once("\r\n\r\n").unwrap()).collect();
    assert!(split[0].0.starts_with("http/1.1 200") && split[0].0.contains("content-length: 2"), "{}", split[0].0);
    assert_eq!((split[0].1, split[1].1), ("", "[]"));
    assert!(split[2].0.starts_with("http/1.1 408"), "{}", split[2].0);
    handle.stop(false).await;
    served.await.unwrap().unwrap();
}

#[actix_web::test]
async fn a_restart_changes_no_byte() {
    let bench = Bench::new();
    let state = Arc::new(bench.state());
    for name in ["z", "a", "%3C%21--%3E%00"] {
        let body = format!("fb_ad_account_id=9&tag=LEAD&name={name}");
        assert_eq!(ask(&state, post(&bench.token, FORM, body)).await.status, 200);
    }
    let uri = "/offsitepixels?fb_ad_account_id=9";
    let before = ask(&state, get(&bench.token, uri)).await;
    drop(state);
    let Bench { dir, registry, token } = bench;
    drop(registry);
    assert!(dir.path().join(FILE).exists());
    let registry = Registry::open(registry_options(dir.path()), Arc::new(SystemClock)).unwrap();
    let bench = Bench { dir, registry, token };
    let after = ask(&Arc::new(bench.state()), get(&bench.token, uri)).await;
    assert_eq!((after.header("ETag"), &*after.body), (before.header("ETag"), &*before.body));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_name_comes_back(names in prop::collection::hash_set("\\PC{1,255}|[-<>&'\"\\\\\n]{1,20}", 1..4)) {
        actix_web::rt::System::new().block_on(async {
            let bench = Bench::new();
            let state = Arc::new(bench.state());
            for name in names.iter().filter(|name| !name.trim().is_empty()) {
                let body = serde_json::json!({"fb_ad_account_id": "9", "name": name, "tag": "OTHER"}).to_string();
                let created = ask(&state, post(&bench.token, "application/json", body)).await;
                assert_eq!(created.status, 200, "{name:?}: {}", created.body);
                let uri = format!("/offsitepixels/{}", created.json()["id"].as_str().unwrap());
                let read = ask(&state, get(&bench.token, &uri)).await;
                assert_eq!(read.json()["name"].as_str(), Some(&**name));
            }
        });
    }
}
