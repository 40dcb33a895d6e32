//! A real Firefox, spoken to in its own protocol (Marionette), which is what a WebDriver's server would do: Debian has
//! the browser and no such server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::browser::{Shop, events};
use super::browser_pages::{ID, STUB, TAG, site, snippet, told};
use super::gateway::{PATIENCE, Site, until};
use super::tools::patiently;

const INSTALL: &str = "the e2e tests need Firefox: apt-get install firefox-esr";
/// What keeps it to itself and to loopback, and tells on which port it listens. One process for all tabs of a site: it
/// ends a process with the last of them, and on a busy machine that can be faster than what a page sends in `pagehide`,
/// by whichever call (docs/tag.md says so).
const PREFERENCES: &str = r#"
user_pref("marionette.port", 0);
user_pref("app.normandy.enabled", false);
user_pref("browser.safebrowsing.downloads.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.startup.homepage", "about:blank");
user_pref("browser.startup.page", 0);
user_pref("dom.ipc.processCount.webIsolated", 1);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("extensions.systemAddon.update.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("network.dns.native-is-localhost", true);
user_pref("network.proxy.type", 0);
user_pref("services.settings.server", "data:,");
user_pref("toolkit.telemetry.reportingpolicy.firstRun", false);
"#;

/// One browser with a fresh profile.
struct Firefox {
    _process: Process,
    stream: BufReader<TcpStream>,
    asked: u64,
    _profile: tempfile::TempDir,
}

impl Firefox {
    fn with(preferences: &str) -> Firefox {
        let profile = tempfile::Builder::new().prefix("firefox-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::write(profile.path().join("user.js"), format!("{PREFERENCES}{preferences}")).unwrap();
        let mut command = Command::new("firefox-esr");
        command
            .args(["--headless", "--marionette", "--remote-allow-system-access", "--no-remote", "--profile"])
            .arg(profile.path());
        command.env("HOME", profile.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process(command.spawn().expect(INSTALL));
        let port = patiently("Firefox tells its port", || {
            let port = std::fs::read_to_string(profile.path().join("MarionetteActivePort")).ok()?.trim().parse().ok();
            port.filter(|port: &u16| *port > 0)
        });
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut browser = Firefox { _process: process, stream: BufReader::new(stream), asked: 0, _profile: profile };
        let hello = browser.message();
        assert_eq!(hello["marionetteProtocol"], 3, "{hello}");
        browser.ask("WebDriver:NewSession", &json!({"capabilities": {"alwaysMatch": {"acceptInsecureCerts": false}}}));
        browser
    }

    /// A length in digits, a colon, and JSON.
    fn message(&mut self) -> Value {
        let mut length = Vec::new();
        self.stream.read_until(b':', &mut length).unwrap();
        let length = std::str::from_utf8(&length).unwrap().trim_end_matches(':').parse().unwrap();
        let mut text = vec![0; length];
        self.stream.read_exact(&mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn ask(&mut self, command: &str, parameters: &Value) -> Value {
        self.asked += 1;
        let text = json!([0, self.asked, command, parameters]).to_string();
        self.stream.get_mut().write_all(format!("{}:{text}", text.len()).as_bytes()).unwrap();
        let answer = self.message();
        assert!(answer[1] == self.asked && answer[2].is_null(), "{command} {parameters}: {answer}");
        answer[3].clone()
    }

    fn visit(&mut self, url: &str) {
        self.ask("WebDriver:Navigate", &json!({"url": url}));
    }

    fn run(&mut self, script: &str) -> Value {
        self.ask("WebDriver:ExecuteScript", &json!({"script": script, "args": []}))["value"].clone()
    }

    fn wait(&mut self, expression: &str) {
        until(expression, || self.run(&format!("return !!({expression})")) == true);
    }

    /// Takes the browser's network away, or gives it back.
    fn offline(&mut self, is_offline: bool) {
        self.ask("Marionette:SetContext", &json!({"value": "chrome"}));
        self.run(&format!("Services.io.manageOfflineStatus = false; Services.io.offline = {is_offline}"));
        self.ask("Marionette:SetContext", &json!({"value": "content"}));
    }

    /// Visits a page in a tab of its own and closes it.
    fn visit_and_close(&mut self, url: &str) {
        let first = self.ask("WebDriver:GetWindowHandle", &json!({}))["value"].clone();
        let opened = self.ask("WebDriver:NewWindow", &json!({"type": "tab"}));
        self.ask("WebDriver:SwitchToWindow", &json!({"handle": opened["handle"]}));
        self.visit(url);
        self.ask("WebDriver:CloseWindow", &json!({}));
        self.ask("WebDriver:SwitchToWindow", &json!({"handle": first}));
    }
}

/// Killed at the end.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Its children end when they see that it has gone.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn names(records: &[Value]) -> Vec<String> {
    let mut names: Vec<String> =
        records.iter().map(|record| record["event_name"].as_str().unwrap_or_default().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn in_firefox_visitors_leave_close_and_lose_their_network() {
    let site = site();
    let gateway = site.start();
    let track = |name: &str| format!("pixelgate('track', '{ID}', {{event_name: '{name}'}});");
    let closing = format!("{TAG}<script>addEventListener('pagehide', function () {{ {} }});</script>", track("closed"));
    let leaving = format!("{TAG}<script>{} location.href = '/next';</script>", track("left"));
    let pages = [
        ("/thanks", "", &*snippet()),
        ("/closing", "", &closing),
        ("/leaving", "", &leaving),
        ("/app", "", &format!("{STUB}{TAG}")),
    ];
    let shop = Shop::open(&site, &pages);
    let mut browser = Firefox::with("");
    browser.visit(&shop.url("/thanks?utm_source=a&b=c"));
    let record = events(&site, 1).remove(0);
    let page = shop.url("/thanks?utm_source=a");
    let expected = json!({"pixel_id": ID, "value": "0.01", "currency": "GBP", "source": "fp_js", "page_url": page});
    assert_eq!(told(&record), expected);
    browser.visit_and_close(&shop.url("/closing"));
    browser.visit(&shop.url("/leaving"));
    browser.wait("location.pathname == '/next'");
    browser.visit(&shop.url("/app"));
    browser.offline(true);
    browser.run(&track("offline"));
    browser.wait("navigator.onLine === false");
    browser.offline(false);
    assert_eq!(names(&events(&site, 4)), ["", "closed", "left", "offline"]);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn in_firefox_policies_cookies_and_apps_are_as_elsewhere() {
    let site = Site::new("[validation]\nunknown_pixel = \"flag\"");
    let gateway = site.start();
    let csp = "Content-Security-Policy: default-src 'none'; script-src 'self' {px}; connect-src {px}\r\n";
    let isolated = "Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Embedder-Policy: require-corp\r\n";
    // One that no script can read.
    let cookie = "Set-Cookie: _fbp=fb.1.1625813003210.1037862016; Domain=shop.localhost; Path=/; HttpOnly\r\n";
    let second = snippet().replace(ID, "6014360342905");
    let pages = [
        ("/page.js", "", &*format!("fb_param = {{pixel_id: '{ID}', cd: {{page: location.pathname}}}};")),
        ("/csp", csp, &format!("<script src=\"/page.js\"></script>{TAG}")),
        ("/isolated", isolated, &snippet()),
        ("/cookie", cookie, &snippet()),
        ("/two", "", &format!("{}\n{second}", snippet())),
        ("/app", "", &format!("{STUB}{TAG}")),
    ];
    let shop = Shop::open(&site, &pages);
    let mut browser = Firefox::with("");
    browser.visit(&shop.url("/csp"));
    assert_eq!(events(&site, 1)[0]["params"]["cd[page]"], "/csp");
    browser.visit(&shop.url("/isolated"));
    assert_eq!(told(&events(&site, 2)[1])["page_url"], shop.url("/isolated"));
    assert_eq!(browser.run("return crossOriginIsolated"), true);
    browser.visit(&shop.url("/cookie"));
    assert_eq!(events(&site, 3)[2]["fbp"], "fb.1.1625813003210.1037862016");
    browser.visit(&shop.elsewhere("/cookie"));
    assert_eq!(events(&site, 4)[3]["fbp"], Value::Null);
    browser.visit(&shop.url("/two"));
    let mut two: Vec<String> = events(&site, 6)[4..].iter().map(|record| record["pixel_id"].to_string()).collect();
    two.sort();
    assert_eq!(two, [format!("\"{ID}\""), "\"6014360342905\"".to_owned()]);
    browser.visit(&shop.url("/app"));
    browser.run(&format!("history.pushState({{}}, '', '/app/thanks'); pixelgate('track', '{ID}')"));
    assert_eq!(events(&site, 7)[6]["page_url"], shop.url("/app/thanks"));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn in_firefox_without_javascript_the_image_tells() {
    let site = site();
    let gateway = site.start();
    let shop = Shop::open(&site, &[("/thanks", "", &snippet())]);
    let mut browser = Firefox::with("user_pref(\"javascript.enabled\", false);\n");
    browser.visit(&shop.url("/thanks"));
    let record = events(&site, 1).remove(0);
    assert_eq!((&record["value"], &record["source"]), (&json!("0.01"), &json!("offsite_event")));
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn firefoxs_own_privacy_control_is_honoured() {
    let site = Site::new("[privacy]\nbrowser_id = \"on\"\n[cookie]\ndomain = \"shop.localhost\"");
    site.reconfigure(super::gateway::PIXEL, ID);
    let gateway = site.start();
    let shop = Shop::open(&site, &[("/app", "", &format!("{STUB}{TAG}"))]);
    let mut browser = Firefox::with(
        "user_pref(\"privacy.globalprivacycontrol.enabled\", true);\n\
         user_pref(\"privacy.globalprivacycontrol.functionality.enabled\", true);\n",
    );
    browser.visit(&shop.url("/app?fbclid=IwAR1"));
    browser.run(&format!("document.cookie = '_fbp=fb.1.1596403881668.1116446470'; pixelgate('track', '{ID}')"));
    let record = events(&site, 1).remove(0);
    assert_eq!((&record["gpc"], &record["page_url"]), (&json!(true), &json!(shop.url("/app"))));
    assert!(record["fbp"].is_null() && record["browser_id"].is_null(), "{record}");
    assert_eq!(
        browser.run("return document.cookie"),
        "_fbp=fb.1.1596403881668.1116446470",
        "its own, and none of ours"
    );
    assert_eq!(gateway.stop(), Some(0));
}
