//! The program's own TLS in a real browser: the tag and its events over HTTP/2, with nothing in front.

use serde_json::{Value, json};

use super::browser::{Browser, events};
use super::gateway::PIXEL;
use super::tls_site::TlsSite;

#[test]
fn one_machine_with_a_certificate_serves_the_tag_and_takes_its_events() {
    let secured = TlsSite::new("", "[privacy]\nbrowser_id = \"on\"\n");
    let site = &secured.site;
    let gateway = site.start();
    let browser = Browser::of_any_authority();
    let own = format!("https://px.shop.localhost:{}", site.public.port());
    // A visitor of the picture itself; the tag goes into the page that a browser makes around it.
    browser.visit(&format!("{own}/offsite_event.php?id={PIXEL}&ev=Lead"));
    browser.run(
        "var tag = document.createElement('script'); tag.src = '/fp.js'; tag.onload = () => { window.loaded = true };
         document.documentElement.appendChild(tag)",
    );
    browser.wait("window.loaded");
    browser.run(&format!("pixelgate('track', '{PIXEL}', {{event_id: 'over-tls', value: 1, currency: 'GBP'}})"));
    let records = events(site, 2);
    let told: Vec<Value> = records.iter().map(|record| json!([record["source"], record["event_id"]])).collect();
    assert_eq!(told, [json!(["offsite_event", null]), json!(["fp_js", "over-tls"])]);
    let protocols = "return performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))
         .map(entry => entry.nextHopProtocol)";
    let protocols: Vec<Value> = browser.run(protocols).as_array().unwrap().clone();
    assert!(protocols.len() >= 2 && protocols.iter().all(|protocol| protocol == "h2"), "{protocols:?}");
    // Whom the first answer named, the second event is of.
    let ids: Vec<&Value> = records.iter().map(|record| &record["browser_id"]).collect();
    assert!(ids[0].is_string() && ids[0] == ids[1], "{records:?}");
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
}
