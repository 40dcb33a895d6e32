//! What the log says, and what no client can make it say.

use super::client::Client;
use super::gateway::{PIXEL, Site, free_address, until};

#[test]
fn no_request_writes_a_line() {
    let site = Site::new("");
    let gateway = site.start();
    until("it says that it serves", || site.log().contains("pixelgate::app: serving"));
    let before = site.log();
    let ordinary = format!("GET /offsite_event.php?id={PIXEL}&value=1 HTTP/1.1\r\nHost: h\r\n\r\n");
    let unknown = "GET /offsite_event.php?id=7 HTTP/1.1\r\nHost: h\r\n\r\n".to_owned();
    let bad_uri = "GET /offsite_event.php?\u{1}\u{fe} HTTP/1.1\r\nHost: h\r\n\r\n".to_owned();
    let bad_header = "GET / HTTP/1.1\r\nHost: h\r\nA\u{0}B: c\r\n\r\n".to_owned();
    let no_http = "\u{16}\u{3}\u{1} hello\r\n\r\n".to_owned();
    let no_token = "GET /offsitepixels HTTP/1.1\r\nHost: h\r\nAuthorization: OAuth secret-guess\r\n\r\n".to_owned();
    for request in [ordinary, unknown, bad_uri, bad_header, no_http, no_token] {
        let mut client = Client::connect(site.public).unwrap();
        client.send(request.as_bytes()).unwrap();
        // Whatever the answer is: when it is here, the request has been dealt with.
        client.reply().unwrap();
    }
    assert_eq!(gateway.stop(), Some(0));
    let said = site.log().strip_prefix(&before).expect("logs only grow").to_owned();
    let lines: Vec<&str> = said.lines().filter(|line| !line.contains(" INFO pixelgate::")).collect();
    assert_eq!(lines, Vec::<&str>::new());
    assert!(!said.contains("127.0.0.1") && !said.contains("secret-guess"), "{said}");
}

#[test]
fn the_publisher_s_own_lines_stand_beside_those_of_its_library() {
    let nobody = free_address();
    let site = Site::new(&format!("[kafka]\nbrokers = [\"{nobody}\"]\n"));
    let gateway = site.start();
    // Both come from one thread, and the library also says what isn't shown.
    until("its library is heard", || site.log().contains("librdkafka"));
    until("the publisher is heard", || site.log().contains("publishing: connecting again"));
    until("it serves", || site.log().contains(" INFO pixelgate::app: serving"));
    assert_eq!(gateway.stop(), Some(0));
}
