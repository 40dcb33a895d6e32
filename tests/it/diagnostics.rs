//! `GET /offsitepixels/{id}/diagnostics`: the page owner who asks why nothing arrives is told, and nobody else.

use std::fs;

use serde_json::{Value, json};

use super::client::{Client, Reply};
use super::forward::{ask, proxy_site};
use super::gateway::{PIXEL, Site, until};
use super::upstream::{Upstream, json as json_reply};

fn token(site: &Site, arguments: &[&str]) -> String {
    let output = site.run(&[&["token", "create", "--name"], arguments].concat());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn first_token(site: &Site) -> String {
    fs::read_to_string(site.data().join("management-token")).unwrap().trim().to_owned()
}

fn diagnostics(site: &Site, id: &str, token: &str) -> Reply {
    let head = format!("GET /offsitepixels/{id}/diagnostics HTTP/1.1\r\nHost: a\r\n");
    ask(site, &format!("{head}Authorization: OAuth {token}\r\n\r\n"))
}

fn shown(reply: &Reply) -> Value {
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json; charset=utf-8")));
    serde_json::from_slice(&reply.body).unwrap()
}

/// Asks until as many requests of a pixel are counted.
fn counted(site: &Site, id: &str, token: &str, accepted: u64, rejected: u64) -> Value {
    let mut last = Value::Null;
    until("the counts", || {
        let reply = diagnostics(site, id, token);
        if reply.status != 200 {
            return false;
        }
        last = shown(&reply);
        let rejects = last["last_24h"]["rejected"].as_object().unwrap().values();
        let all = (last["last_24h"]["accepted"].as_u64(), rejects.map(|count| count.as_u64().unwrap()).sum::<u64>());
        all == (Some(accepted), rejected)
    });
    last
}

fn error_type(reply: &Reply) -> (u16, String) {
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    (reply.status, body["error"]["type"].as_str().unwrap().to_owned())
}

#[test]
fn counts_reasons_warnings_and_the_last_rejects_are_shown() {
    let site = Site::new("[validation]\nstrict = true\n");
    let gateway = site.start();
    let token = first_token(&site);
    let fresh = shown(&diagnostics(&site, PIXEL, &token));
    assert_eq!(fresh["last_24h"], json!({"accepted": 0, "trials": 0, "ignored": {}, "rejected": {}, "warnings": {}}));
    assert_eq!((&fresh["known"], &fresh["hours"], &fresh["last_rejects"]), (&json!(true), &json!([]), &json!([])));
    assert!(fresh.get("last_accepted").is_none() && fresh["since"].is_string(), "{fresh}");

    let mut client = Client::connect(site.public).unwrap();
    let target = format!("/offsite_event.php?id={PIXEL}");
    client.get(&format!("{target}&value=1")).unwrap();
    client.get(&format!("{target}&test=1&a=1&a=2")).unwrap();
    let accepted = client.get(&target).unwrap();
    client.send(format!("HEAD {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
    client.head().unwrap();
    client.send(format!("HEAD {target}&value=x HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
    client.head().unwrap();
    for number in 0..12 {
        let hostile = "&dl=https%3A%2F%2Fshop.test%2F%3Fsecret%3D1&n=%3C%2Fscript%3E";
        let head = format!("GET {target}&value=x{number}{hostile} HTTP/1.1\r\nHost: a\r\n");
        client.send(format!("{head}User-Agent: <b>\"&\r\nCookie: _fbp=</script><!--\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(client.reply().unwrap().status, 400);
    }
    let long = client.get(&format!("{target}&value=last&x={}", "y".repeat(9000))).unwrap();
    assert_eq!(long.status, 400);
    let seen = counted(&site, PIXEL, &token, 3, 13);
    assert_eq!(
        seen["last_24h"],
        json!({
            "accepted": 3, "trials": 1, "ignored": {}, "rejected": {"invalid_value": 13},
            "warnings": {"missing_currency": 1, "repeated_parameter": 1},
        })
    );
    assert_eq!(seen["last_accepted"]["record_id"].as_str(), accepted.record_id());
    assert_eq!(seen["last_rejected"]["reason"], "invalid_value");
    let hours: u64 = seen["hours"].as_array().unwrap().iter().map(|hour| hour["accepted"].as_u64().unwrap()).sum();
    assert_eq!(hours, 3);
    let rejects = seen["last_rejects"].as_array().unwrap();
    assert_eq!(rejects.len(), 10);
    let raws: Vec<&str> = rejects.iter().map(|reject| reject["raw"].as_str().unwrap()).collect();
    let values =
        ["last", "x11", "x10", "x9", "x8", "x7", "x6", "x5", "x4", "x3"].map(|value| format!("value={value}&"));
    assert!(raws.iter().zip(&values).all(|(raw, value)| raw.contains(value)), "newest first: {raws:?}");
    assert!(raws.iter().all(|raw| !raw.contains("secret") && raw.len() <= 600), "privacy and length: {raws:?}");
    assert!(rejects.iter().all(|reject| reject["client_ip"] == "127.0.0.0" && reject["reason"] == "invalid_value"));
    let reply = diagnostics(&site, PIXEL, &token);
    assert!(!reply.body.iter().any(|byte| b"<>&".contains(byte)), "safe inside HTML");
    let etag = reply.header("etag").unwrap();
    let again = format!(
        "GET /offsitepixels/{PIXEL}/diagnostics HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth {token}\r\n\
         If-None-Match: {etag}\r\n\r\n"
    );
    assert_eq!(ask(&site, &again).status, 304);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn limits_and_archived_pixels_show_as_what_they_are() {
    let site = Site::new("[limits]\nper_ip = \"off\"\nper_pixel = { rate = \"1/h\", burst = 2 }\n");
    let gateway = site.start();
    let token = first_token(&site);
    let mut client = Client::connect(site.public).unwrap();
    let statuses = [0; 4].map(|_| client.get(&format!("/offsite_event.php?id={PIXEL}")).unwrap().status);
    assert_eq!(statuses, [200, 200, 429, 429]);
    let seen = counted(&site, PIXEL, &token, 2, 2);
    assert_eq!(seen["last_24h"]["rejected"], json!({"rate_limited": 2}));
    let archive = format!("DELETE /offsitepixels/{{}} HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth {token}\r\n\r\n");
    let create = "POST /offsitepixels?fb_ad_account_id=9&name=n&tag=LEAD HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n";
    let created = ask(&site, &format!("{create}Authorization: OAuth {token}\r\n\r\n"));
    let created: Value = serde_json::from_slice(&created.body).unwrap();
    let id = created["id"].as_str().unwrap();
    assert_eq!(ask(&site, &archive.replace("{}", id)).status, 204);
    let mut client = Client::connect(site.public).unwrap();
    assert_eq!(client.get(&format!("/offsite_event.php?id={id}")).unwrap().reason(), Some("archived_pixel"));
    let seen = counted(&site, id, &token, 0, 1);
    assert_eq!((&seen["archived"], &seen["last_24h"]["rejected"]), (&json!(true), &json!({"archived_pixel": 1})));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn only_tokens_of_the_ad_account_are_told_and_of_unknown_ids_only_those_for_all() {
    let site = Site::new("");
    let gateway = site.start();
    let all = first_token(&site);
    let own = token(&site, &["own", "--ad-account", "8", "--read-only"]);
    let other = token(&site, &["other", "--ad-account", "9"]);
    let mut client = Client::connect(site.public).unwrap();
    assert_eq!(client.get("/offsite_event.php?id=77").unwrap().status, 404);
    let seen = counted(&site, "77", &all, 0, 1);
    assert_eq!((&seen["known"], &seen["last_24h"]["rejected"]), (&json!(false), &json!({"unknown_pixel": 1})));
    assert_eq!(diagnostics(&site, PIXEL, &own).status, 200);
    assert_eq!(error_type(&diagnostics(&site, PIXEL, &other)), (403, "account_not_allowed".to_owned()));
    assert_eq!(error_type(&diagnostics(&site, "77", &own)), (404, "unknown_pixel".to_owned()));
    for id in ["78", "0", "x", "%37", "6010000000001%2F"] {
        assert_eq!(diagnostics(&site, id, &all).status, 404, "{id}");
    }
    assert_eq!(error_type(&diagnostics(&site, PIXEL, "wrong")), (401, "invalid_token".to_owned()));
    let bare = format!("GET /offsitepixels/{PIXEL}/diagnostics HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(error_type(&ask(&site, &bare)), (401, "missing_token".to_owned()));
    let post = ask(&site, &bare.replace("GET", "POST"));
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_gateway_with_an_upstream_answers_itself_for_its_own_tokens() {
    let upstream = Upstream::start(|_| json_reply(r#"[{"id":"71"}]"#));
    let site = proxy_site(&upstream, "learn = \"any\"");
    let gateway = site.start();
    let own = token(&site, &["own", "--ad-account", "8"]);
    let get = "GET /offsitepixels?fb_ad_account_id=5 HTTP/1.1\r\nHost: a\r\nAuthorization: OAuth theirs\r\n\r\n";
    assert_eq!(ask(&site, get).status, 200);
    let mut client = Client::connect(site.public).unwrap();
    assert_eq!(client.get(&format!("/offsite_event.php?id={PIXEL}")).unwrap().status, 200);
    assert_eq!(counted(&site, PIXEL, &own, 1, 0)["known"], true);
    assert_eq!(error_type(&diagnostics(&site, "71", &own)), (403, "account_not_allowed".to_owned()));
    assert_eq!(diagnostics(&site, PIXEL, "theirs").status, 401, "the upstream's tokens are not ours");
    assert_eq!(upstream.seen().len(), 1, "never passed on");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn what_visitors_decline_is_counted_and_nothing_of_them_is_kept() {
    let overlay = format!("[pixels.\"{PIXEL}\"]\nconsent = \"drop\"\ngpc = \"drop\"\n");
    let site = Site::new(&format!("[validation]\nstrict = true\n\n{overlay}"));
    let gateway = site.start();
    let token = first_token(&site);
    let mut client = Client::connect(site.public).unwrap();
    let target = format!("/offsite_event.php?id={PIXEL}");
    assert_eq!(client.get(&format!("{target}&consent=denied")).unwrap().status, 200);
    // The refusal stands behind what would be kept.
    let long = format!("{target}&value=x&y={}&consent=denied", "y".repeat(700));
    assert_eq!(client.get(&long).unwrap().status, 400);
    let seen = counted(&site, PIXEL, &token, 0, 1);
    assert_eq!(seen["last_24h"]["ignored"], json!({"consent": 1}));
    assert_eq!(seen["last_24h"]["rejected"], json!({"invalid_value": 1}));
    assert_eq!(seen["last_rejects"], json!([]));
    assert_eq!(gateway.stop(), Some(0));
}
