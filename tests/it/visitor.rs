//! The visitor's id: who gets one, what is set, what of a stranger's cookie is believed, and how a refusal ends it.

use regex::Regex;
use serde_json::Value;

use super::client::{Client, Reply};
use super::gateway::{PIXEL, Site};

const OLD: &str = "f81d4fae-7dec-41d0-a765-00a0c91e6bf6";
/// As on all cookies of these sites but for the value and lifetime.
const OWN: &str = "; Path=/; Max-Age=31536000; SameSite=Lax; Secure; HttpOnly";
/// None of an ordinary event's lines: makes a request actix's.
const ODD: &str = "Upgrade: none\r\n";

fn site(mode: &str, cookie: &str) -> Site {
    Site::new(&format!("[privacy]\nbrowser_id = \"{mode}\"\n[cookie]\n{cookie}\n"))
}

fn send(site: &Site, method: &str, target: &str, lines: &str) -> Reply {
    let mut client = Client::connect(site.public).unwrap();
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: px.shop.example\r\n{lines}\r\n").as_bytes()).unwrap();
    if method == "HEAD" {
        let (status, headers) = client.head().unwrap();
        return Reply { status, headers, body: Vec::new() };
    }
    client.reply().unwrap()
}

/// An event; the cookies that its reply sets.
fn fire(site: &Site, query: &str, lines: &str) -> Vec<String> {
    let reply = send(site, "GET", &format!("/offsite_event.php?id={PIXEL}{query}"), lines);
    assert_eq!(reply.status, 200, "{reply:?}");
    cookies(&reply)
}

fn cookies(reply: &Reply) -> Vec<String> {
    let set = reply.headers.iter().filter(|(name, _)| name == "set-cookie");
    set.map(|(_, value)| value.clone()).collect()
}

fn records(site: &Site) -> Vec<Value> {
    let lines = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn is_like(text: &str, pattern: &str) -> bool {
    Regex::new(&format!("^(?:{pattern})$")).unwrap().is_match(text)
}

const UUID: &str = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}";

#[test]
fn what_browsers_would_drop_is_refused() {
    for (cookie, told) in [
        ("same_site = \"none\"\nsecure = false", "cookie.same_site: none is not allowed without cookie.secure = true"),
        ("same_site = \"None\"", "cookie.same_site: \"None\" is not allowed; allowed: lax, strict, none"),
        ("max_age = \"401d\"", "cookie.max_age: \"401d\" is not allowed; allowed are durations"),
        ("name = \"a;b\"", "cookie.name: \"a;b\" is not allowed"),
        ("name = \"__Host-id\"\nsecure = false", "cookie.secure: false is not allowed with that prefix"),
        ("name = \"__host-id\"\ndomain = \"shop.example\"", "cookie.domain: a cookie.name with __Host-"),
        ("domain = \"https://shop.example\"", "cookie.domain: \"https://shop.example\" is not allowed"),
        ("domain = \"shop.example\\r\\nX-Evil: 1\"", "cookie.domain: \"shop.example\\r\\nX-Evil: 1\" is not allowed"),
    ] {
        // Whether or not visitors get ids: it would be wrong from the day that they do.
        for mode in ["off", "on"] {
            let checked = site(mode, cookie).run(&["check"]);
            let output = String::from_utf8(checked.stdout).unwrap();
            assert!(checked.status.code() == Some(2) && output.starts_with(told), "{cookie}: {output}");
        }
    }
    let site = site("on", "domain = \"shop.example\"");
    let warned = |site: &Site| {
        let checked = site.run(&["check"]);
        let output = String::from_utf8(checked.stdout).unwrap();
        assert_eq!(checked.status.code(), Some(0), "{output}");
        output.lines().filter(|line| line.starts_with("warning: cookie.")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(warned(&site)[0].starts_with("warning: cookie.domain: shop.example doesn't hold server.public_url"));
    site.reconfigure("workers = 2", "workers = 2\npublic_url = \"http://px.shop.example\"");
    assert!(warned(&site)[0].starts_with("warning: cookie.secure: server.public_url"));
    site.reconfigure("http://px", "https://px");
    assert_eq!(warned(&site), [""; 0]);
}

#[test]
fn off_there_is_nothing_of_it() {
    let site = Site::new("");
    let gateway = site.start();
    assert_eq!(fire(&site, "&consent=granted", &format!("Cookie: pgid={OLD}\r\n")), [""; 0]);
    assert_eq!(fire(&site, "&consent=denied", &format!("Cookie: pgid={OLD}\r\n")), [""; 0]);
    assert_eq!(gateway.stop(), Some(0));
    assert!(records(&site).iter().all(|record| record["browser_id"].is_null() && record["fbp"].is_null()));
}

#[test]
fn an_id_is_kept_over_visits_and_by_every_way_in() {
    let site = site("on", "");
    let gateway = site.start();
    let origin = "Origin: https://www.shop.example\r\n";
    let first = send(&site, "GET", &format!("/offsite_event?id={PIXEL}"), origin);
    // A page of another origin may see none of it, and the browser only takes it with both of these.
    assert_eq!(first.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(first.header("access-control-allow-origin"), Some("https://www.shop.example"));
    assert_eq!(first.header("cache-control"), Some("no-store"));
    let set = cookies(&first);
    let (pair, attributes) = set[0].split_once(';').unwrap();
    assert!(is_like(pair, &format!("pgid={UUID}")) && format!(";{attributes}") == OWN, "{set:?}");
    assert!(is_like(&set[1], r"_fbp=fb\.1\.\d{13}\.\d+; Path=/; Max-Age=7776000; SameSite=Lax; Secure"), "{set:?}");
    assert_eq!(set.len(), 2);
    let fbp = set[1].split(';').next().unwrap();
    let back = format!("Cookie: theirs=1; {pair}; {fbp}\r\n");
    let id = format!("id={PIXEL}");
    for (method, path) in [("GET", "/offsite_event.php"), ("POST", "/offsite_event"), ("GET", "/tr/"), ("POST", "/tr")]
    {
        for odd in ["", ODD] {
            let (query, body) = if method == "GET" { (format!("?{id}"), "") } else { (String::new(), &*id) };
            let length = if method == "GET" { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
            let mut client = Client::connect(site.public).unwrap();
            let head = format!("{method} {path}{query} HTTP/1.1\r\nHost: px.shop.example\r\n{back}{odd}{length}\r\n");
            client.send(format!("{head}{body}").as_bytes()).unwrap();
            let reply = client.reply().unwrap();
            assert!(matches!(reply.status, 200 | 204), "{method} {path}: {reply:?}");
            assert_eq!(cookies(&reply), [format!("{pair}{OWN}")], "{method} {path}: Meta's is another's to renew");
        }
    }
    assert_eq!(gateway.stop(), Some(0));
    let records = records(&site);
    assert_eq!(records.len(), 9);
    for record in records {
        assert_eq!(format!("pgid={}", record["browser_id"].as_str().unwrap()), pair);
        assert_eq!(format!("_fbp={}", record["fbp"].as_str().unwrap()), fbp);
    }
}

#[test]
fn what_makes_no_record_sets_nothing() {
    let site = site("on", "");
    let gateway = site.start();
    let event = format!("/offsite_event.php?id={PIXEL}&eid=order-1");
    for back in [String::new(), format!("Cookie: pgid={OLD}\r\n")] {
        for odd in ["", ODD] {
            let set = |method: &str, target: &str, lines: &str| {
                cookies(&send(&site, method, target, &format!("{back}{lines}{odd}")))
            };
            assert_eq!(set("HEAD", &event, ""), [""; 0]);
            assert_eq!(set("GET", &event, "Sec-Purpose: prefetch\r\n"), [""; 0]);
            assert_eq!(set("GET", "/offsite_event.php?id=999", ""), [""; 0]);
            assert_eq!(set("GET", "/offsite_event.php", ""), [""; 0]);
            assert_eq!(set("OPTIONS", &event, "Origin: https://a.example\r\n"), [""; 0]);
            assert_eq!(set("PUT", &event, ""), [""; 0]);
            assert_eq!(set("GET", "/fp.js", ""), [""; 0]);
        }
    }
    assert_eq!(fire(&site, "&eid=order-1", "").len(), 2);
    assert_eq!(fire(&site, "&eid=order-1", ""), [""; 0], "a copy's id would be in no record");
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(records(&site).len(), 1);
}

#[test]
fn a_strangers_cookie_is_not_sent_back() {
    let site = site("on", "domain = \"shop.example\"\nname = \"visitor\"\nmax_age = \"10s\"\nsame_site = \"strict\"");
    let gateway = site.start();
    let long = "9".repeat(600);
    for bad in [
        "evil".to_owned(),
        OLD.to_uppercase(),
        OLD.replace('-', ""),
        format!("{{{OLD}}}"),
        format!("{OLD}0"),
        OLD.replace("-41d0", "-11d0"),
        "f81d4fae-7dec-41d0-a765-00a0c91e6bf\u{e9}".to_owned(),
        long.clone(),
    ] {
        let lines = format!("Cookie: visitor={bad}; _fbp=fb.1.2.{bad}; _fbc=fb.1.1596403881668.<{bad}>\r\n");
        let set = fire(&site, "", &lines);
        assert!(is_like(&set[0], &format!("visitor={UUID}; Path=/; Domain=shop.example; Max-Age=10; .*")), "{set:?}");
        assert!(is_like(&set[1], r"_fbp=fb\.1\.\d{13}\.\d+; Path=/; Domain=shop.example; .*"), "{bad}: {set:?}");
        assert!(set.len() == 2 && !set.concat().contains(&bad), "{set:?}");
    }
    // The first that is ours, whatever stands before it; and Meta's, in all of its forms, to live on.
    let old = "fb.1.1596403881668.1116446470.AQYBAQAA";
    let click = "fb.1.1596403881668.IwAR_caSE-1";
    let lines = format!("Cookie: visitor=evil; visitor={OLD};_fbp={old}; _fbc={click}\r\n");
    let tail = "; Path=/; Domain=shop.example; Max-Age=7776000; SameSite=Strict; Secure";
    let own = format!("visitor={OLD}; Path=/; Domain=shop.example; Max-Age=10; SameSite=Strict; Secure; HttpOnly");
    assert_eq!(fire(&site, "", &lines), [own.clone(), format!("_fbp={old}{tail}"), format!("_fbc={click}{tail}")]);
    // The click that brought the visitor here takes the place of an older one; its own stays as it is.
    let page = |query: &str| format!("&dl=https%3A%2F%2Fshop.example%2F%3Fa%3D1%26{query}%23x");
    assert_eq!(fire(&site, &page("fbclid%3DIwAR_caSE-1"), &lines)[2], format!("_fbc={click}{tail}"));
    let newer = fire(&site, &page("fbclid%3DNeWer"), &lines);
    assert!(is_like(&newer[2], &format!(r"_fbc=fb\.1\.\d{{13}}\.NeWer{tail}")), "{newer:?}");
    let evil = fire(&site, &page("fbclid%3Da%3Bb%0d%0aX"), &format!("Cookie: visitor={OLD}\r\n"));
    assert!(evil.len() == 2 && evil[0] == own, "{evil:?}");
    assert_eq!(fire(&site, &page(&format!("fbclid%3D{long}")), "").len(), 2);
    // What the page tells of its own goes before what is made here.
    fire(&site, "&fbp=fb.2.1.3&fbc=fb.2.1.abc", "");
    assert_eq!(gateway.stop(), Some(0));
    let records = records(&site);
    let last = records.last().unwrap();
    assert_eq!((last["fbp"].as_str(), last["fbc"].as_str()), (Some("fb.2.1.3"), Some("fb.2.1.abc")));
    assert_eq!((records[8]["fbp"].as_str(), records[8]["fbc"].as_str()), (Some(old), Some(click)));
    assert_eq!(records[10]["fbc"].as_str(), newer[2].strip_prefix("_fbc=").unwrap().split(';').next());
    assert!(records.iter().all(|record| is_like(record["browser_id"].as_str().unwrap(), UUID)));
}

#[test]
fn a_refusal_ends_it() {
    let gone = "pgid=; Path=/; Max-Age=0; SameSite=Lax; Secure; HttpOnly";
    let back = format!("Cookie: pgid={OLD}; _fbp=fb.1.1596403881668.1116446470\r\n");
    let policies = "\n[pixels.\"7\"]\ngpc = \"drop\"\nconsent = \"drop\"\n[pixels.\"8\"]\ngpc = \"ignore\"\n\
                    consent = \"ignore\"\n[validation]\nunknown_pixel = \"flag\"\n";
    let site = site("on", policies);
    let gateway = site.start();
    let gpc = format!("{back}Sec-GPC: 1\r\n");
    for odd in ["", ODD] {
        for id in [PIXEL, "7"] {
            assert_eq!(fire(&site, &format!("&id={id}&consent=denied"), &format!("{back}{odd}")), [gone], "{id}");
            assert_eq!(fire(&site, &format!("&id={id}"), &format!("{gpc}{odd}")), [gone], "{id}");
        }
        // Of whoever has none there is nothing to delete.
        assert_eq!(fire(&site, "&consent=denied", odd), [""; 0]);
        assert_eq!(fire(&site, "", &format!("Sec-GPC: 1\r\n{odd}")), [""; 0]);
    }
    // A word to the page counts also where the operator records the event as any other; a signal not honoured doesn't.
    assert_eq!(fire(&site, "&id=8&consent=denied", &back), [gone]);
    assert_eq!(fire(&site, "&id=8", &gpc), [format!("pgid={OLD}{OWN}")]);
    assert_eq!(gateway.stop(), Some(0));
    let ids: Vec<Value> = records(&site).iter().map(|record| record["browser_id"].clone()).collect();
    assert_eq!(ids.iter().filter(|id| !id.is_null()).collect::<Vec<_>>(), [OLD], "{ids:?}");
}

#[test]
fn with_on_consent_only_a_grant_counts() {
    let site = site("on_consent", "");
    let gateway = site.start();
    let back = format!("Cookie: pgid={OLD}\r\n");
    for (query, lines, set) in [
        ("", "", 0),
        ("", &*back, 0),
        ("&consent=maybe", &back, 0),
        ("&consent=granted", "", 2),
        ("&consent=granted", &back, 2),
        ("&consent=granted", "Sec-GPC: 1\r\n", 0),
        ("&consent=denied", &back, 1),
    ] {
        assert_eq!(fire(&site, query, lines).len(), set, "{query} {lines}");
    }
    assert_eq!(gateway.stop(), Some(0));
    let has: Vec<bool> = records(&site).iter().map(|record| record["browser_id"].is_string()).collect();
    assert_eq!(has, [false, false, false, true, true, false, false]);
}

#[test]
fn a_batch_is_one_visitor() {
    let site = site("on", "");
    let gateway = site.start();
    let event = |more: &str| format!("id%3D{PIXEL}%26ev%3DLead{more}");
    let batch = |events: &[String]| {
        let events: Vec<String> =
            events.iter().enumerate().map(|(index, event)| format!("events[{index}]={event}")).collect();
        send(&site, "GET", &format!("/tr/?batch=1&{}", events.join("&")), "")
    };
    let set = cookies(&batch(&[event(""), event(""), event("")]));
    assert!(set.len() == 2 && set[0].starts_with("pgid=") && set[1].starts_with("_fbp="), "{set:?}");
    // All or none, and of none nobody is told.
    assert_eq!(cookies(&batch(&[event(""), "id%3D999".to_owned()])), [""; 0]);
    // The visitor's last word is about the cookie; each record is as its event says.
    let refused = batch(&[event(""), event("%26consent%3Ddenied")]);
    assert_eq!((refused.status, cookies(&refused).len()), (200, 0), "it brought none that could be deleted");
    let granted = batch(&[event("%26consent%3Ddenied"), event("%26consent%3Dgranted")]);
    assert_eq!(cookies(&granted).len(), 2);
    assert_eq!(gateway.stop(), Some(0));
    let ids: Vec<Option<String>> =
        records(&site).iter().map(|record| record["browser_id"].as_str().map(str::to_owned)).collect();
    assert!(ids[0].is_some() && ids[0] == ids[1] && ids[1] == ids[2], "{ids:?}");
    assert_eq!(ids[0].as_deref(), set[0].split(['=', ';']).nth(1));
    assert_eq!(ids[3..].iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, true]);
}
