//! The console from outside: who gets it, what its answers carry, and that nothing in it comes from elsewhere.

use serde_json::Value;

use super::client::{Client, Reply};
use super::gateway::{PIXEL, Site};

const LOCAL: &str = "Host: localhost\r\n";

fn ask(site: &Site, method: &str, target: &str, lines: &str) -> Reply {
    let mut client = Client::connect(site.ops).unwrap();
    client.send(format!("{method} {target} HTTP/1.1\r\n{lines}Content-Length: 0\r\n\r\n").as_bytes()).unwrap();
    client.reply().unwrap()
}

fn json(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply:?}"))
}

/// A management token of this site.
fn token(site: &Site, arguments: &[&str]) -> String {
    let made = site.run(&[&["token", "create", "--name", "console"], arguments].concat());
    let told = String::from_utf8(made.stdout).unwrap();
    assert!(made.status.success(), "{told}{}", String::from_utf8_lossy(&made.stderr));
    told.split_whitespace().last().unwrap().to_owned()
}

#[test]
fn the_page_is_for_this_machine_or_a_token() {
    let site = Site::new("");
    let gateway = site.start();
    let status = |lines: &str| ask(&site, "GET", "/", lines).status;
    assert_eq!(status(LOCAL), 200);
    assert_eq!(status("Host: rebound.example\r\n"), 401, "a name that was pointed at this machine");
    assert_eq!(status("Host: localhost\r\nX-Forwarded-For: 192.0.2.1\r\n"), 401, "somebody behind a proxy");
    assert_eq!(status("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n"), 401, "another site's page");
    let token = token(&site, &[]);
    let with = |token: &str| format!("Host: ops.example\r\nAuthorization: OAuth {token}\r\n");
    assert_eq!(status(&with(&token)), 200);
    assert_eq!(status(&with("wrong")), 401);
    let refused = ask(&site, "GET", "/", "Host: ops.example\r\n");
    assert_eq!(refused.header("www-authenticate"), Some("OAuth realm=\"pixelgate\""));
    assert_eq!(refused.body, ask(&site, "GET", "/", LOCAL).body, "the page asks for a token, and holds no data");
    for (method, target) in [("GET", "/api/pixels"), ("POST", "/api/trial?id=1")] {
        assert_eq!(ask(&site, method, target, "Host: rebound.example\r\n").status, 401, "{target}");
        let elsewhere = "Host: localhost\r\nOrigin: https://evil.example\r\n";
        assert_eq!(ask(&site, method, target, elsewhere).status, 401, "{target}");
    }
    // Changing and reading what management has takes a token on this machine, too.
    let list = format!("/api/offsitepixels/{PIXEL}");
    assert_eq!(ask(&site, "GET", &list, LOCAL).status, 401);
    let found = json(&ask(&site, "GET", &list, &format!("{LOCAL}Authorization: OAuth {token}\r\n")));
    assert!(found["js_pixel"].as_str().unwrap().contains(PIXEL));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn nothing_comes_from_elsewhere_and_nothing_is_inline() {
    let site = Site::new("");
    let gateway = site.start();
    let inline = regex::Regex::new(r#"<script(?: [^>]*)?>[^<]|<style| on[a-z]+=| style="#).unwrap();
    for (target, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/console.js", "text/javascript; charset=utf-8"),
        ("/console.css", "text/css; charset=utf-8"),
        ("/api/pixels", "application/json"),
    ] {
        let reply = ask(&site, "GET", target, LOCAL);
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{target}");
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'self';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        let text = String::from_utf8(reply.body).unwrap();
        for outside in ["http://", "https://", "url(", "@import", "innerHTML", "outerHTML", "insertAdjacent", "eval("] {
            assert!(!text.contains(outside), "{target}: {outside}");
        }
        if target == "/" {
            assert!(!inline.is_match(&text), "{:?}", inline.find(&text));
        }
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn pixels_are_listed_newest_event_first_for_those_who_may_see_them() {
    let site = Site::new("");
    site.reconfigure("pixels = [", "pixels = [{ id = \"7\", name = \"<b>&\\\"\", fb_ad_account_id = \"9\" }, ");
    let gateway = site.start();
    let list = |query: &str, lines: &str| json(&ask(&site, "GET", &format!("/api/pixels{query}"), lines));
    let ids = |found: &Value| -> Vec<String> {
        found["pixels"].as_array().unwrap().iter().map(|pixel| pixel["id"].as_str().unwrap().to_owned()).collect()
    };
    let fire = |id: &str| {
        let mut client = Client::connect(site.public).unwrap();
        assert_eq!(client.get(&format!("/offsite_event.php?id={id}")).unwrap().status, 200);
    };
    fire("7");
    let found = list("", LOCAL);
    assert_eq!((ids(&found), &found["total"]), (vec!["7".to_owned(), PIXEL.to_owned()], &2.into()));
    assert_eq!((&found["pixels"][0]["name"], &found["pixels"][0]["status"]), (&"<b>&\"".into(), &"Active".into()));
    assert_eq!(
        (&found["pixels"][1]["last_event_at"], &found["pixels"][1]["status"]),
        (&Value::Null, &"Unverified".into())
    );
    assert_eq!(ids(&list("?limit=1", LOCAL)), ["7"]);
    assert_eq!(ids(&list("?q=CHECK", LOCAL)), [PIXEL]);
    let scoped = format!("Host: x\r\nAuthorization: OAuth {}\r\n", token(&site, &["--ad-account", "9"]));
    assert_eq!(ids(&list("", &scoped)), ["7"], "the token is for one ad account");
    assert_eq!(ask(&site, "POST", &format!("/api/trial?id={PIXEL}"), &scoped).status, 403);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_trial_of_a_pixel_with_origins_comes_as_from_one_of_them() {
    for origins in ["[\"shop.example\"]", "[\"*.shop.example\", \"b.example\"]", "[\"shop.example\", \"none\"]"] {
        let site = Site::new(&format!("[pixels.\"{PIXEL}\"]\norigins = {origins}\n"));
        let gateway = site.start();
        let answer = ask(&site, "POST", &format!("/api/trial?id={PIXEL}"), LOCAL);
        assert!(json(&answer)["message"].as_str().unwrap().starts_with("accepted, record "), "{origins}: {answer:?}");
        assert_eq!(gateway.stop(), Some(0));
    }
}

#[test]
fn a_trial_goes_the_whole_way_and_leaves_the_status_alone() {
    let site = Site::new("");
    let gateway = site.start();
    let told = |target: &str| json(&ask(&site, "POST", target, LOCAL))["message"].as_str().unwrap().to_owned();
    let accepted = told(&format!("/api/trial?id={PIXEL}"));
    assert!(accepted.starts_with("accepted, record "), "{accepted}");
    assert_eq!(told("/api/trial?id=1"), "rejected, unknown_pixel");
    assert!(told("/api/trial?id=x").contains("1 to 20 digits"));
    let status = json(&ask(&site, "GET", "/api/pixels", LOCAL))["pixels"][0]["status"].clone();
    assert_eq!(status, "Unverified");
    assert_eq!(gateway.stop(), Some(0));
    let records = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
    let record: Value = serde_json::from_str(records.trim()).unwrap();
    assert_eq!((&record["test"], record["record_id"].as_str()), (&true.into(), accepted.split(' ').next_back()));
}
