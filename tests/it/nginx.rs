//! deploy/nginx.conf, as it is shipped but for ports and paths, in front of a gateway.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use openssl::ssl::SslConnector;
use serde_json::Value;
use tokio::net::TcpSocket;

use super::audit::export;
use super::client::Client;
use super::gateway::{PATIENCE, PIXEL, Site, free_address, until_or};
use super::tls_site::{self, HOST, TlsSite, block_on};
use super::tools::{root, run, scratch};

const INSTALL: &str = "the e2e tests need nginx: apt-get install nginx-light";

/// A running nginx.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What stands in the page for others to copy.
fn adapted(text: &str, replacements: &[(&str, String)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is not in deploy/nginx.conf");
        text.replace(from, to)
    })
}

/// A secured connection from this address of the machine.
fn visitor(from: [u8; 4], to: SocketAddr, connector: &SslConnector) -> Client<openssl::ssl::SslStream<TcpStream>> {
    let stream = block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        socket.connect(to).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Client::over(connector.connect(HOST, stream).unwrap())
}

/// The shipped config, in a directory of its own and for this site.
fn start(directory: &Path, site: &Site, identity: &TlsSite, (plain, secured): (SocketAddr, SocketAddr)) -> Nginx {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let shipped = fs::read_to_string(root().join("deploy/nginx.conf")).unwrap();
    let replacements = [
        ("127.0.0.1:8080", site.public.to_string()),
        ("    listen [::]:80;\n", String::new()),
        ("    listen [::]:443 ssl http2;\n", String::new()),
        ("listen 80;", format!("listen {plain};")),
        ("listen 443 ssl", format!("listen {secured} ssl")),
        ("pixel.example.com", HOST.to_owned()),
        ("/etc/ssl/pixelgate/fullchain.pem", identity.certificate().to_str().unwrap().to_owned()),
        ("/etc/ssl/pixelgate/privkey.pem", identity.key().to_str().unwrap().to_owned()),
    ];
    fs::write(path("pixelgate.conf"), adapted(&shipped, &replacements)).unwrap();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {};\n", path(name)))
        .concat();
    let main = format!(
        "daemon off; master_process off; pid {}; error_log stderr;\nevents {{}}\n\
         http {{\n{temporary}access_log {};\ninclude {};\n}}\n",
        path("pid"),
        path("access"),
        path("pixelgate.conf")
    );
    fs::write(path("nginx.conf"), main).unwrap();
    let nginx = || {
        let found = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
        let mut command = Command::new(found.into_iter().find(|path| Path::new(path).exists()).expect(INSTALL));
        command.args(["-c", &path("nginx.conf"), "-e", &path("early")]);
        command
    };
    let mut check = nginx();
    check.arg("-t");
    run(check, INSTALL);
    let log = fs::File::create(path("log")).unwrap();
    let running = Nginx(nginx().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect(INSTALL));
    let is_up = || TcpStream::connect_timeout(&secured, Duration::from_secs(1)).is_ok();
    until_or(|| format!("nginx listens: {}", fs::read_to_string(path("log")).unwrap()), is_up);
    running
}

#[test]
fn the_shipped_config_tells_who_the_visitor_is_and_lets_the_gateway_s_answers_through() {
    let trusted = fs::read_to_string(root().join("deploy/pixelgate-behind-proxy.toml")).unwrap();
    let trusted = trusted.lines().find(|line| line.starts_with("trusted_proxies")).unwrap();
    let site = Site::with_server(trusted, "");
    let gateway = site.start();
    // Its certificate; nobody starts that site.
    let identity = TlsSite::new("", "");
    let directory = scratch("nginx-");
    let (plain, secured) = (free_address(), free_address());
    let running = start(directory.path(), &site, &identity, (plain, secured));

    assert_eq!(Client::connect(plain).unwrap().get("/tag.js").unwrap().status, 308);
    // What a visitor says of itself is not believed.
    let connector = identity.trusting().build();
    let mut stranger = visitor([127, 0, 5, 6], secured, &connector);
    let forged = "X-Forwarded-For: 198.51.100.9\r\n";
    let event = format!("GET /offsite_event.php?id={PIXEL}&nonce=a HTTP/1.1\r\nHost: {HOST}\r\n{forged}\r\n");
    stranger.send(event.as_bytes()).unwrap();
    assert_eq!(stranger.reply().unwrap().status, 200);
    let long = "x".repeat(100 << 10);
    let reply = stranger.post("/offsite_event.php", "application/x-www-form-urlencoded", &long).unwrap();
    assert_eq!((reply.status, reply.reason()), (413, Some("body_too_large")), "the gateway's own answer: {reply:?}");
    // Management is the own network's.
    let list = |from| visitor(from, secured, &connector).get("/offsitepixels/7").unwrap().status;
    assert_eq!((list([127, 0, 5, 6]), list([127, 0, 0, 1])), (403, 401));
    // With HTTP/2, too.
    let status = block_on(async {
        let (mut client, _connection) = tls_site::connect_h2(secured, &identity.offering_h2()).await;
        let target = format!("https://{HOST}/offsite_event.php?id={PIXEL}&nonce=b");
        let request = http::Request::get(target).body(()).unwrap();
        client.send_request(request, true).unwrap().0.await.unwrap().status().as_u16()
    });
    assert_eq!(status, 200);
    assert_eq!(gateway.stop(), Some(0));
    drop(running);
    assert_eq!(fs::read_to_string(directory.path().join("access")).unwrap(), "", "visitors leave no trace in its log");
    let addresses: Vec<Value> = export(&site)
        .iter()
        .map(|record| serde_json::from_str::<Value>(record).unwrap()["client_ip"].clone())
        .collect();
    assert_eq!(addresses, ["127.0.5.0", "127.0.0.0"], "by the last octet less, and none of a visitor's own word");
}
