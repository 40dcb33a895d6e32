//! Management in `local` mode against the published page: every answer's status, headers and bytes, header for header.

use md5::{Digest, Md5};
use serde_json::Value;

use super::client::Reply;
use super::desk::{Desk, FORM, JSON};
use super::gateway::Site;

/// The published page's example of a list, as it stands there but for the hosts.
const PUBLISHED: &str = include_str!("fixtures/published-list.json");

/// On every answer of the page.
const ALWAYS: [(&str, &str); 8] = [
    ("x-frame-options", "SAMEORIGIN"),
    ("x-xss-protection", "1; mode=block"),
    ("x-content-type-options", "nosniff"),
    ("x-ua-compatible", "chrome=1"),
    ("access-control-allow-origin", "*"),
    ("access-control-allow-methods", "POST, PUT, DELETE, GET, OPTIONS"),
    ("access-control-request-method", "*"),
    (
        "access-control-allow-headers",
        "Origin, X-Requested-With, Content-Type, Accept, Authorization, Content-Disposition",
    ),
];
const GOOD: (&str, &str) = ("cache-control", "max-age=0, private, must-revalidate");
const KIND: (&str, &str) = ("content-type", "application/json; charset=utf-8");
const NO_CACHE: (&str, &str) = ("cache-control", "no-cache");
const ACCOUNT: &str = "101501213229501506";

/// The page's JSON as its server wrote it: compact, and safe inside HTML.
fn published() -> String {
    let body: Value = serde_json::from_str(PUBLISHED).unwrap();
    body.to_string().replace('<', "\\u003C").replace('>', "\\u003E").replace('&', "\\u0026")
}

fn etag(body: &[u8]) -> String {
    let digest = Md5::digest(body).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("\"{digest}\"")
}

/// Checks an answer's headers: exactly the page's, these, `Date`, and those whose values differ from answer to answer.
fn check(what: &str, reply: &Reply, id: &str, further: &[(&str, &str)]) {
    let mut found: Vec<(&str, &str)> =
        reply.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    found.retain(|(name, value)| match *name {
        // RFC 9110 wants the first; the page's server left it out. The second is between two machines.
        "date" | "connection" => false,
        "x-request-id" => {
            assert_eq!(*value, id, "{what}");
            false
        }
        "x-runtime" => {
            let (seconds, micros) = value.split_once('.').unwrap();
            assert!(seconds.parse::<u32>().unwrap() < 60 && micros.len() == 6, "{what}: {value}");
            assert!(micros.bytes().all(|byte| byte.is_ascii_digit()), "{what}: {value}");
            false
        }
        _ => true,
    });
    let mut expected: Vec<(&str, &str)> = ALWAYS.iter().chain(further).copied().collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{what}");
    let varying = |wanted: &str| reply.headers.iter().filter(|(name, _)| name == wanted).count();
    assert_eq!((varying("x-request-id"), varying("x-runtime"), varying("date")), (1, 1, 1), "{what}");
}

/// A site whose pixels look as the page's.
fn site() -> Site {
    let site = Site::with_server("public_url = \"https://px.example.com\"", "");
    site.reconfigure("[registry]\n", "[registry]\nsnippet_value = \"0.01\"\nsnippet_currency = \"GBP\"\n");
    site
}

#[test]
fn the_page_s_example_comes_back_byte_for_byte_and_header_for_header() {
    let site = site();
    let gateway = site.start();
    let desk = Desk::made(&site, &["--name", "John Doe"]);
    let given = "X-Request-Id: bd9d699e-0965-4188-afbd-dbaa61a0437e";
    let id = "bd9d699e-0965-4188-afbd-dbaa61a0437e";
    let form = format!("fb_ad_account_id={ACCOUNT}&name=CV+uploaded&tag=REGISTRATION");
    let created = desk.send(
        "POST",
        "/offsitepixels",
        &["Accept: application/json", &format!("Content-Type: {FORM}"), given],
        &form,
    );
    let text = String::from_utf8(created.body.clone()).unwrap();
    let pixel = text.strip_prefix("{\"id\":\"").and_then(|rest| rest.strip_suffix("\"}")).unwrap().to_owned();
    assert!(pixel.len() == 13 && pixel.starts_with("60"), "{text}");
    let tag = etag(&created.body);
    check("POST", &created, id, &[KIND, GOOD, ("etag", &tag), ("content-length", "22")]);

    let list = published().replace("6014360342904", &pixel).replace("Inactive", "Unverified");
    let single = list.strip_prefix('[').unwrap().strip_suffix(']').unwrap().to_owned();
    for (target, body) in [
        (format!("/offsitepixels?fb_ad_account_id={ACCOUNT}"), &list),
        (format!("/offsitepixels/?fb_ad_account_id={ACCOUNT}"), &list),
        (format!("/offsitepixels/{pixel}"), &single),
        ("/offsitepixels?fb_ad_account_id=9".to_owned(), &"[]".to_owned()),
    ] {
        let (length, tag) = (body.len().to_string(), etag(body.as_bytes()));
        let whole = [KIND, GOOD, ("etag", &tag), ("content-length", &length)];
        for (method, shown) in [("GET", body.as_bytes()), ("HEAD", b"")] {
            let reply = desk.send(method, &target, &[given, "If-None-Match: \"00000000000000000000000000000000\""], "");
            let what = format!("{method} {target}");
            assert_eq!(
                (reply.status, String::from_utf8_lossy(&reply.body)),
                (200, String::from_utf8_lossy(shown)),
                "{what}"
            );
            check(&what, &reply, id, &whole);
            for known in [tag.clone(), format!("W/{tag}"), format!("\"x\" , {tag}"), "*".to_owned()] {
                let reply = desk.send(method, &target, &[given, &format!("If-None-Match: {known}")], "");
                assert_eq!((reply.status, reply.body.len()), (304, 0), "{what} {known}");
                check(&format!("{what} {known}"), &reply, id, &[GOOD, ("etag", &tag)]);
            }
        }
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn answers_beyond_the_page_keep_its_house_style() {
    let site = site();
    let gateway = site.start();
    let desk = Desk::made(&site, &["--name", "John Doe"]);
    let pixel = desk.create_in(ACCOUNT, "a");
    let single = format!("/offsitepixels/{pixel}");
    let given = "X-Request-Id: r_1-";
    let (form, json) = (format!("Content-Type: {FORM}"), format!("Content-Type: {JSON}"));
    let renamed = desk.send(
        "PUT",
        &single,
        &[&json, given, "If-None-Match: *"],
        r#"{"name":"CV uploaded","tag":"REGISTRATION"}"#,
    );
    let expected = published().replace("6014360342904", &pixel).replace("Inactive", "Unverified");
    assert_eq!(format!("[{}]", String::from_utf8_lossy(&renamed.body)), expected);
    let (tag, length) = (etag(&renamed.body), renamed.body.len().to_string());
    check("PUT", &renamed, "r_1-", &[KIND, GOOD, ("etag", &tag), ("content-length", &length)]);
    let deleted = desk.send("DELETE", &single, &[given, "If-None-Match: *"], "");
    assert_eq!(deleted.status, 204);
    check("DELETE", &deleted, "r_1-", &[NO_CACHE]);
    let allow = [("allow", "GET, HEAD, PUT, DELETE, OPTIONS"), ("allow", "GET, HEAD, POST, OPTIONS")];
    for (target, allow) in [&*single, "/offsitepixels"].into_iter().zip(allow) {
        let options = desk.send("OPTIONS", target, &[given, "Origin: https://a.example"], "");
        assert_eq!(options.status, 204);
        check("OPTIONS", &options, "r_1-", &[NO_CACHE, allow]);
    }

    let wrong = Desk { token: "wrong".into(), ..desk.clone() };
    let challenge = ("www-authenticate", "OAuth realm=\"pixelgate\", error=\"invalid_token\"");
    let taken = format!("fb_ad_account_id={ACCOUNT}&name=b&tag=OTHER");
    desk.create_in(ACCOUNT, "b");
    for (what, reply, status, further) in [
        ("401", wrong.send("GET", &single, &[given], ""), 401, &[challenge][..]),
        ("404", desk.send("GET", "/offsitepixels/6010000000099", &[given], ""), 404, &[]),
        ("405", desk.send("PATCH", &single, &[given], ""), 405, &allow[..1]),
        ("409", desk.send("POST", "/offsitepixels", &[&form, given], &taken), 409, &[]),
        ("415", desk.send("POST", "/offsitepixels", &["Content-Type: text/plain", given], &taken), 415, &[]),
        ("400", desk.send("POST", "/offsitepixels", &[&form, given], "name=c"), 400, &[]),
        ("413", desk.send("PUT", &single, &[&form, given], &"x".repeat(70_000)), 413, &[]),
    ] {
        assert_eq!(reply.status, status, "{what}");
        let length = reply.body.len().to_string();
        let further = [&[KIND, NO_CACHE, ("content-length", &*length)], further].concat();
        check(what, &reply, "r_1-", &further);
    }

    // An id of its own for each request that gives none, and none that could break a header or a log.
    let own = |reply: &Reply| reply.header("x-request-id").unwrap().to_owned();
    let (one, two) = (own(&desk.get(&single)), own(&desk.get(&single)));
    assert!(one != two && one.len() == 36 && one.as_bytes()[14] == b'4', "{one} {two}");
    let cleaned = desk.send("GET", &single, &["X-Request-Id: a<b>\tc/../d\u{e9}"], "");
    assert_eq!(own(&cleaned), "abcd");
    assert_eq!(own(&desk.send("GET", &single, &[&format!("X-Request-Id: {}", "x".repeat(300))], "")).len(), 255);
    assert_eq!(gateway.stop(), Some(0));
}
