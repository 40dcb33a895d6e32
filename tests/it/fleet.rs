//! One authority and gateways: a pixelgate in `local` mode as the upstream of others in `proxy` mode, and `status` true
//! for all of them.

use std::fs;

use serde_json::{Value, json};

use super::client::{Client, Reply};
use super::forward::{ask, proxy_site};
use super::gateway::{Gateway, Site, until};
use super::upstream::{Act, Seen, Upstream, with_length};

/// A gateway's site in front of an authority.
pub fn gateway_of(authority: &Site, token: &str, lines: &str) -> Site {
    let site = Site::new("");
    let registry = format!(
        "[registry]\nmode = \"proxy\"\nupstream = \"http://{}\"\nupstream_token = \"{token}\"\nad_accounts = [\"9\"]\n\
         sync_interval = \"1s\"\n{lines}\n",
        authority.public
    );
    site.reconfigure("[registry]\n", &registry);
    site
}

/// The token that a first start makes.
pub fn first_token(site: &Site) -> String {
    fs::read_to_string(site.data().join("management-token")).unwrap().trim().to_owned()
}

fn token(site: &Site, arguments: &[&str]) -> String {
    let output = site.run(&[&["token", "create"], arguments].concat());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A management call with a body of this kind.
pub fn post(site: &Site, path: &str, token: &str, kind: &str, body: &str) -> Reply {
    let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nAuthorization: OAuth {token}\r\n");
    ask(site, &(head + &with_length(body)))
}

/// Creates a pixel; its id.
pub fn create(site: &Site, token: &str, account: &str, name: &str) -> String {
    let body = format!("fb_ad_account_id={account}&name={name}&tag=LEAD");
    let reply = post(site, "/offsitepixels", token, "application/x-www-form-urlencoded", &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    body["id"].as_str().unwrap().to_owned()
}

/// A pixel's status.
pub fn status(site: &Site, token: &str, id: &str) -> String {
    let head = format!("GET /offsitepixels/{id} HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth {token}\r\n\r\n");
    let reply = ask(site, &head);
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    body["status"].as_str().unwrap_or_else(|| panic!("{reply:?}")).to_owned()
}

/// How an event is taken; `None` if it is not checked.
pub fn fire(site: &Site, id: &str) -> Option<u16> {
    let reply = Client::connect(site.public).ok()?.get(&format!("/offsite_event.php?id={id}")).ok()?;
    reply.header("x-pixelgate-warning").is_none().then_some(reply.status)
}

fn report(site: &Site, token: &str, ages: &Value) -> Reply {
    let body = json!({"last_event_ages_ms": ages}).to_string();
    post(site, "/offsitepixels/last_events", token, "application/json", &body)
}

const DAY_MS: u64 = 24 * 3600 * 1000;

#[test]
fn a_pixel_of_the_authority_is_fired_at_one_gateway_and_active_for_all() {
    let authority = Site::new("");
    let running = authority.start();
    let token = first_token(&authority);
    let sites = [gateway_of(&authority, &token, ""), gateway_of(&authority, &token, "")];
    let gateways: Vec<Gateway<'_>> = sites.iter().map(Site::start).collect();
    let [one, other] = &sites;
    let (fired, tried) = (create(one, &token, "9", "fired"), create(one, &token, "9", "tried"));
    for site in [&authority, one, other] {
        assert_eq!((&*status(site, &token, &fired), &*status(site, &token, &tried)), ("Unverified", "Unverified"));
    }
    until("the other gateway knows both", || fire(other, &format!("{tried}&test=1")) == Some(200));
    // Without a word about whether it is checked: it is known.
    assert_eq!(fire(one, &fired), Some(200));
    for site in [&authority, one, other] {
        until("the pixel is active", || status(site, &token, &fired) == "Active");
    }
    assert_eq!(status(&authority, &token, &tried), "Unverified", "a trial is no event");
    assert_eq!(fire(other, &tried), Some(200));
    until("the other gateway reports, too", || status(one, &token, &tried) == "Active");
    running.kill();
    let running = authority.start();
    assert_eq!(status(other, &token, &fired), "Active", "kept over a restart of the authority");
    gateways.into_iter().for_each(|gateway| assert_eq!(gateway.stop(), Some(0)));
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn an_event_while_the_authority_was_away_is_told_later() {
    let authority = Site::new("");
    let running = authority.start();
    let token = first_token(&authority);
    let site = gateway_of(&authority, &token, "");
    let gateway = site.start();
    let id = create(&site, &token, "9", "away");
    running.kill();
    assert_eq!(fire(&site, &id), Some(200));
    // Soon, not before the answer: a status may be late.
    until("the time of the event is on disk", || {
        let registry = rusqlite::Connection::open(site.data().join(pixelgate::registry::FILE)).unwrap();
        let sql = "SELECT last_event_ms FROM pixels WHERE id = ?1";
        registry.query_row(sql, [&id], |row| row.get::<_, Option<i64>>(0)).unwrap().is_some()
    });
    gateway.kill();
    // What was not told before a crash is told after it.
    let gateway = site.start();
    let running = authority.start();
    until("the pixel is active", || status(&authority, &token, &id) == "Active");
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn a_report_counts_for_the_token_s_accounts_and_never_turns_time_back() {
    let authority = Site::new("");
    let running = authority.start();
    let all = first_token(&authority);
    let scoped = token(&authority, &["--name", "gateway", "--ad-account", "9"]);
    let reads = token(&authority, &["--name", "reader", "--ad-account", "9", "--read-only"]);
    let (mine, foreign) = (create(&authority, &all, "9", "mine"), create(&authority, &all, "7", "foreign"));
    let said = |reply: Reply| (reply.status, String::from_utf8(reply.body).unwrap());

    let ages = json!({&mine: 2 * DAY_MS, &foreign: 5, "6099999999999": 5, "not an id": 5, "0": 5});
    assert_eq!(said(report(&authority, &scoped, &ages)), (200, r#"{"taken":1,"ignored":4}"#.to_owned()));
    assert_eq!(status(&authority, &all, &mine), "Inactive");
    assert_eq!(status(&authority, &all, &foreign), "Unverified");
    assert_eq!(report(&authority, &scoped, &json!({&mine: 5})).status, 200);
    assert_eq!(status(&authority, &all, &mine), "Active");
    for older in [DAY_MS, 3 * DAY_MS, u64::MAX] {
        assert_eq!(report(&authority, &scoped, &json!({&mine: older})).status, 200);
        assert_eq!(status(&authority, &all, &mine), "Active", "{older}");
    }
    for bad in [json!({&foreign: -1}), json!({&foreign: 1.5}), json!({&foreign: "5"}), json!([]), json!("x")] {
        assert_eq!(report(&authority, &all, &bad).status, 400, "{bad}");
    }
    assert_eq!(report(&authority, &reads, &json!({&mine: 5})).status, 403);
    assert_eq!(report(&authority, "wrong", &json!({&mine: 5})).status, 401);
    let many: serde_json::Map<String, Value> = (1..=1001).map(|id| (id.to_string(), json!(5))).collect();
    assert_eq!(report(&authority, &all, &Value::Object(many)).status, 413);
    let path = "/offsitepixels/last_events";
    assert_eq!(post(&authority, path, &all, "text/plain", "{}").status, 415);
    let get = ask(&authority, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth {all}\r\n\r\n"));
    assert_eq!((get.status, get.header("allow")), (405, Some("POST, OPTIONS")));
    assert_eq!(status(&authority, &all, &foreign), "Unverified");
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn answers_say_that_reports_are_taken_to_gateways_only() {
    let authority = Site::new("");
    let running = authority.start();
    let get = "GET /offsitepixels/7 HTTP/1.1\r\nHost: a\r\n";
    let said =
        |lines: &str| ask(&authority, &format!("{get}{lines}\r\n")).header("x-pixelgate-accepts").map(str::to_owned);
    assert_eq!(said(""), None);
    assert_eq!(said("X-Pixelgate-Gateway: 1\r\n").as_deref(), Some("last_events"));
    assert_eq!(running.stop(), Some(0));
}

/// Whether a request is a report.
fn reports(seen: &Seen) -> bool {
    seen.line == "POST /offsitepixels/last_events HTTP/1.1"
}

#[test]
fn a_foreign_authority_gets_no_reports_unless_it_is_told_to() {
    let list =
        |more: &str| Act::Say(format!("HTTP/1.1 200 OK\r\n{more}{}", with_length(r#"[{"id":"71"}]"#)).into_bytes());
    let common = "ad_accounts = [\"9\"]\nupstream_token = \"mine\"\nsync_interval = \"1s\"\n";
    let play = |header: &'static str, lines: &str, told: bool| {
        let upstream = Upstream::start(move |_| list(header));
        let site = proxy_site(&upstream, &format!("{common}{lines}"));
        let gateway = site.start();
        until("the pixel is known", || fire(&site, "71") == Some(200));
        // Syncs come each second and reports each third: by then one was due.
        let syncs = || upstream.seen().iter().filter(|seen| !reports(seen)).count();
        until("many syncs", || syncs() > 7);
        if told {
            until("a report", || upstream.seen().iter().any(reports));
            let report = upstream.seen().into_iter().find(reports).unwrap();
            assert_eq!(report.header("authorization").as_deref(), Some("OAuth mine"));
            let body: Value = serde_json::from_slice(&report.body).unwrap();
            let age = body["last_event_ages_ms"]["71"].as_u64().unwrap_or_else(|| panic!("{body}"));
            assert!(age < 60_000, "{body}");
        }
        assert_eq!(upstream.seen().iter().any(reports), told, "{header} {lines}");
        assert_eq!(gateway.stop(), Some(0));
        assert!(!site.log().contains("mine"), "{}", site.log());
    };
    // Each takes some reports' time.
    std::thread::scope(|scope| {
        for (header, lines, told) in [
            ("", "", false),
            ("X-Pixelgate-Accepts: last_events\r\n", "", true),
            ("X-Pixelgate-Accepts: last_events\r\n", "report_last_events = \"never\"", false),
            ("", "report_last_events = \"always\"", true),
        ] {
            scope.spawn(move || play(header, lines, told));
        }
    });
}

#[test]
fn what_was_told_is_not_told_again_and_a_refusal_is_backed_off_from() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let refusals = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refusals);
    let upstream = Upstream::start(move |seen| {
        let status = if reports(seen) && count.fetch_add(1, Ordering::SeqCst) == 0 { "500 No" } else { "200 OK" };
        let list = with_length(r#"[{"id":"71"}]"#);
        Act::Say(format!("HTTP/1.1 {status}\r\nX-Pixelgate-Accepts: last_events\r\n{list}").into_bytes())
    });
    let common = "ad_accounts = [\"9\"]\nupstream_token = \"mine\"\nsync_interval = \"1s\"\n";
    let site = proxy_site(&upstream, common);
    let gateway = site.start();
    until("the pixel is known", || fire(&site, "71") == Some(200));
    until("it is told again after a refusal", || refusals.load(Ordering::SeqCst) == 2);
    let asked = upstream.seen().len();
    until("ten more syncs", || upstream.seen().len() > asked + 10);
    assert_eq!(refusals.load(Ordering::SeqCst), 2, "nothing is new");
    assert_eq!(site.log().matches("could not be told").count(), 1, "{}", site.log());
    assert_eq!(gateway.stop(), Some(0));
}
