//! Many visitors who leave at once, and what the tag takes of a page's time: figures for docs/tag.md.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::browser::{Browser, Shop};
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
        let to = (done + 100).min(all);
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

/// Seconds of script that the page of a tab has run, its compilation included.
fn script_seconds(browser: &Browser) -> f64 {
    let told = browser.devtools("Performance.getMetrics", &json!({}));
    let metrics = told["metrics"].as_array().unwrap();
    let of =
        |name: &str| metrics.iter().find(|metric| metric["name"] == name).and_then(|metric| metric["value"].as_f64());
    of("ScriptDuration").unwrap() + of("V8CompileDuration").unwrap_or(0.0)
}

#[test]
fn the_tag_takes_little_of_a_pages_time() {
    let site = Site::new("");
    let gateway = site.start();
    let param = format!("<script>fb_param = {{pixel_id: '{PIXEL}', value: '1.00', currency: 'EUR'}};</script>");
    let with = format!("{param}<script async src=\"//{{px}}/fp.js\"></script>");
    let shop = Shop::open(&site, &[("/with", "", &with), ("/without", "", &param)]);
    let browser = Browser::start();
    browser.devtools("Performance.enable", &json!({}));
    browser.devtools("Emulation.setCPUThrottlingRate", &json!({"rate": 4}));
    let rounds = visits(20).min(200);
    let mut took: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        for path in ["/with", "/without"] {
            browser.visit("about:blank");
            let before = script_seconds(&browser);
            browser.visit(&shop.url(path));
            took.entry(path).or_default().push((script_seconds(&browser) - before) * 1000.0);
        }
    }
    let median = |path: &str| {
        let mut times = took[path].clone();
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[times.len() * 9 / 10])
    };
    let ((with, with_90), (without, without_90)) = (median("/with"), median("/without"));
    println!(
        "ms of script at 4x slowdown, median and p90: with {with:.3} {with_90:.3}, without {without:.3} {without_90:.3}"
    );
    until("each visit told", || {
        String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap().lines().count() == rounds
    });
    assert!(with > 0.0);
    assert_eq!(gateway.stop(), Some(0));
}
