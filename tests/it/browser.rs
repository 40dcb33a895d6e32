//! A real Chromium, driven over WebDriver by its own driver, and a shop whose pages it visits.
//!
//! All hosts are below `.localhost`: browsers take those for loopback and for secure, so that isolation, cookies and
//! beacons are as on https. The shop is `www.shop.localhost`, the gateway `px.shop.localhost`: one site, two origins.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Client;
use super::gateway::{Site, until, until_or};
use super::upstream::{Act, Upstream};

const INSTALL: &str = "the e2e tests need Chromium and its driver: apt-get install chromium chromium-driver";
const BROWSERS: [&str; 2] = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
/// What keeps a browser to itself, to loopback and to its work.
const ARGUMENTS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP *.localhost 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

/// One browser with an empty profile.
pub struct Browser {
    driver: Child,
    address: std::net::SocketAddr,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// An ordinary one.
    pub fn start() -> Browser {
        Browser::with(&json!({}))
    }

    /// One with preferences.
    pub fn with(preferences: &Value) -> Browser {
        Browser::begin(&json!({"prefs": preferences}))
    }

    /// One that writes down what its pages' threads do; see `trace`.
    pub fn traced() -> Browser {
        let what = json!({"enableNetwork": false, "enablePage": false, "traceCategories": "devtools.timeline,v8"});
        Browser::begin(&json!({"perfLoggingPrefs": what}))
    }

    /// One that takes any certificate.
    pub fn of_any_authority() -> Browser {
        Browser::begin(&json!({"acceptInsecureCerts": true}))
    }

    fn begin(more: &Value) -> Browser {
        let binary = BROWSERS.into_iter().find(|path| Path::new(path).exists()).expect(INSTALL);
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().expect(INSTALL);
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            line.split_once("started successfully on port ")?.1.trim_end_matches('.').parse::<u16>().ok()
        });
        // A pipe that nobody reads must not hold the driver up.
        std::thread::spawn(move || lines.for_each(drop));
        let address = ([127, 0, 0, 1], port.expect("chromedriver tells its port")).into();
        let profile = tempfile::Builder::new().prefix("browser-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut arguments: Vec<String> = ARGUMENTS.iter().map(|argument| argument.to_string()).collect();
        arguments.push(format!("--user-data-dir={}", profile.path().display()));
        let mut browser = Browser { driver, address, session: String::new(), _profile: profile };
        let mut options = more.clone();
        options["binary"] = binary.into();
        options["args"] = arguments.into();
        let logs = if more["perfLoggingPrefs"].is_null() { json!({}) } else { json!({"performance": "ALL"}) };
        let takes_any = options.as_object_mut().unwrap().remove("acceptInsecureCerts").is_some();
        let always = json!({
            "goog:chromeOptions": options, "goog:loggingPrefs": logs, "acceptInsecureCerts": takes_any
        });
        let wanted = json!({"capabilities": {"alwaysMatch": always}});
        let made = browser.ask("POST", "", &wanted);
        browser.session = format!("/{}", made["sessionId"].as_str().unwrap());
        browser
    }

    /// A WebDriver command and its result.
    fn ask(&self, method: &str, command: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let (session, length) = (&self.session, body.len());
        let request = format!(
            "{method} /session{session}{command} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        // A browser that starts, or a page that loads, on a machine with more to do than it can.
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(180))).unwrap();
        let mut client = Client::over(stream);
        client.send(request.as_bytes()).unwrap();
        let reply = client.reply().unwrap();
        let told: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(reply.status, 200, "{method} {command} {body}: {}", told["value"]["message"]);
        told["value"].clone()
    }

    /// Visits a page and waits until it has loaded.
    pub fn visit(&self, url: &str) {
        self.ask("POST", "/url", &json!({"url": url}));
    }

    /// Runs a script in the page; what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until an expression of the page is true.
    pub fn wait(&self, expression: &str) {
        until(expression, || self.run(&format!("return !!({expression})")) == true);
    }

    /// A command of the DevTools protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.ask("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// What was written down since the last time, as trace events.
    pub fn trace(&self) -> Vec<Value> {
        let entries = self.ask("POST", "/se/log", &json!({"type": "performance"}));
        let entries = entries.as_array().unwrap().iter();
        let messages = entries.map(|entry| serde_json::from_str::<Value>(entry["message"].as_str().unwrap()).unwrap());
        let traced = messages.filter(|entry| entry["message"]["method"] == "Tracing.dataCollected");
        traced.map(|entry| entry["message"]["params"].clone()).collect()
    }

    /// Takes the page's network away, or gives it back.
    pub fn offline(&self, is_offline: bool) {
        self.devtools("Network.enable", &json!({}));
        let no_limits = json!({"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1});
        self.devtools("Network.emulateNetworkConditions", &no_limits);
    }

    /// Opens a tab and goes to it; the one before.
    pub fn open_tab(&self) -> String {
        let before = self.ask("GET", "/window", &json!({}));
        let opened = self.ask("POST", "/window/new", &json!({"type": "tab"}));
        self.ask("POST", "/window", &json!({"handle": opened["handle"]}));
        before.as_str().unwrap().to_owned()
    }

    /// Closes the tab and goes to another.
    pub fn close_tab(&self, next: &str) {
        self.ask("DELETE", "/window", &json!({}));
        self.ask("POST", "/window", &json!({"handle": next}));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Without its session the driver takes the browser along; a test that failed may have none.
        if !self.session.is_empty()
            && let Ok(mut client) = Client::connect(self.address)
        {
            let end = format!("DELETE /session{} HTTP/1.1\r\nHost: localhost\r\n\r\n", self.session);
            client.send(end.as_bytes()).ok();
            client.reply().ok();
        }
        self.driver.kill().ok();
        self.driver.wait().ok();
    }
}

/// Pages by their paths: header lines, and HTML. `{px}` in either is the gateway's host and port.
pub struct Shop {
    server: Upstream,
    gateway: String,
}

impl Shop {
    /// A shop in front of a site's gateway. Any other path is an empty page.
    pub fn open(site: &Site, pages: &[(&str, &str, &str)]) -> Shop {
        let gateway = format!("px.shop.localhost:{}", site.public.port());
        let fill = |text: &str| text.replace("{px}", &gateway);
        let pages: Arc<Vec<(String, String, String)>> =
            Arc::new(pages.iter().map(|(path, lines, html)| (path.to_string(), fill(lines), fill(html))).collect());
        let server = Upstream::start(move |seen| {
            let path = seen.line.split([' ', '?']).nth(1).unwrap_or_default();
            let page = pages.iter().find(|(known, ..)| known == path);
            let (lines, html) = page.map_or(("", ""), |(_, lines, html)| (lines.as_str(), html.as_str()));
            let kind = if path.ends_with(".js") { "text/javascript" } else { "text/html; charset=utf-8" };
            let html =
                if kind.contains("html") { format!("<!DOCTYPE html><title>Shop</title>{html}") } else { html.into() };
            let length = html.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{lines}\r\n");
            Act::Say([head.as_bytes(), html.as_bytes()].concat())
        });
        Shop { server, gateway }
    }

    /// A page's URL.
    pub fn url(&self, path: &str) -> String {
        format!("http://www.shop.localhost:{}{path}", self.server.address.port())
    }

    /// The same page at another site.
    pub fn elsewhere(&self, path: &str) -> String {
        format!("http://www.other.localhost:{}{path}", self.server.address.port())
    }

    /// The gateway as pages name it.
    pub fn gateway(&self) -> &str {
        &self.gateway
    }
}

/// The events in a running gateway's journal, once there are so many. A moment later there are no more.
pub fn events(site: &Site, count: usize) -> Vec<Value> {
    let read = || -> Vec<Value> {
        let exported = site.run(&["journal", "export"]).stdout;
        String::from_utf8(exported).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    until_or(|| format!("{count} events in the journal: {:#?}", read()), || read().len() >= count);
    // One too many has to be given the time to come: absence can't be waited for.
    std::thread::sleep(Duration::from_millis(300));
    let found = read();
    assert_eq!(found.len(), count, "{found:#?}");
    found
}
