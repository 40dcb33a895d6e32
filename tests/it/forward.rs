//! `registry.mode = "proxy"`: what passes between clients and the upstream, byte for byte, and what never does.

use std::fs;
use std::time::Duration;

use super::client::{Client, Reply};
use super::gateway::Site;
use super::upstream::{Act, Seen, Upstream, json, with_length};

/// A site whose management requests go to an upstream. `lines` are further ones of the table `registry`.
pub fn proxy_site(upstream: &Upstream, lines: &str) -> Site {
    let site = Site::new("");
    let config = fs::read_to_string(site.config()).unwrap();
    let registry = format!("[registry]\nmode = \"proxy\"\nupstream = \"http://{}\"\n{lines}\n", upstream.address);
    fs::write(site.config(), config.replace("[registry]\n", &registry)).unwrap();
    site
}

fn connect(site: &Site) -> Client {
    Client::connect(site.public).unwrap()
}

/// Sends a request as it is and reads its answer.
pub fn ask(site: &Site, request: &str) -> Reply {
    let mut client = connect(site);
    client.send(request.as_bytes()).unwrap();
    client.reply().unwrap()
}

/// What the upstream saw last.
fn last(upstream: &Upstream) -> Seen {
    upstream.seen().pop().unwrap()
}

#[test]
fn method_target_body_and_end_to_end_headers_arrive_unchanged() {
    let upstream = Upstream::start(|_| json("[]"));
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    for (method, target, body) in [
        ("GET", "/offsitepixels?fb_ad_account_id=9", ""),
        ("GET", "/offsitepixels?x=%2F..%2f+%00&&y='|{}&y=&=;a", ""),
        ("GET", "/offsitepixels?", ""),
        ("GET", "/offsitepixels/6014360342904", ""),
        ("GET", "/offsitepixels", "a body of a GET"),
        ("POST", "/offsitepixels", "fb_ad_account_id=9&name=Shoes+purchase&tag=CHECKOUT"),
        ("POST", "/offsitepixels", ""),
        ("PUT", "/offsitepixels/7?a=b", "{\"name\": \"\u{e9}\"}"),
        ("DELETE", "/offsitepixels/00000000000000000007", ""),
    ] {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: px.example.com\r\nAuthorization: OAuth secret\r\nAccept: a\r\n\
             Accept: b\r\nAccept-Encoding: gzip, br\r\nIf-None-Match: \"x\"\r\nX-Odd_Name: 1\r\n\
             Content-Type: text/x-any\r\nUser-Agent: t/1\r\nX-Request-Id: a.b:c\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Cookie: session=1\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n"
        );
        let length = if body.is_empty() && method == "GET" { String::new() } else { with_length(body) };
        let end = if length.is_empty() { "\r\n" } else { &length };
        assert_eq!(ask(&site, &format!("{head}{end}")).status, 200, "{method} {target}");
        let seen = last(&upstream);
        assert_eq!(seen.line, format!("{method} {target} HTTP/1.1"));
        assert_eq!(seen.body, body.as_bytes());
        let mut names: Vec<&str> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.retain(|name| *name != "content-length");
        names.sort_unstable();
        let expected = [
            "accept",
            "accept",
            "accept-encoding",
            "authorization",
            "content-type",
            "host",
            "if-none-match",
            "user-agent",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-odd_name",
            "x-request-id",
        ];
        assert_eq!(names, expected, "{method} {target}");
        for (name, value) in [
            ("host", upstream.address.to_string().as_str()),
            ("accept", "a, b"),
            ("authorization", "OAuth secret"),
            ("x-request-id", "a.b:c"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "px.example.com"),
            ("x-forwarded-proto", "http"),
        ] {
            assert_eq!(seen.header(name).as_deref(), Some(value), "{name}");
        }
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_chunked_body_arrives_whole_and_a_missing_request_id_is_made() {
    let upstream = Upstream::start(|_| json("{\"id\":\"60\"}"));
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    let chunks = "5\r\nname=\r\n3\r\nabc\r\n0\r\n\r\n";
    let head = "POST /offsitepixels HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(ask(&site, &format!("{head}{chunks}")).status, 200);
    let seen = last(&upstream);
    assert_eq!(seen.body, b"name=abc");
    assert_eq!(seen.header("x-request-id").unwrap().len(), 36);
    assert!(seen.header("transfer-encoding").is_none() && seen.header("expect").is_none());
    // Not for the gateway to read.
    let packed = "POST /offsitepixels HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(ask(&site, packed).status, 200);
    let seen = last(&upstream);
    assert_eq!((seen.header("content-encoding").as_deref(), &*seen.body), (Some("gzip"), &b"abc"[..]));
    let too_long = format!("POST /offsitepixels HTTP/1.1\r\nHost: a\r\n{}", with_length(&"x".repeat(65_537)));
    assert_eq!(ask(&site, &too_long).status, 413);
    assert_eq!(upstream.seen().len(), 2, "what is too long is not passed on in part");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn replies_come_back_byte_for_byte() {
    // Not gzip at all: nobody but the client may want to know.
    let packed = b"\x1f\x8b\x08not really".to_vec();
    let of_upstream = packed.clone();
    let upstream = Upstream::start(move |seen| {
        let say = |text: &str| Act::Say(text.as_bytes().to_vec());
        match seen.line.split(' ').nth(1).unwrap() {
            "/offsitepixels/1" => {
                let mut bytes =
                    b"HTTP/1.1 200 Fine\r\nContent-Encoding: gzip\r\nETag: W/\"1\"\r\nVary: A\r\nVary: B\r\n\
                    X-Runtime: 0.1\r\nServer: nginx\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nKeep-Alive: timeout=9\r\n\
                    Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Request-Id: theirs\r\nContent-Length: 13\r\n\r\n"
                        .to_vec();
                bytes.extend_from_slice(&of_upstream);
                Act::Say(bytes)
            }
            "/offsitepixels/2" => say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n\
                 3\r\n[{}\r\n1\r\n]\r\n0\r\nX-T: 1\r\n\r\n"),
            "/offsitepixels/3" => say("HTTP/1.1 304 Not Modified\r\nETag: \"3\"\r\nContent-Length: 99\r\n\r\n"),
            "/offsitepixels/4" => {
                say("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n")
            }
            "/offsitepixels/5" => say("HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"),
            "/offsitepixels/6" => Act::SayAndClose(b"HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nto the end".to_vec()),
            "/offsitepixels/7" => say("HTTP/1.1 100 Continue\r\n\r\n\
                 HTTP/1.1 500 Oh\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n<oh/>"),
            "/offsitepixels/8" => say("HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\n{}"),
            other => panic!("{other}"),
        }
    });
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    let get = |id: u8| ask(&site, &format!("GET /offsitepixels/{id} HTTP/1.1\r\nHost: a\r\n\r\n"));
    let reply = get(1);
    let mut headers: Vec<String> = reply.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    headers.sort();
    assert_eq!((reply.status, &reply.body), (200, &packed));
    let expected = [
        "content-encoding: gzip",
        "content-length: 13",
        "date: Mon, 01 Jan 2024 00:00:00 GMT",
        "etag: W/\"1\"",
        "server: nginx",
        "vary: A",
        "vary: B",
        "x-request-id: theirs",
        "x-runtime: 0.1",
    ];
    assert_eq!(headers, expected);
    let reply = get(2);
    assert_eq!((reply.status, &*reply.body, reply.header("trailer")), (200, &b"[{}]"[..], None));
    let reply = get(3);
    let told = (reply.status, reply.header("etag"), reply.header("content-length"));
    assert_eq!(told, (304, Some("\"3\""), Some("99")));
    let reply = get(4);
    assert_eq!((reply.status, reply.header("location")), (302, Some("http://127.0.0.1:1/x")));
    let reply = get(5);
    assert_eq!((reply.status, reply.header("x-a"), reply.header("content-length")), (204, Some("1"), None));
    assert_eq!((get(6).status, get(6).body), (200, b"to the end".to_vec()));
    let reply = get(7);
    assert_eq!((reply.status, &*reply.body, reply.header("content-type")), (500, &b"<oh/>"[..], Some("text/html")));
    assert_eq!((get(8).status, get(8).body), (422, b"{}".to_vec()));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn head_says_what_get_would_and_the_connection_goes_on() {
    let upstream = Upstream::start(|seen| match seen.line.starts_with("HEAD") {
        true => Act::Say(b"HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 852\r\n\r\n".to_vec()),
        false => json("[]"),
    });
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    let mut client = connect(&site);
    client.send(b"HEAD /offsitepixels HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let (status, headers) = client.head().unwrap();
    assert_eq!(status, 200);
    assert!(headers.contains(&("content-length".to_owned(), "852".to_owned())), "{headers:?}");
    for _ in 0..5 {
        assert_eq!(client.get("/offsitepixels").unwrap().body, b"[]");
    }
    assert_eq!(upstream.connections(), 1, "reads share a connection");
    drop(client);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn only_named_cookies_pass_both_ways() {
    let upstream = Upstream::start(|_| {
        let head = "HTTP/1.1 200 OK\r\nSet-Cookie: session=2; HttpOnly\r\nSet-Cookie: track=1\r\n";
        Act::Say(format!("{head}{}", with_length("[]")).into_bytes())
    });
    let site = proxy_site(&upstream, "forward_cookies = [\"session\"]");
    let gateway = site.start();
    let reply = ask(&site, "GET /offsitepixels HTTP/1.1\r\nHost: a\r\nCookie: track=1; session=1; sessions=3\r\n\r\n");
    let cookies: Vec<_> = reply.headers.iter().filter(|(name, _)| name == "set-cookie").collect();
    assert_eq!(cookies, [&("set-cookie".to_owned(), "session=2; HttpOnly".to_owned())]);
    assert_eq!(last(&upstream).header("cookie").as_deref(), Some("session=1"));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_large_reply_streams_while_it_is_made() {
    const PIECES: usize = 400;
    const PIECE: usize = 100_000;
    let upstream = Upstream::start(|_| {
        let mut pieces = vec![format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", PIECES * PIECE).into_bytes()];
        pieces.extend((0..PIECES).map(|number| vec![b'a' + (number % 26) as u8; PIECE]));
        Act::Drip(pieces, Duration::from_millis(1))
    });
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    let reply = ask(&site, "GET /offsitepixels HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(reply.body.len(), PIECES * PIECE);
    let same = reply.body.chunks(PIECE).enumerate().all(|(number, piece)| {
        let letter = b'a' + (number % 26) as u8;
        piece.iter().all(|byte| *byte == letter)
    });
    assert!(same, "every byte in its place");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn nothing_but_the_three_routes_leads_anywhere() {
    let upstream = Upstream::start(|_| json("[]"));
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    let host = upstream.address;
    for (first, status) in [
        ("GET http://127.0.0.1:1/offsitepixels HTTP/1.1".to_owned(), 400),
        (format!("GET http://{host}/offsitepixels HTTP/1.1"), 400),
        ("GET /offsitepixels/1%2F..%2F..%2Fadmin HTTP/1.1".to_owned(), 404),
        ("GET /offsitepixels%2F1 HTTP/1.1".to_owned(), 404),
        ("GET /offsitepixels/%31 HTTP/1.1".to_owned(), 404),
        ("GET /offsitepixels/../admin HTTP/1.1".to_owned(), 404),
        ("GET /offsitepixels/1/../../admin HTTP/1.1".to_owned(), 404),
        ("GET /offsitepixels/1/ HTTP/1.1".to_owned(), 404),
        ("GET /offsitepixels/ HTTP/1.1".to_owned(), 404),
        ("GET //offsitepixels HTTP/1.1".to_owned(), 404),
        ("GET /offsitepixels/1\\2 HTTP/1.1".to_owned(), 404),
        ("GET /oauth/authorize HTTP/1.1".to_owned(), 404),
        ("PATCH /offsitepixels/1 HTTP/1.1".to_owned(), 405),
        ("TRACE /offsitepixels HTTP/1.1".to_owned(), 405),
        (format!("GET /offsitepixels?{} HTTP/1.1", "a".repeat(17_000)), 414),
    ] {
        let reply = ask(&site, &format!("{first}\r\nHost: a\r\n\r\n"));
        assert_eq!(reply.status, status, "{first}");
    }
    let doubled = "POST /offsitepixels HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(ask(&site, doubled).status, 400, "two lengths");
    for smuggled in [
        "POST /offsitepixels HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /offsitepixels HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET /offsitepixels HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /offsitepixels HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n",
        "GET /offsitepixels HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n",
        "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n",
    ] {
        let reply = ask(&site, smuggled);
        assert!((400..500).contains(&reply.status), "{smuggled}: {}", reply.status);
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
    let reply = ask(&site, "OPTIONS /offsitepixels HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(reply.status, 204, "preflights are answered here");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_body_cut_short_by_the_client_reaches_nobody() {
    let upstream = Upstream::start(|_| json("{}"));
    let site = proxy_site(&upstream, "");
    let gateway = site.start();
    let mut client = connect(&site);
    client.send(b"POST /offsitepixels HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nname=").unwrap();
    client.half_close().unwrap();
    if let Ok(reply) = client.reply() {
        assert_eq!(reply.status, 400);
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn limits_of_management_hold_for_what_is_passed_on() {
    let upstream = Upstream::start(|_| json("[]"));
    let site = proxy_site(&upstream, "");
    let config = fs::read_to_string(site.config()).unwrap();
    let limits = "[limits]\nmanagement = { rate = \"1/s\", burst = 2 }\n";
    let others = config.replace("[limits]\nmode = \"observe\"\n", "");
    fs::write(site.config(), others + limits).unwrap();
    let gateway = site.start();
    let replies: Vec<Reply> = (0..10).map(|_| ask(&site, "GET /offsitepixels HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    let passed = replies.iter().filter(|reply| reply.status == 200).count();
    let refused: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 429).collect();
    assert!(passed >= 2 && passed + refused.len() == 10 && !refused.is_empty(), "{passed} passed");
    assert!(refused.iter().all(|reply| reply.header("retry-after").is_some()));
    assert_eq!(upstream.seen().len(), passed);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_token_has_its_limit_whatever_address_it_comes_from() {
    let upstream = Upstream::start(|_| json("[]"));
    let site = proxy_site(&upstream, "");
    site.reconfigure("[limits]\nmode = \"observe\"\n", "[limits]\nmanagement = { rate = \"1/m\", burst = 2 }\n");
    site.reconfigure("workers = 2\n", "workers = 2\ntrusted_proxies = [\"127.0.0.1\"]\n");
    let gateway = site.start();
    let status = |token: &str, address: u8| {
        let head = format!("GET /offsitepixels HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.{address}\r\n");
        ask(&site, &format!("{head}Authorization: OAuth {token}\r\n\r\n")).status
    };
    assert_eq!([1, 2, 3].map(|address| status("one", address)), [200, 200, 429]);
    assert_eq!(status("two", 4), 200, "another token from another address");
    assert_eq!(upstream.seen().len(), 3);
    assert_eq!(gateway.stop(), Some(0));
}
