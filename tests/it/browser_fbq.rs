//! Pages that call `fbq` or `_fbq`: their own stubs and calls, and scripts of ours behind them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::browser::{Browser, Shop, events};
use super::browser_pages::{ID, STUB, snippet};
use super::gateway::{PIXEL, Site};

/// What pages have: a stub that keeps calls, and loads the script.
fn fbq(calls: &str) -> String {
    format!(
        "<script>!function(f,b,e,v,n,t,s){{if(f.fbq)return;n=f.fbq=function(){{n.callMethod?\
         n.callMethod.apply(n,arguments):n.queue.push(arguments)}};if(!f._fbq)f._fbq=n;n.push=n;n.loaded=!0;\
         n.version='2.0';n.queue=[];t=b.createElement(e);t.async=!0;t.src=v;s=b.getElementsByTagName(e)[0];\
         s.parentNode.insertBefore(t,s)}}(window,document,'script','//{{px}}/shop/app.js');{calls}</script>"
    )
}

fn told(record: &Value) -> Value {
    let names = ["pixel_id", "value", "currency", "event_name", "event_id", "source", "params", "consent", "fbc"];
    let members = names.into_iter().filter_map(|name| Some((name.to_owned(), record.get(name)?.clone())));
    let mut members: serde_json::Map<String, Value> = members.collect();
    // Made by the tag, unless the page has its own.
    if members["event_id"].as_str().is_some_and(|id| !id.starts_with("order")) {
        members.remove("event_id");
    }
    Value::Object(members)
}

#[test]
fn calls_of_fbq_become_records() {
    let site = Site::new("[validation]\nunknown_pixel = \"flag\"\n[tag]\nloader_path = \"/shop/app.js\"");
    let gateway = site.start();
    let calls = format!(
        "fbq('init','{PIXEL}',{{em:'a@b.example'}});fbq('init','{PIXEL}');fbq('track','PageView');\
         fbq('track','Purchase',{{value:12.5,currency:'EUR',content_ids:['a']}},{{eventID:'order-1'}});\
         fbq('trackSingle','42','Lead');fbq('trackCustom','Own',{{'my name':'x&y'}});"
    );
    let shop = Shop::open(&site, &[("/", "", &fbq(&calls))]);
    let browser = Browser::start();
    browser.visit(&shop.url("/"));
    let mut records = events(&site, 4);
    // No cookie without consent; with it both of Meta's, for the whole shop.
    assert_eq!(browser.run("return document.cookie"), "");
    browser.visit(&shop.url("/?fbclid=IwAR-x_1"));
    browser.run("fbq('consent', 'grant'); fbq('track', 'AddToCart')");
    // The order is told again, and is one.
    records.extend(events(&site, 8).drain(4..));
    let cookies = browser.run("return document.cookie");
    let cookies = cookies.as_str().unwrap();
    assert!(
        cookies.contains("_fbp=fb.1.") && cookies.contains("_fbc=fb.1.") && cookies.contains(".IwAR-x_1"),
        "{cookies}"
    );
    let with_consent = records.iter().find(|record| record["event_name"] == "AddToCart").unwrap();
    for name in ["fbp", "fbc"] {
        let cookie = format!("_{name}={}", with_consent[name].as_str().unwrap());
        assert!(cookies.contains(&cookie), "{cookie} of {cookies}");
    }
    // A later page keeps them as they are.
    browser.visit(&shop.url("/"));
    browser.run("fbq('consent', 'grant'); fbq('track', 'AddToCart')");
    events(&site, 12);
    assert_eq!(browser.run("return document.cookie"), cookies);
    assert!(records[..4].iter().all(|record| record["fbp"].is_null()));
    let mut first: Vec<Value> = records[..4].iter().map(told).collect();
    first.sort_by_key(|record| record["event_name"].to_string());
    assert_eq!(
        first,
        [
            json!({"pixel_id": "42", "event_name": "Lead", "source": "tr"}),
            json!({"pixel_id": PIXEL, "event_name": "Own", "source": "tr", "params": {"cd[my name]": "x&y"}}),
            json!({"pixel_id": PIXEL, "event_name": "PageView", "source": "tr"}),
            json!({
                "pixel_id": PIXEL, "value": "12.5", "currency": "EUR", "event_name": "Purchase", "event_id": "order-1",
                "source": "tr", "params": {"cd[content_ids]": "[\"a\"]"}
            }),
        ]
    );
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn calls_of_the_older_fbq_become_records() {
    let site = Site::new("");
    let gateway = site.start();
    let page = format!(
        "<script>(function(){{var _fbq=window._fbq||(window._fbq=[]);if(!_fbq.loaded){{\
         var fbds=document.createElement('script');fbds.async=true;fbds.src='//{{px}}/en_US/fbds.js';\
         var s=document.getElementsByTagName('script')[0];s.parentNode.insertBefore(fbds,s);_fbq.loaded=true;}}\
         _fbq.push(['addPixelId','{PIXEL}']);}})();window._fbq=window._fbq||[];\
         window._fbq.push(['track','PixelInitialized',{{}}]);\
         window._fbq.push(['track','{PIXEL}',{{'value':'0.00','currency':'USD'}}]);</script>"
    );
    let shop = Shop::open(&site, &[("/", "", &page)]);
    let browser = Browser::start();
    browser.visit(&shop.url("/"));
    events(&site, 2);
    browser.run("_fbq.push(['track', 'Later', {value: 1}])");
    let mut records: Vec<Value> = events(&site, 3).iter().map(told).collect();
    records.sort_by_key(|record| record["event_name"].to_string());
    assert_eq!(
        records,
        [
            json!({"pixel_id": PIXEL, "value": "1", "event_name": "Later", "source": "tr", "params": {"if": "false"}}),
            json!({"pixel_id": PIXEL, "event_name": "PixelInitialized", "source": "tr", "params": {"if": "false"}}),
            json!({"pixel_id": PIXEL, "value": "0.00", "currency": "USD", "source": "tr", "params": {"if": "false"}}),
        ]
    );
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_frame_without_an_origin_tells_as_others_do() {
    let site = Site::new("[tag]\nloader_path = \"/shop/app.js\"");
    site.reconfigure(PIXEL, ID);
    let gateway = site.start();
    // As shop systems put scripts of others into one: reading cookies and storing anything are errors there.
    let frame = "<iframe sandbox=\"allow-scripts\" src=\"/frame\"></iframe>";
    let own = format!("pixelgate('consent', 'grant'); pixelgate('track', '{ID}', {{event_name: 'own'}});");
    let calls = format!("fbq('consent', 'grant'); fbq('init', '{ID}'); fbq('track', 'one'); fbq('track', 'two');");
    let inner = format!("{}{STUB}<script>{own}</script>{}", snippet(), fbq(&calls));
    let shop = Shop::open(&site, &[("/thanks", "", frame), ("/frame", "", &inner)]);
    let browser = Browser::start();
    browser.visit(&shop.elsewhere("/thanks"));
    let names: BTreeSet<String> = events(&site, 4).iter().map(|record| record["event_name"].to_string()).collect();
    assert_eq!(names, ["null", "\"one\"", "\"own\"", "\"two\""].map(String::from).into());
    assert_eq!(gateway.stop(), Some(0));
}
