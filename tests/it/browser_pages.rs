//! Pages in a real browser: whatever a page does and however a visitor leaves, each conversion is one record.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::audit::export;
use super::broker::Broker;
use super::browser::{Browser, Shop, events};
use super::consumer::read_committed;
use super::gateway::{PIXEL, Site};
use super::scene;

/// The published page's own snippet, byte for byte.
const SNIPPET: &str = "<!-- Facebook Conversion Code for CV uploaded -->\n<script type=\"text/javascript\">\n\
var fb_param = {};\nfb_param.pixel_id = '6014360342904';\nfb_param.value = '0.01';\nfb_param.currency = 'GBP';\n\
(function(){\n  var fpw = document.createElement('script');\n  fpw.async = true;\n  \
fpw.src = '//connect.facebook.net/en_US/fp.js';\n  var ref = document.getElementsByTagName('script')[0];\n  \
ref.parentNode.insertBefore(fpw, ref);\n})();\n</script>\n<noscript><img height=\"1\" width=\"1\" alt=\"\" \
style=\"display:none\" src=\"https://www.facebook.com/offsite_event.php?id=6014360342904&amp;value=0.01&amp;\
currency=GBP\" /></noscript>";
/// Its pixel.
pub const ID: &str = "6014360342904";
/// Keeps calls until the tag has come.
pub const STUB: &str = "<script>window.pixelgate = window.pixelgate || \
function () { (pixelgate.q = pixelgate.q || []).push(arguments); };</script>";
/// The tag, in order with the page's own scripts.
pub const TAG: &str = "<script src=\"//{px}/fp.js\"></script>";

/// The snippet with its hosts mapped to the gateway, and nothing else.
pub fn snippet() -> String {
    let mapped = SNIPPET.replace("//connect.facebook.net", "//{px}");
    mapped.replace("https://www.facebook.com", "http://{px}")
}

/// A site that knows the snippet's pixel.
pub fn site() -> Site {
    let site = Site::new("");
    site.reconfigure(PIXEL, ID);
    site
}

/// What a page tells, without what every record has.
pub fn told(record: &Value) -> Value {
    let names = ["pixel_id", "value", "currency", "event_name", "source", "page_url", "referrer", "params", "consent"];
    let members = names.into_iter().filter_map(|name| Some((name.to_owned(), record.get(name)?.clone())));
    Value::Object(members.collect())
}

/// A shop with a page `/app` that has the tag, and a browser on it.
pub fn app(site: &Site) -> (Shop, Browser) {
    let shop = Shop::open(site, &[("/app", "", &format!("{STUB}{TAG}"))]);
    let browser = Browser::start();
    browser.visit(&shop.url("/app"));
    (shop, browser)
}

/// The milliseconds may be the same ones.
fn is_not_after(record: &Value) -> bool {
    let time = |name: &str| record[name].as_str().unwrap_or_else(|| panic!("no {name} in {record}")).to_owned();
    time("occurred_at") <= time("received_at")
}

#[test]
fn the_documents_snippet_reaches_kafka() {
    let (broker, topic) = (Broker::shared(), "browser");
    let site = scene::site(&broker.address(), topic, "");
    site.reconfigure(PIXEL, ID);
    let gateway = site.start();
    let shop =
        Shop::open(&site, &[("/thanks", "", &snippet()), ("/cart", "", "<a href=\"/thanks?utm_source=a&b=c\">x</a>")]);
    let browser = Browser::start();
    browser.visit(&shop.url("/cart"));
    browser.run("document.querySelector('a').click()");
    let record = events(&site, 1).remove(0);
    assert_eq!(
        told(&record),
        json!({
            "pixel_id": ID, "value": "0.01", "currency": "GBP", "source": "fp_js",
            "page_url": shop.url("/thanks?utm_source=a"), "referrer": shop.url("/cart")
        })
    );
    assert!(is_not_after(&record) && record["event_id"].as_str().unwrap().len() > 16, "{record}");
    scene::wait_until_published(&site, &gateway);
    let published = read_committed(&broker.address(), topic);
    assert_eq!(published.len(), 1);
    assert_eq!(serde_json::from_str::<Value>(&published[0].value).unwrap(), record);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn without_javascript_the_image_tells() {
    let site = site();
    let gateway = site.start();
    let shop = Shop::open(&site, &[("/thanks", "", &snippet())]);
    let browser = Browser::with(&json!({"profile.managed_default_content_settings.javascript": 2}));
    browser.visit(&shop.url("/thanks"));
    let record = events(&site, 1).remove(0);
    // A page's policy shortens the `Referer` to its origin.
    let origin = shop.url("/");
    let expected =
        json!({"pixel_id": ID, "value": "0.01", "currency": "GBP", "source": "offsite_event", "page_url": origin});
    assert_eq!(told(&record), expected);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_tab_that_closes_and_a_page_that_is_left_have_told() {
    let site = site();
    let gateway = site.start();
    let track = |name: &str| format!("pixelgate('track', '{ID}', {{event_name: '{name}'}});");
    let closing = format!("{TAG}<script>addEventListener('pagehide', function () {{ {} }});</script>", track("closed"));
    let leaving = format!("{TAG}<script>{} location.href = '/next';</script>", track("left"));
    let shop = Shop::open(&site, &[("/closing", "", &closing), ("/leaving", "", &leaving)]);
    let browser = Browser::start();
    let first = browser.open_tab();
    browser.visit(&shop.url("/closing"));
    browser.close_tab(&first);
    browser.visit(&shop.url("/leaving"));
    browser.wait("location.pathname == '/next'");
    let mut names: Vec<Value> = events(&site, 2).iter().map(|record| record["event_name"].clone()).collect();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["closed", "left"]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn what_happens_without_network_is_told_with_it() {
    let site = site();
    let gateway = site.start();
    let (shop, browser) = app(&site);
    browser.offline(true);
    browser.run(&format!("pixelgate('track', '{ID}', {{event_name: 'same page', value: 3, currency: 'EUR'}})"));
    browser.wait("navigator.onLine === false");
    assert_eq!(browser.run("return Object.keys(localStorage).length"), 0, "nobody has agreed to that");
    browser.offline(false);
    let record = events(&site, 1).remove(0);
    assert!(is_not_after(&record) && record["value"] == "3", "{record}");

    // With consent, a later page tells what an earlier one could not.
    assert_eq!(gateway.stop(), Some(0));
    browser.run(&format!("pixelgate('consent', 'grant'); pixelgate('track', '{ID}', {{event_name: 'later page'}})"));
    browser.wait("Object.keys(localStorage).length == 1");
    browser.visit("about:blank");
    let gateway = site.start();
    browser.visit(&shop.url("/app?second"));
    assert_eq!(browser.run("return Object.keys(localStorage).length"), 1, "nobody has agreed on this page yet");
    browser.run("pixelgate('consent', 'grant')");
    let record = events(&site, 2).remove(1);
    assert_eq!((&record["event_name"], record["page_url"].as_str()), (&json!("later page"), Some(&*shop.url("/app"))));
    browser.wait("Object.keys(localStorage).length == 0");

    // Revoked: what was stored goes.
    assert_eq!(gateway.stop(), Some(0));
    browser.run(&format!("pixelgate('track', '{ID}')"));
    browser.wait("Object.keys(localStorage).length == 1");
    browser.run("pixelgate('consent', 'revoke')");
    assert_eq!(browser.run("return Object.keys(localStorage).length"), 0);
    browser.visit("about:blank");
    let gateway = site.start();
    browser.visit(&shop.url("/app"));
    browser.run(&format!("pixelgate('consent', 'grant'); pixelgate('track', '{ID}', {{event_name: 'asked'}})"));
    assert_eq!(events(&site, 3)[2]["event_name"], "asked");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn of_more_than_fifty_that_can_not_leave_the_newest_are_kept() {
    let site = site();
    let gateway = site.start();
    let (_shop, browser) = app(&site);
    assert_eq!(gateway.stop(), Some(0));
    browser.run(&format!(
        "for (var n = 0; n < 60; n++) pixelgate('track', '{ID}', {{event_name: 'n' + n}});\
         pixelgate('consent', 'grant')"
    ));
    // Each is stored once its first try has failed.
    browser.wait("Object.keys(localStorage).length == 50");
    // Those that were given up end their only try.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let gateway = site.start();
    let names: BTreeSet<String> =
        events(&site, 50).iter().map(|event| event["event_name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, (10..60).map(|n| format!("n{n}")).collect());
    browser.wait("Object.keys(localStorage).length == 0");
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(export(&site).len(), 50);
}

#[test]
fn strict_policies_of_a_page_are_kept() {
    let site = site();
    let gateway = site.start();
    let printed = String::from_utf8(site.run(&["tag", "integrity"]).stdout).unwrap();
    let (url, integrity) = printed.lines().next().unwrap().split_once('\t').unwrap();
    let version = url.split_once("?v=").unwrap().1;
    let page = |integrity: &str| {
        format!(
            "<script src=\"/page.js\"></script><script crossorigin=\"anonymous\" integrity=\"{integrity}\" \
             src=\"http://{{px}}/fp.js?v={version}\"></script>"
        )
    };
    let csp = |rest: &str| {
        format!(
            "Content-Security-Policy: default-src 'none'; script-src 'self' {{px}}; \
             require-trusted-types-for 'script'; \
             trusted-types 'none'; {rest}\r\n"
        )
    };
    let shop = Shop::open(
        &site,
        &[
            ("/page.js", "", &format!("fb_param = {{pixel_id: '{ID}', cd: {{page: location.pathname}}}};")),
            ("/connect", &csp("connect-src {px}"), &page(integrity)),
            // No request of a script's own: the image is left.
            ("/image", &csp("img-src {px}"), &page(integrity)),
            ("/other-text", &csp("connect-src {px}; img-src {px}"), &page(&integrity.replace("sha384-", "sha384-A"))),
        ],
    );
    let browser = Browser::start();
    for path in ["/other-text", "/connect", "/image"] {
        browser.visit(&shop.url(path));
        assert_eq!(browser.run("return typeof pixelgate == 'function'"), path != "/other-text", "{path}");
    }
    let pages: Vec<Value> = events(&site, 2).iter().map(|record| record["params"]["cd[page]"].clone()).collect();
    assert_eq!(pages, ["/connect", "/image"]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn an_isolated_page_tells() {
    let site = site();
    let gateway = site.start();
    let isolated = "Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Embedder-Policy: require-corp\r\n";
    let image = format!("<img src=\"http://{{px}}/offsite_event.php?id={ID}&amp;value=2&amp;currency=EUR\">");
    let shop = Shop::open(&site, &[("/", isolated, &format!("{}{image}", snippet()))]);
    let browser = Browser::start();
    browser.visit(&shop.url("/"));
    assert_eq!(browser.run("return crossOriginIsolated"), true);
    let mut records: Vec<Value> = events(&site, 2).iter().map(told).collect();
    records.sort_by_key(|record| record["source"].to_string());
    assert_eq!((&records[0]["source"], &records[0]["value"]), (&json!("fp_js"), &json!("0.01")));
    assert_eq!((&records[1]["source"], &records[1]["value"]), (&json!("offsite_event"), &json!("2")));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn cookies_travel_to_another_origin_and_not_to_another_site() {
    let site = site();
    let gateway = site.start();
    // One that no script can read: only the request itself can have brought it.
    let cookie = "Set-Cookie: _fbp=fb.1.1625813003210.1037862016; Domain=shop.localhost; Path=/; HttpOnly\r\n";
    let shop = Shop::open(&site, &[("/thanks", cookie, &snippet())]);
    let browser = Browser::start();
    browser.visit(&shop.url("/thanks"));
    events(&site, 1);
    browser.visit(&shop.elsewhere("/thanks"));
    let records = events(&site, 2);
    assert_eq!(records[0]["fbp"], "fb.1.1625813003210.1037862016");
    assert_eq!((&records[1]["fbp"], &records[1]["page_url"]), (&Value::Null, &json!(shop.elsewhere("/thanks"))));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn two_snippets_on_a_page_are_two_conversions() {
    let site = Site::new("[validation]\nunknown_pixel = \"flag\"");
    let gateway = site.start();
    let second = snippet().replace(ID, "6014360342905").replace("0.01", "7.50").replace("GBP", "EUR");
    let shop = Shop::open(&site, &[("/two", "", &format!("{}\n{second}", snippet()))]);
    let browser = Browser::start();
    // Cold, and with the script in the cache, when the first may run before the second snippet is there.
    for count in [2, 4, 6] {
        browser.visit(&shop.url("/two"));
        events(&site, count);
    }
    let mut records: Vec<Value> = events(&site, 6).iter().map(told).collect();
    records.sort_by_key(|record| record["pixel_id"].to_string());
    let page = shop.url("/two");
    let expected = |id: &str, value: &str, currency: &str| {
        let source = "fp_js";
        json!({"pixel_id": id, "value": value, "currency": currency, "source": source, "page_url": page})
    };
    for record in &records[..3] {
        assert_eq!(*record, expected(ID, "0.01", "GBP"));
    }
    for record in &records[3..] {
        assert_eq!(*record, expected("6014360342905", "7.50", "EUR"));
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_single_page_app_tells_where_it_is() {
    let site = site();
    let gateway = site.start();
    let early =
        format!("<script>pixelgate('track', '{ID}', {{event_name: 'early', event_id: 'e-1', sku: 'A 1'}});</script>");
    let tag = TAG.replace("src=", "async src=");
    let shop = Shop::open(&site, &[("/app", "", &format!("{STUB}{early}{tag}"))]);
    let browser = Browser::start();
    browser.visit(&shop.url("/app"));
    browser.wait("window.pixelgate && pixelgate.page");
    let step = "history.pushState({}, '', '/app/thanks');";
    let data = "{value: 0, currency: 'EUR', event_name: 'late', list: ['a', 1], none: null, run: function () {}}";
    browser.run(&format!("{step} pixelgate('track', '{ID}', {data})"));
    // As pages did before: the global anew, and the script once more.
    let again = format!("window.fb_param = {{pixel_id: '{ID}', value: '1.00', currency: 'USD', event_id: 'e-2'}};");
    browser.run(&format!(
        "{again} var s = document.createElement('script'); s.src = '//{}/fp.js'; document.head.appendChild(s);",
        shop.gateway()
    ));
    let mut records = events(&site, 3);
    records.sort_by_key(|record| record["value"].to_string());
    let page = |record: &Value| (told(record), record["event_id"].clone());
    assert_eq!(
        page(&records[0]).0,
        json!({
            "pixel_id": ID, "value": "0", "currency": "EUR", "event_name": "late", "source": "fp_js",
            "page_url": shop.url("/app/thanks"), "params": {"cd[list]": "[\"a\",1]"}
        })
    );
    let (record, id) = page(&records[1]);
    assert_eq!((&record["value"], &id), (&json!("1.00"), &json!("e-2")));
    let (record, id) = page(&records[2]);
    assert_eq!(
        (&record["event_name"], &id, &record["params"]),
        (&json!("early"), &json!("e-1"), &json!({"cd[sku]": "A 1"}))
    );
    assert_eq!(gateway.stop(), Some(0));
}
