//! What a real Chromium's visitors may say about being recognised, what is kept of them, and odd ways to have a page.

use serde_json::{Value, json};

use super::browser::{Browser, Shop, events};
use super::browser_pages::{ID, STUB, TAG, app, site, snippet};
use super::filters;
use super::gateway::{PIXEL, Site};

/// All cookies that the browser has, whoever may read them.
fn cookies(browser: &Browser) -> Vec<(String, bool)> {
    let told = browser.devtools("Network.getAllCookies", &json!({}));
    let each = told["cookies"].as_array().unwrap().iter();
    let mut found: Vec<(String, bool)> =
        each.map(|cookie| (cookie["name"].as_str().unwrap().to_owned(), cookie["httpOnly"] == true)).collect();
    found.sort();
    found
}

fn track(browser: &Browser, more: &str) {
    browser.run(&format!("{more}; pixelgate('track', '{ID}')"));
}

#[test]
fn a_visitor_has_an_id_from_the_grant_to_the_refusal() {
    let site = Site::new("[privacy]\nbrowser_id = \"on_consent\"\n[cookie]\ndomain = \"shop.localhost\"");
    site.reconfigure(PIXEL, ID);
    let gateway = site.start();
    let (shop, browser) = app(&site);
    track(&browser, "");
    events(&site, 1);
    assert_eq!(cookies(&browser), [], "nobody has agreed");
    track(&browser, "pixelgate('consent', 'grant')");
    events(&site, 2);
    browser.wait("document.cookie");
    assert_eq!(cookies(&browser), [("_fbp".to_owned(), false), ("pgid".to_owned(), true)]);
    let seen = browser.run("return document.cookie");
    assert!(seen.as_str().unwrap().starts_with("_fbp=fb.1.") && !seen.as_str().unwrap().contains("pgid"), "{seen}");
    // Another page, by way of a click.
    browser.visit(&shop.url("/app?fbclid=IwAR1"));
    track(&browser, "pixelgate('consent', 'grant')");
    let records = events(&site, 3);
    assert!(records[0]["browser_id"].is_null() && records[1]["browser_id"].is_string(), "{records:#?}");
    assert_eq!(records[1]["browser_id"], records[2]["browser_id"]);
    assert_eq!(records[1]["fbp"], records[2]["fbp"]);
    assert!(records[2]["fbc"].as_str().unwrap().ends_with(".IwAR1"), "{}", records[2]);
    browser.wait("document.cookie.indexOf('_fbc=') >= 0");
    // Another site's page: a stranger there.
    browser.visit(&shop.elsewhere("/app"));
    track(&browser, "pixelgate('consent', 'grant')");
    assert_ne!(events(&site, 4)[3]["browser_id"], records[1]["browser_id"]);
    browser.visit(&shop.url("/app"));
    track(&browser, "pixelgate('consent', 'revoke')");
    let last = events(&site, 5).remove(4);
    assert!(last["consent"] == "denied" && last["browser_id"].is_null() && last["fbp"].is_null(), "{last}");
    browser.devtools("Network.enable", &json!({}));
    super::gateway::until("the id is gone", || cookies(&browser).iter().all(|(name, _)| name != "pgid"));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn on_another_sites_page_the_tag_brings_metas_ids_unless_refused() {
    // What the tag sends is kept, whatever the visitor says: leaving it out must be its own doing.
    let site = Site::new("[pixels.\"*\"]\nconsent = \"ignore\"\n");
    site.reconfigure(PIXEL, ID);
    let gateway = site.start();
    // Names that stand in the place of the document's own members.
    let odd = format!("{STUB}{TAG}<form name=\"cookie\"></form><form name=\"domain\"></form><img name=\"URL\">");
    let shop = Shop::open(&site, &[("/app", "", &format!("{STUB}{TAG}")), ("/odd", "", &odd)]);
    let browser = Browser::start();
    browser.visit(&shop.elsewhere("/app"));
    browser.run(
        "document.cookie = 'prefs=a&_fbp=none'; document.cookie = '_fbp=fb.1.1625813003210.1037862016'; \
         document.cookie = '_fbc=fb.1.1625813003210.IwAR1';",
    );
    let told = |record: &Value| (record["fbp"].clone(), record["fbc"].clone(), record["page_url"].clone());
    browser.run(&format!("pixelgate('track', '{ID}', {{event_id: ''}})"));
    let first = events(&site, 1).remove(0);
    let ids = (json!("fb.1.1625813003210.1037862016"), json!("fb.1.1625813003210.IwAR1"));
    assert_eq!(told(&first), (ids.0, ids.1, json!(shop.elsewhere("/app"))));
    assert!(first["event_id"].as_str().unwrap().len() > 16, "an empty one is none: {first}");
    track(&browser, "pixelgate('consent', 'revoke')");
    assert_eq!(told(&events(&site, 2)[1]), (Value::Null, Value::Null, json!(shop.elsewhere("/app"))));
    browser.visit(&shop.elsewhere("/odd"));
    track(&browser, "");
    assert_eq!(events(&site, 3)[2]["page_url"], shop.elsewhere("/odd"));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_privacy_control_keeps_the_tag_from_ids() {
    let site = Site::new("[validation]\nunknown_pixel = \"flag\"\n[privacy]\nbrowser_id = \"on\"");
    site.reconfigure(PIXEL, ID);
    let gateway = site.start();
    let page = format!(
        "{STUB}{TAG}<script>fbq = function () {{ fbq.callMethod.apply(fbq, arguments); }}; fbq.queue = [];\
                        </script><script src=\"//{{px}}/site.js\"></script>"
    );
    let shop = Shop::open(&site, &[("/app", "", &page)]);
    let browser = Browser::start();
    let signal = "Object.defineProperty(Navigator.prototype, 'globalPrivacyControl', {get: () => true});";
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({"source": signal}));
    browser.devtools("Network.enable", &json!({}));
    browser.devtools("Network.setExtraHTTPHeaders", &json!({"headers": {"Sec-GPC": "1"}}));
    browser.visit(&shop.url("/app?fbclid=IwAR1"));
    browser.run("document.cookie = '_fbp=fb.1.1596403881668.1116446470; domain=shop.localhost'");
    // Also of a page that says that its visitor has agreed.
    browser.run(&format!("fbq('consent', 'grant'); fbq('init', '{ID}'); fbq('track', 'Lead')"));
    track(&browser, "");
    let records = events(&site, 2);
    for record in &records {
        assert_eq!((&record["gpc"], &record["page_url"]), (&json!(true), &json!(shop.url("/app"))), "{record}");
        assert!(["fbp", "fbc", "browser_id"].iter().all(|name| record[name].is_null()), "{record}");
    }
    assert_eq!(cookies(&browser), [("_fbp".to_owned(), false)]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_page_that_is_drawn_ahead_tells_when_it_is_visited() {
    let site = site();
    let gateway = site.start();
    let rules = "<script type=\"speculationrules\">{\"prerender\": [{\"source\": \"list\", \"urls\": [\"/thanks\"]}]}\
                 </script><a href=\"/thanks\">x</a>";
    let shop = Shop::open(&site, &[("/cart", "", rules), ("/thanks", "", &snippet())]);
    let browser = Browser::start();
    browser.visit(&shop.url("/cart"));
    super::gateway::until("the page is drawn ahead, its script too", || {
        gateway.metric(r#"http_request_duration_seconds_count{route="fp_js",method="GET",status_class="2xx"}"#)
            > Some(0.0)
    });
    // That nothing is told can't be waited for: what would have been is there with the next event.
    browser.run(&format!("new Image().src = '//{}/offsite_event.php?id={ID}&ev=before'", shop.gateway()));
    assert_eq!(events(&site, 1)[0]["event_name"], "before");
    browser.run("document.querySelector('a').click()");
    browser.wait("location.pathname == '/thanks'");
    let ahead = browser.run("return performance.getEntriesByType('navigation')[0].activationStart > 0");
    assert_eq!(ahead, true, "this browser draws no pages ahead, so the test shows nothing");
    assert_eq!(events(&site, 2)[1]["value"], "0.01");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn browsers_without_keepalive_tell_by_beacon_or_image() {
    let site = site();
    let gateway = site.start();
    let track = |name: &str| format!("<script>pixelgate('track', '{ID}', {{event_name: '{name}'}});</script>");
    let without = |script: &str| format!("<script>{script}</script>{TAG}");
    let no_keepalive = "delete Request.prototype.keepalive;";
    let no_beacon = "delete Request.prototype.keepalive; navigator.sendBeacon = undefined;";
    // As Internet Explorer: none of either, no currentScript, no random numbers.
    let old = "delete window.fetch; navigator.sendBeacon = undefined; delete window.crypto; \
               Object.defineProperty(document, 'currentScript', {value: null}); delete window.cookieStore;";
    let leave = "<script>location.href = '/next';</script>";
    let pages = [
        ("/beacon", "", &*format!("{}{}{leave}", without(no_keepalive), track("beacon"))),
        ("/image", "", &*format!("{}{}", without(no_beacon), track("image"))),
        ("/old", "", &*format!("{}{}", without(old), track("old"))),
        // A beacon that the browser has no room for.
        (
            "/full",
            "",
            &*format!(
                "{}{}",
                without("delete Request.prototype.keepalive; navigator.sendBeacon = function () { return false; };"),
                track("full")
            ),
        ),
    ];
    let shop = Shop::open(&site, &pages);
    let browser = Browser::start();
    for ((path, ..), number) in pages.iter().zip(1..) {
        browser.visit(&shop.url(path));
        events(&site, number);
    }
    let records = events(&site, 4);
    let mut names: Vec<&Value> = records.iter().map(|record| &record["event_name"]).collect();
    names.sort_by_key(|name| name.to_string());
    assert_eq!(names, ["beacon", "full", "image", "old"]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn no_filter_list_hits_what_the_tags_ask_for() {
    let site = Site::new("[validation]\nunknown_pixel = \"flag\"");
    let gateway = site.start();
    let calls = format!(
        "pixelgate('track', '{ID}', {{event_name: 'Lead'}}); fbq('init', '{ID}'); fbq('track', 'PageView', {{a: 1}});\
         _fbq.push(['addPixelId', '{ID}']); _fbq.push(['track', 'PageView', {{a: 1}}]);"
    );
    let stubs = "<script>fbq = function () { fbq.callMethod.apply(fbq, arguments); }; fbq.queue = [];</script>";
    let tags = "<script src=\"//{px}/en_US/fbds.js\"></script><script src=\"//{px}/site.js\"></script>";
    let page = format!("{}{stubs}{tags}<script>{calls}</script>", snippet());
    // By request, and by image, where all that is told is in the URL.
    let only_images = "Content-Security-Policy: img-src {px}; connect-src 'none'\r\n";
    let shop = Shop::open(&site, &[("/fetch", "", &page), ("/image", only_images, &page)]);
    let browser = Browser::start();
    let mut seen = 0;
    for (path, count) in [("/fetch", 4), ("/image", 8)] {
        browser.visit(&shop.url(path));
        assert_eq!(events(&site, count).len(), count);
        let asked = browser.run("return performance.getEntriesByType('resource').map(e => e.name)");
        for url in asked.as_array().unwrap().iter().filter_map(Value::as_str) {
            assert_eq!(filters::hit(url), None, "{url}");
            seen += usize::from(url.contains("/tr/") || url.contains("/offsite_event.php"));
        }
    }
    assert!(seen >= 8, "{seen} requests were looked at");
    assert_eq!(gateway.stop(), Some(0));
}
