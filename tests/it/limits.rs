//! Limits from outside: who is refused and what the answer says, who is not, and whom `X-Forwarded-For` can deceive.

use serde_json::Value;

use super::client::{Client, Reply};
use super::gateway::{Gateway, PIXEL, Site};

/// Three at once, then one in twenty seconds: a test is over before a fourth may pass.
const LIMITS: &str = "[limits]\nper_ip = { rate = \"3/m\", burst = 3 }\nper_pixel = \"off\"\nmanagement = \"off\"\n";

fn target() -> String {
    format!("/offsite_event.php?id={PIXEL}&value=1&currency=GBP")
}

/// A request with further header lines, on a connection of its own.
fn ask(site: &Site, method: &str, target: &str, lines: &[&str]) -> Reply {
    let mut client = Client::connect(site.public).unwrap();
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: gateway.test\r\n");
    for line in lines {
        head.push_str(&format!("{line}\r\n"));
    }
    client.send(format!("{head}\r\n").as_bytes()).unwrap();
    client.reply().unwrap()
}

/// Whether an event of the visitor that these lines describe is accepted; if not, that it is for a limit.
fn passes(site: &Site, lines: &[&str]) -> bool {
    let reply = ask(site, "GET", &target(), lines);
    assert!(matches!((reply.status, reply.reason()), (200, None) | (429, Some("rate_limited"))), "{reply:?}");
    reply.status == 200
}

fn hits(gateway: &Gateway<'_>, limit: &str) -> f64 {
    gateway.metric(&format!("rate_limit_hits_total{{limit=\"{limit}\"}}")).unwrap()
}

fn untrusted(gateway: &Gateway<'_>) -> f64 {
    gateway.metric("untrusted_forwarded_requests_total").unwrap()
}

#[test]
fn over_the_limit_the_answer_says_when_to_come_again() {
    let site = Site::new(LIMITS);
    let gateway = site.start();
    assert_eq!([0; 4].map(|_| passes(&site, &[])), [true, true, true, false]);
    let reply = ask(&site, "GET", &target(), &["Origin: https://shop.example"]);
    assert_eq!(
        (reply.status, reply.reason(), reply.header("content-type")),
        (429, Some("rate_limited"), Some("image/gif"))
    );
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{reply:?}");
    assert_eq!(reply.header("ratelimit"), Some(&*format!("\"per_ip\";r=0;t={wait}")));
    assert_eq!(reply.header("ratelimit-policy"), Some("\"per_ip\";q=3;w=60"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://shop.example"));
    assert!(reply.header("access-control-expose-headers").unwrap().contains("RateLimit-Policy"));
    // No body is waited for: the answer comes before one byte of it.
    let reply = ask(&site, "POST", "/offsite_event", &["Content-Type: text/plain", "Content-Length: 500"]);
    let problem: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((reply.status, &problem["reason"]), (429, &Value::from("rate_limited")));
    assert_eq!(hits(&gateway, "per_ip"), 3.0);
    let rejected = gateway.metric("events_total{outcome=\"rejected\",reason=\"rate_limited\"}");
    assert_eq!(rejected, Some(3.0));
    assert_eq!(gateway.stop(), Some(0));
    let kept = site.run(&["journal", "export", "--kind", "rejected"]);
    assert!(kept.status.success() && kept.stdout.is_empty(), "a flood must not fill the disk: {kept:?}");
}

#[test]
fn observing_accepts_and_counts() {
    let site = Site::new(&format!("{LIMITS}mode = \"observe\"\n"));
    let gateway = site.start();
    assert_eq!([0; 5].map(|_| passes(&site, &[])), [true; 5]);
    assert_eq!(hits(&gateway, "per_ip"), 2.0);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_pixel_has_a_limit_of_its_own() {
    let site = Site::new("[limits]\nper_ip = \"off\"\nper_pixel = { rate = \"1/h\", burst = 2 }\n");
    let gateway = site.start();
    assert_eq!([0; 3].map(|_| passes(&site, &[])), [true, true, false]);
    let reply = ask(&site, "GET", &target(), &["Accept: application/json"]);
    assert_eq!((reply.status, reply.header("content-type")), (429, Some("application/problem+json")));
    assert_eq!(reply.header("ratelimit-policy"), Some("\"per_pixel\";q=2;w=7200"));
    assert_eq!(ask(&site, "GET", "/offsite_event?id=999", &[]).reason(), Some("unknown_pixel"));
    assert_eq!((hits(&gateway, "per_pixel"), hits(&gateway, "per_ip")), (2.0, 0.0));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn management_is_limited_in_its_own_shape() {
    let site = Site::new("[limits]\nper_ip = \"off\"\nmanagement = { rate = \"3/m\", burst = 2 }\n");
    let gateway = site.start();
    let list = || ask(&site, "GET", "/offsitepixels?fb_ad_account_id=8", &["Authorization: OAuth wrong"]);
    assert_eq!([list().status, list().status], [401, 401]);
    let reply = list();
    let error: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((reply.status, &error["error"]["type"]), (429, &Value::from("rate_limited")));
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{reply:?}");
    assert_eq!(reply.header("ratelimit-policy"), Some("\"management\";q=2;w=40"));
    assert!(passes(&site, &[]));
    assert_eq!((hits(&gateway, "management"), hits(&gateway, "per_ip")), (1.0, 0.0));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn trusted_proxies_name_the_visitor() {
    let site = Site::with_server("trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]", LIMITS);
    let gateway = site.start();
    let from = |list: &str| passes(&site, &[&format!("X-Forwarded-For: {list}")]);
    // What the visitor invented stands to the left, and changes nothing.
    for invented in ["", "6.6.6.1, ", "6.6.6.2, 6.6.6.3,"] {
        assert!(from(&format!("{invented} 192.0.2.1, 10.0.0.7")));
    }
    assert!(!from("6.6.6.4, 192.0.2.1, 10.0.0.7"));
    assert!(!from("192.0.2.1:4711"));
    assert!(!from("::ffff:192.0.2.1"));
    assert!(!passes(&site, &["X-Forwarded-For: 6.6.6.5, 192.0.2.1", "X-Forwarded-For: 10.0.0.7, 10.0.0.8"]));
    assert!(from("192.0.2.2"));
    // IPv6 goes by /64.
    for host in ["2001:db8::1", "[2001:db8::2]:443", "2001:0DB8:0:0:ffff::3"] {
        assert!(from(host), "{host}");
    }
    assert!(!from("2001:db8:0:0:1:2:3:4"));
    assert!(from("2001:db8:0:1::1"));
    assert_eq!(untrusted(&gateway), 0.0);
    assert_eq!(gateway.stop(), Some(0));
    let journal = site.run(&["journal", "export"]).stdout;
    let ips: Vec<String> = String::from_utf8(journal).unwrap().lines().map(client_ip).collect();
    let expected = ["192.0.2.0", "192.0.2.0", "192.0.2.0", "192.0.2.0", "2001:db8::", "2001:db8::", "2001:db8::"];
    assert_eq!(ips[..7], expected);
}

fn client_ip(line: &str) -> String {
    let record: Value = serde_json::from_str(line).unwrap();
    record["client_ip"].as_str().unwrap().to_owned()
}

#[test]
fn without_proxies_a_forged_address_helps_nobody() {
    let site = Site::with_server("trusted_proxies = []", LIMITS);
    let gateway = site.start();
    let forged = |last: u8| passes(&site, &[&format!("X-Forwarded-For: 192.0.2.{last}")]);
    assert_eq!([1, 2, 3, 4].map(forged), [true, true, true, false]);
    assert_eq!((untrusted(&gateway), hits(&gateway, "per_ip")), (0.0, 1.0));
    assert_eq!(gateway.stop(), Some(0));
    let line = String::from_utf8(site.run(&["journal", "tail"]).stdout).unwrap();
    assert_eq!(client_ip(line.lines().next().unwrap()), "127.0.0.0");
}

#[test]
fn until_the_operator_says_who_is_a_proxy_no_visitor_pays_for_others() {
    let site = Site::new(LIMITS);
    let gateway = site.start();
    // Behind a proxy nobody told us of, all visitors have one address.
    assert_eq!([0; 6].map(|_| passes(&site, &["X-Forwarded-For: 192.0.2.1"])), [true; 6]);
    assert_eq!((untrusted(&gateway), hits(&gateway, "per_ip")), (6.0, 0.0));
    let told = site.log().matches("server.trusted_proxies is not set").count();
    assert_eq!(told, 1, "{}", site.log());
    // Who sends none is limited by the peer's address.
    assert_eq!([0; 4].map(|_| passes(&site, &[])), [true, true, true, false]);
    assert_eq!(gateway.stop(), Some(0));
    let line = String::from_utf8(site.run(&["journal", "tail"]).stdout).unwrap();
    assert_eq!(client_ip(line.lines().next().unwrap()), "127.0.0.0", "the header is not believed");
}
