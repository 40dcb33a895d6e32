//! Every answer of the public listener's routes: status, headers, body, for every way to ask.

use serde_json::{Value, json};

use super::client::{Client, Reply};
use super::gateway::{PIXEL, Site};

const EVENT: &str = "/offsite_event.php";
const EXPOSED: &str =
    "X-Pixelgate-Record-Id, X-Pixelgate-Reason, X-Pixelgate-Warning, Retry-After, RateLimit, RateLimit-Policy";
const ORIGIN: &str = "https://shop.example";

fn ask(site: &Site, method: &str, target: &str, lines: &[&str], body: &str) -> Reply {
    let mut client = Client::connect(site.public).unwrap();
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: gateway.test\r\n");
    for line in lines {
        request.push_str(&format!("{line}\r\n"));
    }
    if !body.is_empty() {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    client.send(format!("{request}\r\n{body}").as_bytes()).unwrap();
    if method != "HEAD" {
        return client.reply().unwrap();
    }
    let (status, headers) = client.head().unwrap();
    Reply { status, headers, body: Vec::new() }
}

/// What every reply of an event route has, whatever it says.
fn check_common(reply: &Reply, origin: Option<&str>) {
    for (name, value) in [
        ("cache-control", Some("no-store")),
        ("x-content-type-options", Some("nosniff")),
        ("cross-origin-resource-policy", Some("cross-origin")),
        ("timing-allow-origin", Some("*")),
        ("vary", Some("Origin")),
        ("access-control-allow-origin", origin),
        ("access-control-allow-credentials", origin.map(|_| "true")),
        ("access-control-expose-headers", origin.map(|_| EXPOSED)),
    ] {
        let found: Vec<&str> =
            reply.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect();
        assert_eq!(found, value.into_iter().collect::<Vec<_>>(), "{name} of {reply:?}");
    }
}

fn check_gif(reply: &Reply, has_body: bool) {
    assert_eq!((reply.header("content-type"), reply.header("content-length")), (Some("image/gif"), Some("43")));
    assert_eq!(reply.body.starts_with(b"GIF89a") && reply.body.len() == 43, has_body);
}

fn check_problem(reply: &Reply, reason: &str) {
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    let problem: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((&problem["reason"], &problem["status"]), (&json!(reason), &json!(reply.status)));
    assert!(problem["title"].is_string() && problem["type"] == "about:blank", "{problem}");
}

/// One refused request, in each way in which it can be made.
fn check_refused(site: &Site, query: &str, status: u16, reason: &str) {
    let target = format!("{EVENT}?{query}");
    for origin in [None, Some(ORIGIN)] {
        let line = origin.map(|origin| format!("Origin: {origin}"));
        let lines: Vec<&str> = line.iter().map(String::as_str).collect();
        let json: Vec<&str> = lines.iter().copied().chain(["Accept: text/html, application/json;q=0.9"]).collect();
        let form: Vec<&str> =
            lines.iter().copied().chain(["Content-Type: application/x-www-form-urlencoded"]).collect();
        let replies = [
            ("GET", ask(site, "GET", &target, &lines, "")),
            ("HEAD", ask(site, "HEAD", &target, &lines, "")),
            ("json", ask(site, "GET", &target, &json, "")),
            ("POST", ask(site, "POST", EVENT, &form, if query.is_empty() { "x=y" } else { query })),
        ];
        for (how, reply) in replies {
            assert_eq!((reply.status, reply.reason()), (status, Some(reason)), "{how} {query}");
            assert!(reply.record_id().is_none() && reply.header("x-pixelgate-warning").is_none());
            check_common(&reply, origin);
            match how {
                "GET" => check_gif(&reply, true),
                "HEAD" => check_gif(&reply, false),
                _ => check_problem(&reply, reason),
            }
        }
    }
}

#[test]
fn every_refusal_says_why_in_every_form() {
    let site = Site::new("[validation]\nstrict = true\n");
    let gateway = site.start();
    for (query, status, reason) in [
        ("", 400, "missing_id"),
        ("id=", 400, "missing_id"),
        ("value=1&currency=GBP", 400, "missing_id"),
        ("id=0", 400, "invalid_id"),
        ("id=null", 400, "invalid_id"),
        ("id=060", 400, "invalid_id"),
        ("id=-6", 400, "invalid_id"),
        ("id=123456789012345678901", 400, "invalid_id"),
        ("id=60%0010", 400, "invalid_id"),
        ("id=6010000000002", 404, "unknown_pixel"),
        (&format!("id={PIXEL}&value=1,5&currency=GBP"), 400, "invalid_value"),
        (&format!("id={PIXEL}&value=1&currency=XXY"), 400, "invalid_currency"),
    ] {
        check_refused(&site, query, status, reason);
    }
    for body in ["[1]", "\"x\"", "{", "{\"id\":}", "7", "{} {}"] {
        let reply = ask(&site, "POST", EVENT, &["Content-Type: application/json"], body);
        assert_eq!((reply.status, reply.reason()), (400, Some("malformed_body")), "{body}");
        check_common(&reply, None);
        check_problem(&reply, "malformed_body");
    }
    for kind in ["multipart/form-data", "multipart/form-data; boundary="] {
        let reply = ask(&site, "POST", EVENT, &[&format!("Content-Type: {kind}")], "--x--");
        assert_eq!((reply.status, reply.reason()), (400, Some("malformed_body")), "{kind}");
    }
    for method in ["PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "get"] {
        let reply = ask(&site, method, &format!("{EVENT}?id={PIXEL}"), &["Origin: https://shop.example"], "");
        assert_eq!((reply.status, reply.reason()), (405, Some("method_not_allowed")), "{method}");
        assert_eq!(reply.header("allow"), Some("GET, HEAD, POST, OPTIONS"));
        check_common(&reply, Some(ORIGIN));
        check_problem(&reply, "method_not_allowed");
    }
    assert_eq!(gateway.stop(), Some(0));
    let events = site.run(&["journal", "export"]).stdout;
    assert!(events.is_empty(), "{}", String::from_utf8_lossy(&events));
    let rejected = String::from_utf8(site.run(&["journal", "export", "--kind", "rejected"]).stdout).unwrap();
    // 12 × 2 × (GET, json, POST), the bodies, the methods; HEAD is none.
    assert_eq!(rejected.lines().count(), 12 * 2 * 3 + 6 + 2 + 6);
}

#[test]
fn an_event_is_answered_with_its_record() {
    let site = Site::new("");
    let gateway = site.start();
    for path in [EVENT, "/offsite_event"] {
        for origin in [None, Some(ORIGIN), Some("null")] {
            let line = origin.map(|origin| format!("Origin: {origin}"));
            let lines: Vec<&str> = line.iter().map(String::as_str).collect();
            let query = format!("id={PIXEL}&value=-1.5");
            let get = ask(&site, "GET", &format!("{path}?{query}"), &lines, "");
            let post = ask(&site, "POST", &format!("{path}?id={PIXEL}"), &lines, "value=-1.5");
            assert_eq!((get.status, post.status), (200, 204));
            check_gif(&get, true);
            for reply in [get, post] {
                check_common(&reply, origin);
                assert_eq!(reply.header("x-pixelgate-warning"), Some("negative_value,missing_currency"));
                assert!(reply.record_id().is_some_and(|id| id.len() == 36) && reply.reason().is_none());
            }
            let not_counted = [
                ask(&site, "HEAD", &format!("{path}?{query}"), &lines, ""),
                ask(&site, "GET", &format!("{path}?{query}"), &[&lines[..], &["Sec-Purpose: prefetch"]].concat(), ""),
                ask(&site, "GET", &format!("{path}?{query}"), &[&lines[..], &["Purpose: prefetch"]].concat(), ""),
            ];
            for (index, reply) in not_counted.iter().enumerate() {
                assert_eq!((reply.status, reply.record_id(), reply.reason()), (200, None, None));
                check_common(reply, origin);
                check_gif(reply, index > 0);
                assert!(reply.header("x-pixelgate-warning").unwrap().ends_with(",prefetch"), "{reply:?}");
            }
        }
    }
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap().lines().count(), 12);
}

#[test]
fn a_preflight_allows_what_pages_send() {
    let site = Site::new("");
    let gateway = site.start();
    let lines = [
        "Origin: https://shop.example",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: content-type",
    ];
    let reply = ask(&site, "OPTIONS", EVENT, &lines, "");
    assert_eq!((reply.status, reply.body.len()), (204, 0));
    check_common(&reply, Some(ORIGIN));
    assert_eq!(reply.header("access-control-allow-methods"), Some("GET, HEAD, POST, OPTIONS"));
    assert_eq!(reply.header("access-control-allow-headers"), Some("Content-Type"));
    check_common(&ask(&site, "OPTIONS", EVENT, &[], ""), None);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn other_paths_have_their_answers() {
    let site = Site::new("");
    let gateway = site.start();
    for path in ["/fp.js", "/en_US/fp.js", "/pt_BR/fp.js"] {
        let reply = ask(&site, "GET", path, &["Origin: https://shop.example"], "");
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some("text/javascript; charset=utf-8")),
            "{path}"
        );
        assert_eq!(reply.header("cross-origin-resource-policy"), Some("cross-origin"));
        assert!(String::from_utf8(reply.body).unwrap().contains("fb_param"));
    }
    let robots = ask(&site, "GET", "/robots.txt", &[], "");
    assert_eq!((robots.status, &robots.body[..]), (200, &b"User-agent: *\nDisallow: /\n"[..]));
    assert_eq!(ask(&site, "GET", "/favicon.ico", &[], "").status, 204);
    for path in ["/fp.js", "/robots.txt"] {
        assert_eq!(ask(&site, "HEAD", path, &[], "").status, 200, "{path}");
    }
    for path in
        ["/", "/offsite_event.php/", "//offsite_event", "/OFFSITE_EVENT", "/en/fp.js", "/tr/x", "/metrics", "/%"]
    {
        assert_eq!(ask(&site, "GET", path, &[], "").status, 404, "{path}");
    }
    // The whole of a URL may stand in the request line, as proxies send it.
    assert_eq!(ask(&site, "GET", &format!("http://x.test{EVENT}?id={PIXEL}"), &[], "").status, 200);
    assert_eq!(gateway.stop(), Some(0));
}
