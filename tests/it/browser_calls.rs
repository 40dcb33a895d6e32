//! What the tag makes of a page's words, and of a gateway's: the old semantics to the letter, copies, refusals, and the
//! ways that a page's policy and its end leave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::browser::{Browser, Shop, events};
use super::browser_pages::{ID, STUB, TAG, site, snippet};
use super::desk::Desk;
use super::gateway::{Gateway, PIXEL, Site, until};
use super::upstream::{Act, Seen, Upstream};

fn count(gateway: &Gateway<'_>, outcome: &str, reason: &str) -> f64 {
    gateway.metric(&format!("events_total{{outcome=\"{outcome}\",reason=\"{reason}\"}}")).unwrap_or(0.0)
}

#[test]
fn parameters_are_those_of_old_in_their_order() {
    let site = site();
    let gateway = site.start();
    // By image, whose URL the page can see.
    let policy = "Content-Security-Policy: default-src 'self' 'unsafe-inline' {px}; connect-src 'none'\r\n";
    let page = |global: &str| format!("<script>{global}</script>{TAG}");
    let odd = "{a: null, u: undefined, f: function () {}, 'x y': '\u{e9}', o: {k: 1}, n: 0, t: true}";
    let shop = Shop::open(
        &site,
        &[
            ("/odd", policy, &page(&format!("fb_param = {{pixel_id: '{ID}', value: 0, currency: '', cd: {odd}}};"))),
            (
                "/all",
                policy,
                &page(&format!("fb_param = {{cd: {{a: 1}}, currency: 'USD', value: '0.00', pixel_id: '{ID}'}};")),
            ),
            ("/nothing", policy, &page("")),
            ("/no-pixel", policy, &page("fb_param = {value: '1.00', currency: 'USD'};")),
        ],
    );
    let browser = Browser::start();
    let sent = "performance.getEntriesByType('resource').map(e => e.name).filter(name => /offsite_event/.test(name))";
    for path in ["/nothing", "/no-pixel"] {
        browser.visit(&shop.url(path));
        assert_eq!(browser.run(&format!("return {sent}")), json!([]), "{path}");
    }
    for (path, query) in [
        ("/odd", format!("id={ID}&cd[x%20y]=%C3%A9&cd[o]=%7B%22k%22%3A1%7D&cd[n]=0&cd[t]=true&")),
        ("/all", format!("id={ID}&value=0.00&currency=USD&cd[a]=1&")),
    ] {
        browser.visit(&shop.url(path));
        browser.wait(&format!("{sent}.length == 1"));
        let url = browser.run(&format!("return {sent}[0]")).as_str().unwrap().replace("%5B", "[").replace("%5D", "]");
        let begin = format!("http://{}/offsite_event.php?{query}", shop.gateway());
        assert!(url.starts_with(&begin), "{path}: {url} is not {begin}");
    }
    let records = events(&site, 2);
    assert_eq!(records[0]["params"], json!({"cd[x y]": "\u{e9}", "cd[o]": "{\"k\":1}", "cd[n]": "0", "cd[t]": "true"}));
    assert_eq!((&records[0]["value"], &records[0]["currency"]), (&Value::Null, &Value::Null));
    assert_eq!((&records[1]["value"], &records[1]["currency"]), (&json!("0.00"), &json!("USD")));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn what_was_refused_for_a_moment_comes_again_and_what_was_refused_for_good_does_not() {
    let site = Site::new("[limits]\nper_ip = \"off\"\nper_pixel = { rate = \"6/m\", burst = 1 }\n");
    site.reconfigure(PIXEL, ID);
    let gateway = site.start();
    let (_shop, browser) = super::browser_pages::app(&site);
    browser.run(&format!(
        "pixelgate('track', '0'); pixelgate('track', '{ID}', {{event_name: 'a'}}); \
         pixelgate('track', '{ID}', {{event_name: 'b'}})"
    ));
    let mut names: Vec<String> = events(&site, 2).iter().map(|record| record["event_name"].to_string()).collect();
    names.sort();
    assert_eq!(names, ["\"a\"", "\"b\""]);
    assert!(count(&gateway, "rejected", "rate_limited") >= 1.0, "one of them had to wait");
    assert_eq!(count(&gateway, "rejected", "invalid_id"), 1.0, "by then it would have come again");
    assert_eq!(gateway.stop(), Some(0));
}

/// Passes a request on, byte for byte, and brings the answer back.
fn pass(to: SocketAddr, seen: &Seen) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).unwrap();
    let lines = seen.headers.iter().filter(|(name, _)| name != "connection");
    let lines: String = lines.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("{}\r\n{lines}connection: close\r\n\r\n", seen.line);
    stream.write_all(&[head.as_bytes(), &seen.body].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn an_event_whose_answer_is_lost_is_counted_once() {
    let site = site();
    let gateway = site.start();
    let (to, lost) = (site.public, AtomicBool::new(false));
    // A proxy before the gateway, whose first answer to an event never arrives.
    let front = Upstream::start(move |seen| {
        let answer = pass(to, seen);
        match seen.line.contains("/offsite_event.php") && !lost.swap(true, Ordering::SeqCst) {
            true => Act::SayAndReset(Vec::new()),
            false => Act::SayAndClose(answer),
        }
    });
    let port = front.address.port();
    let shop = Shop::open(&site, &[("/", "", &format!("<script src=\"//px.shop.localhost:{port}/fp.js\"></script>"))]);
    let browser = Browser::start();
    browser.visit(&shop.url("/"));
    browser.run(&format!("pixelgate('track', '{ID}', {{value: 5, currency: 'EUR'}})"));
    until("it comes again, and is known", || count(&gateway, "duplicate", "") >= 1.0);
    let record = events(&site, 1).remove(0);
    assert_eq!(record["value"], "5");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_page_that_is_hidden_has_told() {
    let site = site();
    let gateway = site.start();
    // Nothing has a task of its own here, so that what goes, goes with the page.
    let stopped = "<script>window.setTimeout = function () {};</script>";
    let shop = Shop::open(&site, &[("/app", "", &format!("{STUB}{stopped}{TAG}"))]);
    let browser = Browser::start();
    browser.visit(&shop.url("/app"));
    browser.run(&format!(
        "pixelgate('track', '{ID}', {{event_name: 'hidden'}}); \
         Object.defineProperty(document, 'hidden', {{value: true}}); \
         document.dispatchEvent(new Event('visibilitychange'))"
    ));
    assert_eq!(events(&site, 1)[0]["event_name"], "hidden");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_tab_that_closes_tells_by_beacon() {
    let site = site();
    let gateway = site.start();
    let track = format!("pixelgate('track', '{ID}', {{event_name: 'closed'}});");
    let page = format!(
        "<script>delete Request.prototype.keepalive;</script>{TAG}\
         <script>addEventListener('pagehide', function () {{ {track} }});</script>"
    );
    let shop = Shop::open(&site, &[("/closing", "", &page)]);
    let browser = Browser::start();
    let first = browser.open_tab();
    browser.visit(&shop.url("/closing"));
    browser.close_tab(&first);
    assert_eq!(events(&site, 1)[0]["event_name"], "closed");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn the_snippet_runs_under_a_policy_of_nonces() {
    let site = site();
    let gateway = site.start();
    let csp = |scripts: &str| {
        format!("Content-Security-Policy: default-src 'none'; script-src 'nonce-abc' {scripts}; connect-src {{px}}\r\n")
    };
    let page = snippet().replace("<script ", "<script nonce=\"abc\" ");
    let own = page.replace("  fpw.src =", "  fpw.nonce = document.currentScript.nonce;\n  fpw.src =");
    let shop = Shop::open(
        &site,
        &[
            // Neither the element's own nonce nor a policy that trusts what a trusted script brings.
            ("/refused", &csp(""), &page),
            ("/strict-dynamic", &csp("'strict-dynamic'"), &page),
            ("/nonce", &csp(""), &own),
        ],
    );
    let browser = Browser::start();
    for path in ["/refused", "/strict-dynamic", "/nonce"] {
        browser.visit(&shop.url(path));
    }
    let mut pages: Vec<String> =
        events(&site, 2).iter().map(|record| record["page_url"].as_str().unwrap().into()).collect();
    pages.sort();
    assert_eq!(pages, [shop.url("/nonce"), shop.url("/strict-dynamic")]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn the_snippet_of_js_pixel_tells() {
    let site = Site::new("");
    let public = format!("http://px.shop.localhost:{}", site.public.port());
    site.reconfigure("workers = 2\n", &format!("workers = 2\npublic_url = \"{public}\"\n"));
    let gateway = site.start();
    let desk = Desk::first(&site);
    let id = desk.create("thanks");
    let pixel = desk.single(&id);
    let pixel = if pixel.is_array() { pixel[0].clone() } else { pixel };
    let js_pixel = pixel["js_pixel"].as_str().unwrap_or_else(|| panic!("{pixel}")).to_owned();
    let shop = Shop::open(&site, &[("/thanks", "", &js_pixel)]);
    let browser = Browser::start();
    browser.visit(&shop.url("/thanks"));
    let record = events(&site, 1).remove(0);
    assert_eq!((&record["pixel_id"], &record["source"]), (&json!(id), &json!("fp_js")));
    assert_eq!((&record["value"], &record["currency"]), (&json!("0.00"), &json!("USD")));
    assert_eq!(record["page_url"], shop.url("/thanks"));
    assert_eq!(gateway.stop(), Some(0));
}
