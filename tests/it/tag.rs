//! The tags as they are served: small, cached, checked by their integrity, and only where they are said to be.

use std::io::Read;

use flate2::read::GzDecoder;
use sha2::{Digest, Sha384};

use super::client::{Client, Reply};
use super::gateway::Site;

fn get(site: &Site, target: &str, lines: &[&str]) -> Reply {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let mut client = Client::connect(site.public).unwrap();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: gateway.test\r\n{lines}\r\n").as_bytes()).unwrap();
    client.reply().unwrap()
}

#[test]
fn tags_are_cached_and_packed() {
    let site = Site::new("[tag]\nloader_path = \"/assets/shop.js\"");
    let gateway = site.start();
    let paths = ["/fp.js", "/en_US/fp.js", "/fbds.js", "/pt_BR/fbds.js", "/assets/shop.js"];
    for path in paths {
        let plain = get(&site, path, &[]);
        let packed = get(&site, path, &["Accept-Encoding: br, gzip;q=0.8"]);
        let mut unpacked = Vec::new();
        GzDecoder::new(&packed.body[..]).read_to_end(&mut unpacked).unwrap();
        assert!(packed.body.len() <= 2048 && unpacked == plain.body, "{path}");
        assert_eq!((packed.header("content-encoding"), plain.header("content-encoding")), (Some("gzip"), None));
        assert_ne!(packed.header("etag"), plain.header("etag"), "they are different bytes");
        for reply in [&plain, &packed] {
            assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/javascript; charset=utf-8")));
            assert_eq!(reply.header("vary"), Some("Accept-Encoding"));
            assert_eq!(reply.header("cache-control"), Some("public, max-age=3600, stale-while-revalidate=86400"));
            assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
            assert_eq!(reply.header("cross-origin-resource-policy"), Some("cross-origin"));
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        }
        let etag = packed.header("etag").unwrap();
        for known in [format!("If-None-Match: {etag}"), format!("If-None-Match: \"x\", W/{etag}")] {
            let again = get(&site, path, &["Accept-Encoding: gzip", &known]);
            assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, Some(etag)), "{path}");
        }
        let refused = get(&site, path, &["Accept-Encoding: gzip;q=0", &format!("If-None-Match: {etag}")]);
        assert_eq!((refused.status, refused.body), (200, plain.body));
        let mut client = Client::connect(site.public).unwrap();
        assert_eq!(client.post(path, "text/plain", "x").unwrap().status, 405);
    }
    for path in ["/site.js", "/en_US/assets/shop.js", "/en/fp.js"] {
        assert_eq!(get(&site, path, &[]).status, 404, "{path}");
    }
    assert_eq!(
        gateway.metric(r#"http_request_duration_seconds_count{route="fp_js",method="POST",status_class="4xx"}"#),
        Some(5.0)
    );
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn a_page_may_pin_a_version() {
    let site = Site::with_server("public_url = \"https://px.example.com/a\"", "");
    let gateway = site.start();
    let printed = site.run(&["tag", "integrity"]);
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).unwrap();
    let lines: Vec<(&str, &str)> = printed.lines().map(|line| line.split_once('\t').unwrap()).collect();
    assert_eq!(lines.len(), 3, "{printed}");
    for (url, integrity) in lines {
        let target = url.strip_prefix("https://px.example.com/a").unwrap();
        let reply = get(&site, target, &[]);
        assert_eq!(reply.header("cache-control"), Some("public, max-age=31536000, immutable"), "{target}");
        assert_eq!(integrity, format!("sha384-{}", openssl::base64::encode_block(&Sha384::digest(&reply.body))));
        // Of another version there is nothing to be kept.
        let other = get(&site, &format!("{target}0"), &[]);
        assert_eq!((other.status, other.header("cache-control").unwrap().contains("immutable")), (200, false));
    }
    assert_eq!(gateway.stop(), Some(0));
}

#[test]
fn the_loader_takes_no_place_that_is_taken() {
    for path in ["/fp.js", "/fbevents.js", "/offsite_event", "//x.js", "/{a}.js"] {
        let site = Site::new(&format!("[tag]\nloader_path = \"{path}\""));
        let checked = site.run(&["check"]);
        let told = String::from_utf8(checked.stdout).unwrap();
        assert!(checked.status.code() == Some(2) && told.starts_with("tag.loader_path: "), "{path}: {told}");
    }
}

/// Old browsers buy, too: what is served is ES5 by acorn, the parser that bundlers use.
#[cfg(feature = "e2e")]
mod es5 {
    use std::fs;
    use std::process::Command;

    use super::super::gateway::output;
    use super::super::tools::node;
    use super::*;

    const PROGRAM: &str =
        "require('acorn').parse(require('fs').readFileSync(process.argv[1], 'utf8'), {ecmaVersion: 5});";

    fn parses(source: &[u8]) -> Result<(), String> {
        let place = node("acorn@8.15.0");
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = dir.path().join("tag.js");
        fs::write(&file, source).unwrap();
        let mut command = Command::new("node");
        command.current_dir(place).args(["-e", PROGRAM]).arg(file);
        let said = output(command);
        if said.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said.stderr).into_owned()) }
    }

    #[test]
    fn tags_are_read_by_old_browsers() {
        for newer in ["let a = 1;", "var a = (b) => b;", "var a = `b`;", "var a = {b};", "for (var a of []) a();"] {
            assert!(parses(newer.as_bytes()).is_err_and(|why| why.contains("SyntaxError")), "{newer}");
        }
        let site = Site::new("[tag]\nloader_path = \"/assets/shop.js\"");
        let gateway = site.start();
        for path in ["/fp.js", "/fbds.js", "/assets/shop.js"] {
            parses(&get(&site, path, &[]).body).unwrap_or_else(|why| panic!("{path}: {why}"));
        }
        assert_eq!(gateway.stop(), Some(0));
    }
}
