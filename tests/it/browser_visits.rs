//! Many visitors who leave at once, and what the tag takes of a page's time: figures for docs/tag.md.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::browser::{Browser, Shop};
use super::browser_pages::{ID, site, snippet};
use super::gateway::{PIXEL, Site, until};

/// `PIXELGATE_E2E_VISITS`, or few.
fn visits(few: usize) -> usize {
    std::env::var("PIXELGATE_E2E_VISITS").map_or(few, |text| text.parse().expect("PIXELGATE_E2E_VISITS is a number"))
}

#[test]
fn visitors_who_leave_at_once_are_counted_once() {
    let site = Site::new("");
    let gateway = site.start();
    // Each visit is a page that calls and, in the same task, goes on to the next one: every second is another site's,
    // so that the page's process ends with it.
    let page = format!(
        "<script src=\"//{{px}}/fp.js\"></script><script>
         var n = +/\\d+/.exec(location.search)[0], to = location.search.split('to=')[1];
         pixelgate('track', '{PIXEL}', {{event_id: 'visit-' + n}});
         var host = n % 2 ? 'www.other.localhost' : 'www.shop.localhost';
         location.replace(n < to ? '//' + host + ':' + location.port + '/visit?n=' + (n + 1) + '&to=' + to : '/end');
         </script>"
    );
    let shop = Shop::open(&site, &[("/visit", "", &page)]);
    let browser = Browser::start();
    let (all, mut done) = (visits(60), 0);
    while done < all {
        // A browser holds up pages that go on for too long by themselves.
        let to = (done + 20).min(all);
        browser.visit(&shop.url(&format!("/visit?n={}&to={to}", done + 1)));
        browser.wait("location.pathname == '/end'");
        done = to;
    }
    let read = || {
        let exported = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
        let mut arrived = BTreeMap::<String, usize>::new();
        for line in exported.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            *arrived.entry(record["event_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        arrived
    };
    // 99.5 %.
    until("nearly all have arrived", || read().len() * 1000 >= all * 995);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let arrived = read();
    let doubled: Vec<_> = arrived.iter().filter(|(_, count)| **count > 1).collect();
    let again = gateway.metric(r#"events_total{outcome="duplicate",reason=""}"#).unwrap();
    println!("visits: {all}, arrived: {}, doubled: {}, sent twice: {again}", arrived.len(), doubled.len());
    assert!(doubled.is_empty(), "{doubled:?}");
    assert_eq!(gateway.stop(), Some(0));
}

/// Milliseconds that the page's main thread was at work for the tag: within the load of the script, and in later tasks.
/// Time of the thread, not of the clock, so that a busy machine tells nearly the same.
fn at_work(trace: &[Value]) -> (f64, f64) {
    let of_tag = |event: &&Value| event["args"]["data"]["url"].as_str().is_some_and(|url| url.contains("/fp.js"));
    let sum = |name: &str| -> f64 {
        let events = trace.iter().filter(|event| event["name"] == name).filter(of_tag);
        events.filter_map(|event| event["tdur"].as_f64()).sum::<f64>() / 1000.0
    };
    (sum("EvaluateScript"), sum("FunctionCall"))
}

#[test]
fn the_tag_takes_little_of_a_pages_time() {
    let site = site();
    let gateway = site.start();
    let tag = snippet();
    // As pages are that sell something: they have asked for things, read cookies, searched texts before.
    let busy = "<script>fetch('/x', {method: 'POST', body: 'a'}); document.cookie; new Image().src = '/y'; \
                navigator.sendBeacon('/z', 'a'); /a(b)?/.exec('cab'); addEventListener('online', function () {}); \
                encodeURIComponent(JSON.stringify({a: 1}));</script>";
    // What any tag takes: nothing but the same request, in a task of its own.
    let options = format!("{{method: 'POST', body: 'id={ID}', keepalive: true, credentials: 'include'}}");
    let least = format!("setTimeout(function () {{ fetch('//{{px}}/offsite_event.php', {options}); }});");
    let floor = tag.replace("//{px}/en_US", "/least");
    // And to load a script that does nothing, and then nothing once more.
    let nothing = tag.replace("//{px}/en_US", "/nothing");
    let shop = Shop::open(
        &site,
        &[
            ("/bare", "", &tag),
            ("/busy", "", &format!("{busy}{tag}")),
            ("/least", "", &format!("{busy}{floor}")),
            ("/least/fp.js", "", &least),
            ("/nothing", "", &format!("{busy}{nothing}")),
            ("/nothing/fp.js", "", "setTimeout(function () {});"),
        ],
    );
    let browser = Browser::traced();
    let (rounds, mut visited) = (visits(3).min(100), 0);
    for slowdown in [1, 4] {
        browser.devtools("Emulation.setCPUThrottlingRate", &json!({"rate": slowdown}));
        for path in ["/bare", "/busy", "/least", "/nothing"] {
            let mut took = Vec::new();
            for _ in 0..rounds {
                browser.visit("about:blank");
                browser.trace();
                browser.visit(&shop.url(path));
                visited += i32::from(path != "/nothing");
                until("each visit told", || {
                    gateway.metric(r#"events_total{outcome="accepted",reason=""}"#) == Some(f64::from(visited))
                });
                let (mut load, mut later) = (0.0, 0.0);
                until("the trace has come", || {
                    let (more_load, more_later) = at_work(&browser.trace());
                    (load, later) = (load + more_load, later + more_later);
                    // Nothing may take no time that shows.
                    load > 0.0 && (later > 0.0 || path == "/nothing")
                });
                took.push((load, later));
            }
            let median = |of: &dyn Fn(&(f64, f64)) -> f64| {
                let mut times: Vec<f64> = took.iter().map(of).collect();
                times.sort_by(f64::total_cmp);
                times[times.len() / 2]
            };
            let (load, later) = (median(&|took| took.0), median(&|took| took.1));
            println!("{path} at {slowdown}x, median of {rounds}: load {load:.2} ms, later tasks {later:.2} ms");
        }
    }
    assert_eq!(gateway.stop(), Some(0));
}
