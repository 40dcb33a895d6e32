//! HTTP/2: the same answers and records as by HTTP/1.1, within bounds, and no stream is lost at a stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use openssl::ssl::SslConnector;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::activator::Activator;
use super::audit::export;
use super::gateway::{PIXEL, until};
use super::tls_site::{HOST, TlsSite, block_on, connect_h2};

type Sender = SendRequest<Bytes>;
type Request = http::request::Builder;

fn request(method: &str, target: &str) -> Request {
    http::Request::builder().method(method).uri(format!("https://{HOST}{target}"))
}

/// Sends a whole request, and reads its answer's head and body.
async fn ask(sender: &Sender, request: Request, body: &str) -> Result<(http::response::Parts, Bytes), h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let (answer, mut stream) = sender.send_request(request.body(()).unwrap(), body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true)?;
    }
    let (head, body) = answer.await?.into_parts();
    Ok((head, whole(body).await?))
}

/// Sends a part of an event's body. The gateway has it in hand: something behind it is answered.
async fn half_sent(sender: &Sender, event: &str) -> (ResponseFuture, SendStream<Bytes>) {
    let mut ready = sender.clone().ready().await.unwrap();
    let (answer, mut stream) = ready.send_request(request("POST", event).body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(b"value=1"), false).unwrap();
    assert_eq!(ask(sender, request("GET", event), "").await.unwrap().0.status, 200);
    (answer, stream)
}

async fn whole(mut body: RecvStream) -> Result<Bytes, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        bytes.extend(chunk);
    }
    Ok(bytes.into())
}

fn header<'a>(head: &'a http::response::Parts, name: &str) -> Option<&'a str> {
    head.headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn streams_are_answered_side_by_side_as_requests_are() {
    let secured = TlsSite::new(
        "tls.hsts_max_age = \"1d\"\ntrusted_proxies = [\"127.0.0.1\"]",
        "[privacy]\nclient_ip = \"full\"\n",
    );
    let gateway = secured.site.start();
    block_on(async {
        let (sender, _connection) = secured.connect_h2().await;
        // First one alone: its answer comes behind the word of how many streams there may be.
        let cookies = request("GET", &format!("/offsite_event.php?id={PIXEL}&nonce=c"))
            .header("cookie", "_fbp=fb.1.2.3")
            .header("cookie", "_fbc=fb.1.2.abc")
            .header("x-forwarded-for", "203.0.113.77")
            .header("user-agent", "two");
        assert_eq!(ask(&sender, cookies, "").await.unwrap().0.status, 200);
        let mut streams = JoinSet::new();
        for number in 0..100 {
            let sender = sender.clone();
            streams.spawn_local(async move {
                let pairs = format!("id={PIXEL}&value=1.50&currency=GBP&nonce={number}");
                let (head, body) = match number % 2 {
                    0 => ask(&sender, request("GET", &format!("/offsite_event.php?{pairs}")), "").await.unwrap(),
                    _ => ask(&sender, request("POST", "/offsite_event"), &pairs).await.unwrap(),
                };
                let expected = if number % 2 == 0 { (200, 43) } else { (204, 0) };
                assert_eq!((head.status.as_u16(), body.len()), expected);
                assert!(head.headers.contains_key("x-pixelgate-record-id"), "{head:?}");
                assert_eq!(header(&head, "strict-transport-security"), Some("max-age=86400"));
                assert_eq!(header(&head, "cache-control"), Some("no-store"));
            });
        }
        while let Some(stream) = streams.join_next().await {
            stream.unwrap();
        }
        let (head, body) = ask(&sender, request("HEAD", &format!("/offsite_event?id={PIXEL}")), "").await.unwrap();
        assert_eq!((head.status.as_u16(), body.len(), header(&head, "content-length")), (200, 0, Some("43")));
        let (head, body) = ask(&sender, request("GET", "/fp.js"), "").await.unwrap();
        assert_eq!((head.status.as_u16(), header(&head, "content-length")), (200, Some(&*body.len().to_string())));
        assert_eq!(ask(&sender, request("GET", "/nothing"), "").await.unwrap().0.status, 404);
        assert_eq!(ask(&sender, request("OPTIONS", "/tr"), "").await.unwrap().0.status, 204);
    });
    assert_eq!(gateway.stop(), Some(0));
    let records = export(&secured.site);
    assert_eq!(records.len(), 101);
    let records = records.iter().map(|record| serde_json::from_str::<Value>(record).unwrap());
    let record = records.into_iter().find(|record| record["params"]["nonce"] == "c").unwrap();
    for (field, value) in
        [("fbp", "fb.1.2.3"), ("fbc", "fb.1.2.abc"), ("client_ip", "203.0.113.77"), ("user_agent", "two")]
    {
        assert_eq!(record[field], value, "{record}");
    }
}

#[test]
fn bounds_of_requests_have_the_answers_that_they_have_elsewhere() {
    let secured = TlsSite::new("body_timeout = \"500ms\"", "");
    let gateway = secured.site.start();
    block_on(async {
        let (sender, _connection) = secured.connect_h2().await;
        let event = format!("/offsite_event.php?id={PIXEL}");
        let long = "x".repeat(40_000);
        let body = "x".repeat(70_000);
        for (request, body, status, reason) in [
            (request("GET", &event).header("x-long", &long), "", 431, "header_too_large"),
            (request("GET", &format!("{event}&x={}", &long[..17_000])), "", 414, "uri_too_long"),
            (request("POST", &event).header("content-length", body.len()), "", 413, "body_too_large"),
            (request("POST", &event).header("content-encoding", "gzip"), "x", 415, "unsupported_media_type"),
            (request("PUT", &event), "", 405, "method_not_allowed"),
            (request("GET", "/offsite_event"), "", 400, "missing_id"),
        ] {
            let mut sender = sender.clone().ready().await.unwrap();
            let (answer, _stream) =
                sender.send_request(request.body(()).unwrap(), body.is_empty() && status != 413).unwrap();
            let head = answer.await.unwrap().into_parts().0;
            assert_eq!((head.status.as_u16(), header(&head, "x-pixelgate-reason")), (status, Some(reason)));
        }
        // A body that stops coming.
        let mut ready = sender.clone().ready().await.unwrap();
        let (answer, mut stream) = ready.send_request(request("POST", &event).body(()).unwrap(), false).unwrap();
        stream.send_data(Bytes::from_static(b"value="), false).unwrap();
        let head = answer.await.unwrap().into_parts().0;
        assert_eq!((head.status.as_u16(), header(&head, "x-pixelgate-reason")), (408, Some("body_timeout")));
        // Beyond all bounds: refused in a word, by who speaks the protocol, and the connection goes on.
        let huge = request("GET", &event).header("a", &long).header("b", &long).header("c", &long);
        let refused = ask(&sender, huge.header("d", &long), "").await;
        assert!(refused.is_err() || refused.is_ok_and(|(head, _)| head.status == 431));
        assert_eq!(ask(&sender, request("GET", &event), "").await.unwrap().0.status, 200);
    });
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(export(&secured.site).len(), 1);
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// A frame as it is on the wire.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A connection's beginning, with these settings.
fn preface(settings: &[u8]) -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, settings)].concat()
}

/// A request's head, packed: `:method` GET, `:scheme` https, then `:authority` and `:path` as they are.
fn get(target: &str) -> Vec<u8> {
    let mut head = vec![0x82, 0x87, 0x01, HOST.len() as u8];
    head.extend(HOST.as_bytes());
    head.extend([0x04, target.len() as u8]);
    head.extend(target.as_bytes());
    head
}

/// What comes until the connection is closed from there, in whatever way: kind and payload of each whole frame.
async fn frames(mut stream: impl AsyncRead + Unpin) -> Vec<(u8, Vec<u8>)> {
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard).await;
    let mut heard = &heard[..];
    let mut frames = Vec::new();
    while let Some((head, rest)) = heard.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        frames.push((head[3], payload.to_vec()));
        heard = rest;
    }
    frames
}

#[test]
fn who_takes_no_answers_is_sent_none_and_given_up_and_others_go_on() {
    let secured = TlsSite::new("", "");
    let gateway = secured.site.start();
    let event = format!("/offsite_event.php?id={PIXEL}");
    block_on(async {
        let mut closed = secured.connect_for_h2().await;
        // SETTINGS_INITIAL_WINDOW_SIZE is 0: a body may not have a byte.
        let mut sent = preface(&[0, 4, 0, 0, 0, 0]);
        for stream in (1..=99).step_by(2) {
            sent.extend(frame(HEADERS, 0x5, stream, &get(&event)));
        }
        closed.write_all(&sent).await.unwrap();
        let (calm, _connection) = secured.connect_h2().await;
        assert_eq!(ask(&calm, request("GET", &event), "").await.unwrap().0.status, 200);
        let frames = frames(closed).await;
        assert_eq!(frames.iter().filter(|(kind, _)| *kind == HEADERS).count(), 50, "{frames:?}");
        assert!(frames.iter().all(|(kind, payload)| *kind != DATA || payload.is_empty()), "{frames:?}");
    });
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(export(&secured.site).len(), 51, "an event whose answer is not read is an event");
}

#[test]
fn who_opens_streams_only_to_take_them_back_is_cut_off_and_others_go_on() {
    let secured = TlsSite::new("", "");
    let gateway = secured.site.start();
    let event = format!("/offsite_event.php?id={PIXEL}");
    block_on(async {
        let (calm, _connection) = secured.connect_h2().await;
        assert_eq!(ask(&calm, request("GET", &event), "").await.unwrap().0.status, 200);
        let mut hasty = secured.connect_for_h2().await;
        let (mut sent, head) = (preface(&[]), get(&event));
        for stream in (1..=101).step_by(2) {
            sent.extend(frame(HEADERS, 0x5, stream, &head));
            sent.extend(frame(RESET, 0, stream, &8u32.to_be_bytes()));
        }
        hasty.write_all(&sent).await.unwrap();
        let frames = frames(hasty).await;
        let reason = |payload: &[u8]| u32::from_be_bytes(payload[4..8].try_into().unwrap());
        let reason = frames.iter().rev().find(|(kind, _)| *kind == GOAWAY).map(|(_, payload)| reason(payload));
        assert_eq!(reason, Some(u32::from(Reason::ENHANCE_YOUR_CALM)), "{frames:?}");
        assert_eq!(ask(&calm, request("GET", &event), "").await.unwrap().0.status, 200);
    });
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(export(&secured.site).len(), 2);
}

#[test]
fn at_a_stop_what_was_sent_is_answered_and_the_rest_is_told_to_go_elsewhere() {
    let secured = TlsSite::new("", "");
    let gateway = secured.site.start();
    let event = format!("/offsite_event.php?id={PIXEL}");
    block_on(async {
        let (sender, connection) = secured.connect_h2().await;
        let (idle, idle_connection) = secured.connect_h2().await;
        assert_eq!(ask(&idle, request("GET", &event), "").await.unwrap().0.status, 200);
        let (answer, mut stream) = half_sent(&sender, &event).await;
        gateway.ask_to_stop();
        // Told to go, and gone without an error.
        idle_connection.await.unwrap().unwrap();
        assert!(ask(&idle, request("GET", &event), "").await.is_err());
        stream.send_data(Bytes::from_static(b"&currency=GBP"), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 204);
        connection.await.unwrap().unwrap();
    });
    until("nobody listens", || std::net::TcpStream::connect(secured.site.public).is_err());
    assert_eq!(gateway.wait().code(), Some(0));
    assert_eq!(export(&secured.site).len(), 3);
}

/// Events one after the other, on a connection until it is told to end, and then on another.
async fn visit(address: SocketAddr, connector: SslConnector, stop: Arc<AtomicBool>, answered: Arc<AtomicU64>) {
    let event = format!("/offsite_event.php?id={PIXEL}");
    while !stop.load(Ordering::Relaxed) {
        let (sender, connection) = connect_h2(address, &connector).await;
        let end = loop {
            if stop.load(Ordering::Relaxed) {
                break None;
            }
            match ask(&sender, request("POST", &event), "value=1").await {
                Ok((head, _)) => assert_eq!(head.status, 204),
                Err(error) => break Some(error),
            }
            answered.fetch_add(1, Ordering::Relaxed);
        };
        if let Some(error) = end {
            // A connection that ended in order says that what it did not answer was not looked at.
            assert!(error.is_go_away() && error.reason() == Some(Reason::NO_ERROR), "{error:?}");
        }
        drop(sender);
        connection.await.unwrap().unwrap();
    }
}

#[test]
fn a_restart_by_hand_over_answers_every_stream_or_says_that_it_was_not_looked_at() {
    let secured = TlsSite::new("", "");
    let connector = secured.offering_h2();
    let activator = Activator::new(secured.site);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    std::thread::scope(|scope| {
        let visitors = scope.spawn(|| {
            block_on(async {
                let mut visitors = JoinSet::new();
                for _ in 0..4 {
                    let (connector, stop, answered) = (connector.clone(), Arc::clone(&stop), Arc::clone(&answered));
                    visitors.spawn_local(visit(activator.public(), connector, stop, answered));
                }
                while let Some(visitor) = visitors.join_next().await {
                    visitor.unwrap();
                }
            });
        });
        let more = || {
            let goal = answered.load(Ordering::Relaxed) + 200;
            until("streams are answered", || visitors.is_finished() || answered.load(Ordering::Relaxed) >= goal);
        };
        let mut gateway = activator.start();
        for _ in 0..3 {
            more();
            assert_eq!(gateway.stop().code(), Some(0), "{}", activator.log());
            gateway = activator.start();
        }
        more();
        stop.store(true, Ordering::Relaxed);
        visitors.join().unwrap();
        assert_eq!(gateway.stop().code(), Some(0));
    });
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered >= 800, "{answered}");
    assert_eq!(export(activator.site()).len() as u64, answered, "what was answered, and nothing else");
}

#[test]
fn a_certificate_is_renewed_under_an_open_stream() {
    let secured = TlsSite::new("", "");
    let gateway = secured.site.start();
    let event = format!("/offsite_event.php?id={PIXEL}");
    block_on(async {
        let (sender, connection) = secured.connect_h2().await;
        let (answer, mut stream) = half_sent(&sender, &event).await;
        secured.install(&secured.issue());
        gateway.signal(Signal::HUP);
        let taken = || gateway.metric("tls_certificate_reloads_total{outcome=\"taken\"}") == Some(1.0);
        until("the certificate is taken", taken);
        stream.send_data(Bytes::from_static(b"&currency=GBP"), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 204);
        assert_eq!(ask(&sender, request("GET", &event), "").await.unwrap().0.status, 200);
        drop(sender);
        connection.await.unwrap().unwrap();
    });
    assert_eq!(gateway.stop(), Some(0));
    assert_eq!(export(&secured.site).len(), 3);
}
