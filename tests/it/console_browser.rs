//! The console in a real Chromium: hostile text stays text, a token is asked for and kept in the tab, keys are enough.

use serde_json::{Value, json};

use super::browser::Browser;
use super::client::Client;
use super::gateway::{PIXEL, Site};

/// Text that would run if it were taken for markup.
const HOSTILE: &str = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>";

fn fire(site: &Site, query: &str, headers: &str) {
    let mut client = Client::connect(site.public).unwrap();
    client.send(format!("GET /offsite_event.php?{query} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes()).unwrap();
    client.reply().unwrap();
}

fn text(browser: &Browser, selector: &str) -> String {
    let found = browser.run(&format!("return document.querySelector('{selector}').innerText"));
    found.as_str().unwrap_or_default().to_owned()
}

/// Types into what has the focus.
fn press(browser: &Browser, keys: &str) {
    for key in keys.chars() {
        let (name, code) = match key {
            '\n' => ("Enter".to_owned(), 13),
            '\t' => ("Tab".to_owned(), 9),
            letter => (letter.to_string(), 0),
        };
        let typed = if key == '\t' { String::new() } else { key.to_string().replace('\n', "\r") };
        let down = json!({"type": "keyDown", "key": name, "text": typed, "windowsVirtualKeyCode": code});
        browser.devtools("Input.dispatchKeyEvent", &down);
        let up = json!({"type": "keyUp", "key": name, "windowsVirtualKeyCode": code});
        browser.devtools("Input.dispatchKeyEvent", &up);
    }
}

#[test]
fn what_visitors_and_pages_send_is_shown_as_text() {
    let site = Site::new("[privacy]\nurl_query = \"keep\"\n");
    let name = serde_json::to_string(HOSTILE).unwrap();
    site.reconfigure("pixels = [", &format!("pixels = [{{ id = \"7\", name = {name} }}, "));
    let gateway = site.start();
    let browser = Browser::start();
    browser.visit(&format!("http://127.0.0.1:{}/", site.ops.port()));
    browser.wait("document.querySelector('#live-state').textContent.indexOf('Listening') === 0");
    let encoded: String = form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
    fire(&site, &format!("id=7&ev={encoded}&dl={encoded}&rl=https%3A%2F%2Fa.example%2F%3F{encoded}&x={encoded}"), "");
    fire(&site, &format!("id=999&dl={encoded}"), &format!("Referer: https://a.example/?{HOSTILE}\r\n"));
    browser.wait("document.querySelectorAll('#events > li').length === 2");
    let shown = text(&browser, "#events");
    assert!(shown.contains(HOSTILE), "{shown}");
    assert!(shown.contains("unknown_pixel – No pixel has this id"), "{shown}");
    browser.wait("document.querySelectorAll('#pixels tr').length === 2");
    assert!(text(&browser, "#pixels").contains(HOSTILE));
    assert_eq!(browser.run("return document.querySelectorAll('main img, main script').length"), 0);
    assert_eq!(browser.run("return document.title"), "pixelgate");
    // Everything on the page came from the gateway.
    let outside =
        "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith(location.origin)).length";
    assert_eq!(browser.run(outside), 0);
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_pixel_is_made_with_the_keyboard_and_a_token_that_stays_in_the_tab() {
    let site = Site::new("");
    let gateway = site.start();
    let token = std::fs::read_to_string(site.data().join("management-token")).unwrap();
    let browser = Browser::start();
    browser.visit(&format!("http://127.0.0.1:{}/", site.ops.port()));
    browser.wait("document.querySelectorAll('#pixels tr').length === 1");
    browser.run("document.querySelector('#new-pixel').focus()");
    press(&browser, "\n");
    browser.wait("document.querySelector('#create').open");
    press(&browser, "8\tMy new page\t\t\n");
    // Creating needs a token on this machine, too; then it goes on by itself.
    browser.wait("document.querySelector('#sign-in').open");
    press(&browser, "wrong\n");
    browser.wait("document.querySelector('#sign-in-error').textContent.indexOf('unknown') > 0");
    browser.run("document.querySelector('#token').value = ''");
    press(&browser, &format!("{}\n", token.trim()));
    browser.wait("document.querySelector('#snippet').open");
    let snippet = browser.run("return document.querySelector('#snippet-text').value");
    assert!(snippet.as_str().unwrap().contains("<!-- Facebook Conversion Code for My new page -->"), "{snippet}");
    assert_eq!(browser.run("return sessionStorage.length + localStorage.length + document.cookie.length"), 1);
    let copying = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    browser.devtools("Browser.grantPermissions", &copying);
    browser.run("document.querySelector('#snippet-copy').focus()");
    press(&browser, "\n");
    browser.wait("document.querySelector('#snippet').textContent.indexOf('Copied.') > 0");
    browser.run("navigator.clipboard.readText().then(text => window.pasted = text)");
    browser.wait("window.pasted");
    assert_eq!(browser.run("return window.pasted"), snippet);
    browser.run("document.querySelector('#snippet-close').click()");
    browser.wait("document.querySelectorAll('#pixels tr').length === 2");
    // Another tab has to ask again.
    let first = browser.open_tab();
    browser.visit(&format!("http://127.0.0.1:{}/", site.ops.port()));
    assert_eq!(browser.run("return sessionStorage.length"), 0);
    browser.close_tab(&first);
    // Ids are random, and so is the order of pixels without events.
    let row = "[...document.querySelectorAll('#pixels tr')].find(row => row.textContent.startsWith('Checkout'))";
    // The next refresh of the page takes the words away.
    browser.run(
        "var state = document.querySelector('#pixels-state'); new MutationObserver(function () {
         if (state.textContent.indexOf('accepted, record') > 0) window.tried = 1; })
         .observe(state, {childList: true, characterData: true, subtree: true});",
    );
    browser.run(&format!("{row}.querySelectorAll('button')[3].click()"));
    browser.wait("window.tried");
    assert_eq!(gateway.stop(), Some(0));
    let records = String::from_utf8(site.run(&["journal", "export"]).stdout).unwrap();
    let record: Value = serde_json::from_str(records.trim()).unwrap();
    assert_eq!((record["test"].as_bool(), record["pixel_id"].as_str()), (Some(true), Some(PIXEL)));
}

#[test]
fn who_gives_no_token_is_told_what_is_missing_and_can_give_it_later() {
    let site = Site::new("");
    // Not by the machine's own name: then everybody needs a token.
    site.reconfigure(&format!("listen = \"{}\"", site.ops), &format!("listen = \"0.0.0.0:{}\"", site.ops.port()));
    let gateway = site.start();
    let token = std::fs::read_to_string(site.data().join("management-token")).unwrap();
    let browser = Browser::start();
    browser.visit(&format!("http://127.0.0.1:{}/", site.ops.port()));
    browser.wait("document.querySelector('#sign-in').open");
    browser.run("document.querySelector('#sign-in-cancel').click()");
    browser.wait("document.querySelector('#live-state').textContent.indexOf('need a management token') > 0");
    browser.run("document.querySelector('#live-state button').focus()");
    press(&browser, "\n");
    browser.wait("document.querySelector('#sign-in').open");
    press(&browser, &format!("{}\n", token.trim()));
    browser.wait("document.querySelector('#live-state').textContent.indexOf('Listening') === 0");
    fire(&site, &format!("id={PIXEL}"), "");
    browser.wait("document.querySelectorAll('#events > li').length === 1");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn it_shows_lag_fill_kafka_and_duplicates() {
    let site = Site::new("[kafka]\nbrokers = [\"127.0.0.1:1\"]\n");
    let gateway = site.start();
    for _ in 0..2 {
        fire(&site, &format!("id={PIXEL}&eid=a"), "");
    }
    let browser = Browser::start();
    browser.visit(&format!("http://127.0.0.1:{}/", site.ops.port()));
    let mut shown = String::new();
    super::gateway::until_or(
        || format!("the figures: {:?}", text(&browser, "#figures")),
        || {
            shown = text(&browser, "#figures");
            ["Duplicates", "50.0 %", "blocked", "no broker answers", "Lag", "oldest waits"]
                .iter()
                .all(|word| shown.contains(word))
        },
    );
    assert!(browser.run("return document.querySelectorAll('#figures meter').length").as_u64() > Some(0), "{shown}");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn it_is_readable_on_a_phone() {
    let site = Site::new("");
    let gateway = site.start();
    let browser = Browser::start();
    let phone = json!({"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true});
    browser.devtools("Emulation.setDeviceMetricsOverride", &phone);
    browser.visit(&format!("http://127.0.0.1:{}/", site.ops.port()));
    browser.wait("document.querySelectorAll('#pixels tr').length === 1");
    browser.wait("document.querySelector('#live-state').textContent.indexOf('Listening') === 0");
    fire(&site, &format!("id={PIXEL}&dl=https%3A%2F%2Fa.example%2F{}", "x".repeat(600)), "");
    browser.wait("document.querySelectorAll('#events > li').length === 1");
    assert_eq!(browser.run("return document.documentElement.scrollWidth"), 360, "nothing is wider than the screen");
    let small = "return [...document.querySelectorAll('main button, main input[type=search]')]
        .filter(e => e.offsetParent && e.getBoundingClientRect().height < 32).length";
    assert_eq!(browser.run(small), 0, "fingers hit every button");
    let outside = "return [...document.querySelectorAll('main button')]
        .filter(e => e.offsetParent && e.getBoundingClientRect().right > 360).length";
    assert_eq!(browser.run(outside), 0, "no button is cut off");
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_pixels_diagnostics_say_why_and_trials_are_seen() {
    let site = Site::new(&format!("[pixels.\"{PIXEL}\"]\norigins = [\"shop.example\", \"none\"]\n"));
    let gateway = site.start();
    let token = std::fs::read_to_string(site.data().join("management-token")).unwrap();
    let browser = Browser::start();
    let phone = json!({"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true});
    browser.devtools("Emulation.setDeviceMetricsOverride", &phone);
    let dark = json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]});
    browser.devtools("Emulation.setEmulatedMedia", &dark);
    browser.visit(&format!("http://127.0.0.1:{}/", site.ops.port()));
    browser.wait("document.querySelector('#live-state').textContent.indexOf('Listening') === 0");
    browser.run("document.querySelector('#only-trials').click()");
    fire(&site, &format!("id={PIXEL}&value=1&currency=EUR"), "");
    fire(&site, &format!("id={PIXEL}&test=1&value=2"), "");
    // Refused, with text that would run if it were taken for markup.
    let encoded: String = form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
    let query = format!("id={PIXEL}&x={encoded}");
    fire(&site, &query, &format!("Origin: https://evil.example\r\nUser-Agent: {HOSTILE}\r\n"));
    browser.wait("document.querySelectorAll('#events > li').length > 0");
    let live = text(&browser, "#events");
    assert!(live.contains("trial") && !live.contains("EUR") && !live.contains("rejected"), "{live}");
    browser.wait("document.querySelectorAll('#pixels tr').length === 1");
    // By keyboard alone: the button, the token that management asks for, the dialog, and out of it.
    browser.run("document.querySelectorAll('#pixels tr')[0].querySelectorAll('button')[1].focus()");
    press(&browser, "\n");
    browser.wait("document.querySelector('#sign-in').open");
    press(&browser, &format!("{}\n", token.trim()));
    browser.wait("document.querySelector('#diagnostics').open");
    super::gateway::until("what workers noted has come together", || {
        browser.run("document.querySelector('#diagnostics-again').focus()");
        press(&browser, "\n");
        let facts = text(&browser, "#diagnostics-facts");
        facts.contains("2, 1 of them trials") && facts.contains("1 × origin_not_allowed – The page is not among")
    });
    let facts = text(&browser, "#diagnostics-facts");
    assert!(facts.contains("Active") && facts.contains("1 × missing_currency"), "{facts}");
    assert_eq!(browser.run("return document.querySelectorAll('#hours tr').length"), 1);
    assert_eq!(browser.run("return document.querySelectorAll('main img, dialog img, dialog script').length"), 0);
    assert_eq!(browser.run("return document.title"), "pixelgate");
    assert_eq!(browser.run("return document.documentElement.scrollWidth"), 360, "nothing is wider than the screen");
    let background = browser.run("return getComputedStyle(document.querySelector('#diagnostics')).backgroundColor");
    assert_eq!(background, "rgb(27, 32, 39)", "it is dark where the rest is");
    super::gateway::until("it closes", || {
        // An answer that is late opens it again.
        press(&browser, "\t\n");
        browser.run("return !document.querySelector('#diagnostics').open") == true
    });
    assert_eq!(gateway.stop(), Some(0));
}
