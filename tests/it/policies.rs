//! `[pixels."<id>"]`: who may report for a pixel, and what a visitor's refusal does to an event of it.

use serde_json::Value;

use super::client::{Client, Reply};
use super::exposition::Page;
use super::forward::proxy_site;
use super::gateway::{PIXEL, Site, until};
use super::upstream::{Upstream, json};

/// A pixel that only has the rules for all.
const OTHER: &str = "6010000000002";

fn site(overlays: &str) -> Site {
    Site::new(&format!("[validation]\nunknown_pixel = \"flag\"\n\n{overlays}"))
}

fn ask(site: &Site, method: &str, query: &str, headers: &[(&str, &str)]) -> Reply {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut client = Client::connect(site.public).unwrap();
    let head = format!("{method} /offsite_event.php?{query} HTTP/1.1\r\nHost: pixel.test\r\n{lines}\r\n");
    client.send(head.as_bytes()).unwrap();
    if method == "HEAD" {
        let (status, headers) = client.head().unwrap();
        return Reply { status, headers, body: Vec::new() };
    }
    client.reply().unwrap()
}

/// All records, of a stopped or running gateway.
fn records(site: &Site, kind: &str) -> Vec<Value> {
    let output = site.run(&["journal", "export", "--kind", kind]);
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn only_pages_of_the_list_report_for_a_pixel() {
    let site = site(&format!("[pixels.\"{PIXEL}\"]\norigins = [\"shop.example\", \"*.shop.example\"]\n"));
    let gateway = site.start();
    let status = |headers: &[(&str, &str)]| ask(&site, "GET", &format!("id={PIXEL}"), headers).status;
    for good in ["https://shop.example", "http://www.SHOP.example:8080", "https://a.b.shop.example"] {
        assert_eq!(status(&[("Origin", good)]), 200, "{good}");
        assert_eq!(status(&[("Referer", &format!("{good}/cart?x=1"))]), 200, "{good}");
        assert_eq!(status(&[("Origin", "null"), ("Referer", &format!("{good}/"))]), 200, "{good}");
    }
    let good = ("Referer", "https://shop.example/");
    for bad in ["https://evil.example", "https://notshop.example", "https://shop.example.evil.example"] {
        assert_eq!(status(&[("Origin", bad), good]), 403, "the Origin decides: {bad}");
        assert_eq!(status(&[("Referer", &format!("{bad}/shop.example"))]), 403, "{bad}");
    }
    assert_eq!(status(&[]), 403, "nobody has said that requests without a page may report");
    assert_eq!(ask(&site, "HEAD", &format!("id={PIXEL}"), &[("Origin", "https://evil.example")]).status, 403);
    let elsewhere = ask(&site, "GET", &format!("id={OTHER}"), &[("Origin", "https://evil.example")]);
    assert_eq!(elsewhere.status, 200, "another pixel has no list");
    assert_eq!(gateway.stop(), Some(0));
    let refused = records(&site, "rejected");
    assert_eq!(refused.len(), 7);
    assert!(refused.iter().all(|record| record["reason"] == "origin_not_allowed" && record["pixel_id"] == PIXEL));
}

#[test]
fn a_page_that_is_refused_can_read_why() {
    let overlay = format!("[pixels.\"{PIXEL}\"]\norigins = \"shop.example, none\"\n");
    let site = site(&overlay);
    let gateway = site.start();
    let refused = ask(&site, "GET", &format!("id={PIXEL}"), &[("Origin", "https://evil.example")]);
    assert_eq!((refused.status, refused.reason()), (403, Some("origin_not_allowed")));
    assert_eq!(refused.header("content-type"), Some("image/gif"), "a page never breaks");
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://evil.example"));
    assert_eq!(refused.header("access-control-allow-credentials"), Some("true"));
    let head = [("Origin", "https://evil.example"), ("Accept", "application/json")];
    let refused = ask(&site, "GET", &format!("id={PIXEL}"), &head);
    let problem: Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!((&problem["status"], &problem["reason"]), (&403.into(), &"origin_not_allowed".into()));
    // A preflight names no pixel.
    assert_eq!(ask(&site, "OPTIONS", "", &[("Origin", "https://evil.example")]).status, 204);
    assert_eq!(ask(&site, "GET", &format!("id={PIXEL}"), &[]).status, 200, "none is on the list");
    let page = Page::of(&site);
    let count = |labels: &[(&str, &str)]| page.value("pixelgate_events_total", labels);
    assert_eq!(count(&[("outcome", "rejected"), ("reason", "origin_not_allowed")]), 2.0);
    assert_eq!(gateway.stop(), Some(0));
}

/// One event with everything by which a visitor could be known again.
fn visit(site: &Site, pixel: &str, consent: &str, gpc: bool) -> Reply {
    let query = format!(
        "id={pixel}&value=1&fbp=fb.1.1.2&fbclid=Ab&dl=https%3A%2F%2Fs.example%2F%3Fgclid%3Dx%26utm_id%3D1{consent}"
    );
    let headers = [("Cookie", "_fbc=fb.1.1.Ab"), ("User-Agent", "test"), ("Sec-GPC", "1")];
    ask(site, "GET", &query, if gpc { &headers } else { &headers[..2] })
}

/// What of it is in a record.
fn kept(record: &Value) -> (bool, Option<&str>, Option<&Value>) {
    let click = record["params"]["fbclid"] == "Ab";
    assert_eq!(record["user_agent"], "test");
    assert_eq!(record["fbp"].is_string(), click);
    assert_eq!(record["fbc"].is_string(), click);
    assert_eq!(record["page_url"].as_str().unwrap().contains("gclid"), click);
    assert!(record["page_url"].as_str().unwrap().contains("utm_id=1"));
    (click, record["consent"].as_str(), record.get("gpc"))
}

#[test]
fn a_refusal_takes_out_what_recognises_a_visitor_unless_a_pixel_says_otherwise() {
    let overlay = format!("[pixels.\"{PIXEL}\"]\ngpc = \"ignore\"\nconsent = \"ignore\"\n");
    let site = site(&overlay);
    let gateway = site.start();
    for pixel in [OTHER, PIXEL] {
        for (consent, gpc) in [("", false), ("&consent=granted", false), ("&consent=denied", false), ("", true)] {
            assert_eq!(visit(&site, pixel, consent, gpc).status, 200);
        }
    }
    assert_eq!(visit(&site, PIXEL, "&consent=maybe", false).status, 200);
    assert_eq!(Page::of(&site).value("pixelgate_events_anonymised_total", &[]), 2.0);
    assert_eq!(gateway.stop(), Some(0));
    let truth = Value::Bool(true);
    let records = records(&site, "event");
    let all: Vec<_> = records.iter().map(kept).collect();
    let common = [(true, None, None), (true, Some("granted"), None)];
    assert_eq!(all[..2], common);
    assert_eq!(all[2..4], [(false, Some("denied"), None), (false, None, Some(&truth))]);
    assert_eq!(all[4..6], common);
    assert_eq!(all[6..], [(true, Some("denied"), None), (true, None, None), (true, None, None)]);
    assert_eq!(records[8]["params"]["consent"], "maybe", "another word is a parameter like any other");
}

#[test]
fn a_policy_may_be_to_drop_and_is_counted() {
    let site = site("[pixels.\"*\"]\ngpc = \"drop\"\nconsent = \"drop\"\n");
    let gateway = site.start();
    for (consent, gpc) in [("&consent=denied", false), ("&consent=denied", true), ("", true)] {
        let reply = visit(&site, PIXEL, consent, gpc);
        assert_eq!((reply.status, reply.record_id(), reply.header("x-pixelgate-warning")), (200, None, Some(DROPPED)));
        // Nor is what is refused kept of them.
        assert_eq!(visit(&site, "0", consent, gpc).status, 400);
    }
    assert_eq!(visit(&site, PIXEL, "&consent=granted", false).status, 200);
    let page = Page::of(&site);
    let count = |outcome, reason| page.value("pixelgate_events_total", &[("outcome", outcome), ("reason", reason)]);
    let counts = [("consent", 2.0), ("gpc", 1.0), ("", 0.0)];
    assert_eq!(counts.map(|(reason, _)| count("ignored", reason)), counts.map(|(_, count)| count));
    assert_eq!((count("accepted", ""), count("rejected", "invalid_id")), (1.0, 3.0));
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!((records(&site, "event").len(), records(&site, "rejected").len()), (1, 0));
}

#[test]
fn a_privacy_control_counts_unless_the_operator_says_otherwise() {
    let site = site("[privacy]\nhonor_gpc = false\nbrowser_id = \"on\"\n");
    let gateway = site.start();
    let reply = visit(&site, PIXEL, "", true);
    assert_eq!((reply.status, reply.header("set-cookie").is_some()), (200, true), "{reply:?}");
    assert_eq!(Page::of(&site).value("pixelgate_events_anonymised_total", &[]), 0.0);
    assert_eq!(gateway.stop(), Some(0));
    let record = records(&site, "event").remove(0);
    assert_eq!((record.get("gpc"), record["browser_id"].is_string()), (None, true), "{record}");
    assert!(kept(&record).0, "{record}");
}

#[test]
fn a_policy_overlays_pixels_that_an_upstream_has() {
    let upstream = Upstream::start(|_| json(r#"[{"id":"71","name":"Far","tag":"lead","status":"Active"}]"#));
    let site = proxy_site(&upstream, "ad_accounts = [\"9\"]\nsync_interval = \"1s\"");
    site.reconfigure("[limits]\n", "[pixels.\"71\"]\nconsent = \"drop\"\n\n[limits]\n");
    let gateway = site.start();
    until("the list is known", || visit(&site, "71", "&consent=granted", false).status == 200);
    let before = records(&site, "event").len();
    assert_eq!(visit(&site, "71", "&consent=denied", false).record_id(), None);
    let labels = [("outcome", "ignored"), ("reason", "consent")];
    assert_eq!(Page::of(&site).value("pixelgate_events_total", &labels), 1.0);
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(records(&site, "event").len(), before);
}

/// No word of its own: what else there is to say is said.
const DROPPED: &str = "missing_currency";
