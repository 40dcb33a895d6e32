//! Unknown ids that are seen often are asked for at the upstream: once each, few in all, and never by an event.

use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use super::client::Client;
use super::forward::proxy_site;
use super::gateway::{Gateway, Site, until};
use super::upstream::{Act, Seen, Upstream, json};

const TOKEN: &str = "upstream_token = \"mine\"";
/// How often an id must come before it is asked for.
const OFTEN: usize = 10;

fn fire(site: &Site, id: &str, times: usize) -> u16 {
    let mut client = Client::connect(site.public).unwrap();
    let statuses = (0..times).map(|_| client.get(&format!("/offsite_event.php?id={id}")).unwrap().status);
    statuses.last().unwrap()
}

fn asked(upstream: &Upstream) -> Vec<String> {
    let id = |seen: Seen| Some(seen.line.strip_prefix("GET /offsitepixels/")?.split(' ').next()?.to_owned());
    upstream.seen().into_iter().filter_map(id).collect()
}

fn lookups(gateway: &Gateway<'_>, outcome: &str) -> f64 {
    gateway.metric(&format!("registry_lookups_total{{outcome=\"{outcome}\"}}")).unwrap()
}

fn not_found() -> Act {
    Act::Say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}".to_vec())
}

#[test]
fn a_pixel_that_no_list_has_is_asked_for_when_it_is_seen_often_and_known_over_restarts() {
    let upstream = Upstream::start(|seen| match seen.line.as_str() {
        "GET /offsitepixels/71 HTTP/1.1" => json(r#"{"id":"71","name":"Found","tag":"lead","status":"Active"}"#),
        _ => not_found(),
    });
    let site = proxy_site(&upstream, TOKEN);
    let gateway = site.start();
    assert_eq!(fire(&site, "71", OFTEN - 1), 404);
    // Now and then two ids have one place in the table, and wear each other down: then it takes more.
    until("the other was asked for", || fire(&site, "72", OFTEN) == 404 && lookups(&gateway, "unknown") == 1.0);
    assert_eq!(asked(&upstream), ["72"], "less than often is not often");
    assert_eq!(fire(&site, "71", 1), 404, "the request that makes it often doesn't wait");
    until("it is known", || fire(&site, "71", 1) == 200);
    let question = upstream.seen().pop().unwrap();
    assert_eq!(question.header("authorization").as_deref(), Some("OAuth mine"));
    assert!(question.header("user-agent").unwrap().starts_with("pixelgate/"), "{question:?}");
    assert_eq!(fire(&site, "72", 5 * OFTEN), 404);
    until("a third was asked for", || fire(&site, "73", OFTEN) == 404 && lookups(&gateway, "unknown") == 2.0);
    assert_eq!(asked(&upstream), ["72", "71", "73"], "no id is asked for twice");
    assert_eq!(lookups(&gateway, "found"), 1.0);
    drop(upstream);
    gateway.kill();
    let gateway = site.start();
    assert_eq!(fire(&site, "71", 1), 200, "kept on disk");
    assert_eq!(gateway.stop(), Some(0));
    let exported = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
    assert!(exported.contains(r#""pixel_name":"Found","pixel_tag":"lead""#), "{exported}");
    assert!(!site.log().contains("mine"), "{}", site.log());
}

#[test]
fn a_flood_of_unknown_ids_costs_the_upstream_at_most_one_question_a_second() {
    let upstream = Upstream::start(|_| not_found());
    let site = proxy_site(&upstream, TOKEN);
    let began = Instant::now();
    let gateway = site.start();
    let floods: Vec<_> = (0..4)
        .map(|flood| {
            let address = site.public;
            thread::spawn(move || {
                let mut client = Client::connect(address).unwrap();
                for number in 0..50 {
                    for _ in 0..OFTEN {
                        let reply = client.get(&format!("/offsite_event.php?id={flood}{number:03}1")).unwrap();
                        assert_eq!(reply.status, if flood == 0 { 400 } else { 404 });
                    }
                }
                // Ids that come once each.
                for number in 0..1000 {
                    let reply = client.get(&format!("/offsite_event.php?id=9{flood}{number}")).unwrap();
                    assert_eq!(reply.status, 404);
                }
            })
        })
        .collect();
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    until("some were asked for", || asked(&upstream).len() > 1);
    let ids = asked(&upstream);
    let most = began.elapsed().as_secs() as usize + 1;
    assert!(ids.len() <= most, "{} questions in {most} s", ids.len());
    assert!(ids.iter().all(|id| id.ends_with('1') && id.len() == 5), "only what was seen often: {ids:?}");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn nobody_is_asked_without_a_token_or_without_an_upstream() {
    let upstream = Upstream::start(|_| json(r#"{"id":"71"}"#));
    let proxy = proxy_site(&upstream, "");
    let local = Site::new("");
    // The same upstream has something to say to a gateway with a token: by then the others would have asked, too.
    let other = proxy_site(&upstream, TOKEN);
    let gateways = [proxy.start(), local.start(), other.start()];
    for site in [&proxy, &local] {
        assert_eq!(fire(site, "71", 3 * OFTEN), 404);
    }
    fire(&other, "71", 3 * OFTEN);
    until("the one with a token knows it", || fire(&other, "71", 1) == 200);
    until("the one with a token asks again", || {
        fire(&other, "75", OFTEN);
        asked(&upstream).contains(&"75".to_owned())
    });
    assert_eq!((fire(&proxy, "71", 1), fire(&local, "71", 1)), (404, 404));
    assert_eq!(asked(&upstream), ["71", "75"]);
    gateways.into_iter().for_each(|gateway| assert_eq!(gateway.stop(), Some(0)));
}

#[test]
fn lies_and_silence_teach_nothing() {
    let answers = Mutex::new([r#"{"id":"99"}"#, r#"[{"id":"72"}]"#, "<html>", r#"{"id":{}}"#].iter());
    let upstream = Upstream::start(move |seen| match answers.lock().unwrap().next() {
        Some(body) => json(body),
        None if seen.line.contains("/75 ") => Act::SayAndClose(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n".to_vec()),
        None => Act::SayAndClose(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"id\":\"76\"".to_vec()),
    });
    let site = proxy_site(&upstream, TOKEN);
    let gateway = site.start();
    for (number, id) in ["71", "72", "73", "74", "75", "76"].iter().enumerate() {
        until("it was asked for", || {
            fire(&site, id, OFTEN) == 404 && lookups(&gateway, "failed") == number as f64 + 1.0
        });
        assert_eq!(fire(&site, id, 1), 404, "{id}");
    }
    assert_eq!(fire(&site, "99", 1), 404);
    assert_eq!(gateway.metric("registry_pixels"), Some(1.0));
    assert_eq!(gateway.stop(), Some(0));
}
