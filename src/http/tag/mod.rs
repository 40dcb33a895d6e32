//! The tags that pages load: their texts, made small once, and how they are served.
//!
//! Three files with one core: `fp.js` (`fb_param`), `fbds.js` (`_fbq`), and a loader for `fbq` under a name of the
//! operator's. Each is in memory twice, plain and gzipped.

mod minify;

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;

use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256, Sha384};

const CORE: &str = include_str!("core.js");
/// Lets Chromium (136 and later) compile all functions beside the page's main thread, while the file comes, rather than
/// each one on it when it is first called, as most are at once. A comment to all others. Source: V8's blog, "Giving V8
/// a Heads-Up: Faster JavaScript Startup with Explicit Compile Hints". The loader, with its longer text, has no room
/// for it in two kilobytes.
const COMPILE_AHEAD: &str = "//# allFunctionsCalledOnLoad\n";
/// The file of the old conversion pixel.
pub const FP: &str = "/fp.js";
/// The file of `_fbq`.
pub const FBDS: &str = "/fbds.js";

/// A page that names the version may keep it for ever: another version has another URL.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
/// Others ask again after an hour, and are told in a word when nothing has changed.
const AN_HOUR: &str = "public, max-age=3600, stale-while-revalidate=86400";

/// One file.
#[derive(Clone, Debug)]
pub struct Tag {
    /// Its own path; `fp.js` and `fbds.js` are also below `/en_US` and other locales.
    pub path: String,
    /// Eight digits that change with the text.
    pub version: String,
    /// The value of `integrity` (Subresource Integrity).
    pub integrity: String,
    plain: Bytes,
    gzip: Bytes,
}

impl Tag {
    fn new(path: &str, source: &str) -> Tag {
        let small = minify::minify(&format!("(function () {{\n{CORE}\n{source}\n}})();\n"));
        let ahead = if path == FP || path == FBDS { COMPILE_AHEAD } else { "" };
        let text = format!("{ahead}{small}").replace("{path}", path);
        let mut version = String::new();
        for byte in &Sha256::digest(&text)[..4] {
            // Writing to a text can't fail.
            let _ = write!(version, "{byte:02x}");
        }
        let mut packer = GzEncoder::new(Vec::new(), Compression::best());
        let gzip = packer.write_all(text.as_bytes()).and_then(|()| packer.finish());
        Tag {
            path: path.to_owned(),
            version,
            integrity: format!("sha384-{}", openssl::base64::encode_block(&Sha384::digest(&text))),
            plain: text.into(),
            gzip: gzip.expect("writing to memory doesn't fail").into(),
        }
    }

    /// The paths that it is served at, as actix's patterns.
    pub fn patterns(&self) -> Vec<String> {
        let mut patterns = vec![self.path.clone()];
        if self.path == FP || self.path == FBDS {
            patterns.push(format!("/{{locale:[a-z][a-z]_[A-Z][A-Z]}}{}", self.path));
        }
        patterns
    }

    /// Answers a request for it.
    pub fn reply(&self, request: &HttpRequest) -> HttpResponse {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return HttpResponse::MethodNotAllowed().insert_header((header::ALLOW, "GET, HEAD")).finish();
        }
        let headers = request.headers();
        let packed = takes_gzip(headers);
        // A strong validator names bytes, so each form has its own.
        let etag = format!("\"{}{}\"", self.version, if packed { "-gz" } else { "" });
        let is_known = headers.get_all(header::IF_NONE_MATCH).any(|value| names(value, &etag));
        let pinned = request.query_string().strip_prefix("v=") == Some(&self.version);
        let mut reply = HttpResponse::build(if is_known { StatusCode::NOT_MODIFIED } else { StatusCode::OK });
        reply
            .insert_header((header::ETAG, etag))
            .insert_header((header::CACHE_CONTROL, if pinned { FOR_EVER } else { AN_HOUR }))
            .insert_header((header::VARY, "Accept-Encoding"))
            // So that pages may check its integrity, isolate themselves, and see what it took.
            .insert_header((header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"))
            .insert_header(("cross-origin-resource-policy", "cross-origin"))
            .insert_header(("timing-allow-origin", "*"))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
        if is_known {
            return reply.finish();
        }
        reply.insert_header((header::CONTENT_TYPE, "text/javascript; charset=utf-8"));
        if packed {
            reply.insert_header((header::CONTENT_ENCODING, "gzip"));
        }
        reply.body(if packed { self.gzip.clone() } else { self.plain.clone() })
    }
}

/// All tags of a gateway, which has the loader at `tag.loader_path`.
pub fn tags(loader_path: &str) -> Vec<Arc<Tag>> {
    let files =
        [(FP, include_str!("fp.js")), (FBDS, include_str!("fbds.js")), (loader_path, include_str!("loader.js"))];
    files.into_iter().map(|(path, source)| Arc::new(Tag::new(path, source))).collect()
}

/// The loader has its path in its text, which must stay within 2 KB, gzipped.
const MAX_LOADER_BYTES: usize = 24;

/// Whether a path can be the loader's: nothing else is there, and no filter list has a rule for its name.
pub fn is_loader_path(path: &str) -> bool {
    const TAKEN: [&str; 7] = [
        "fp.js",
        "fbds.js",
        "fbevents.js",
        "fbevents.min.js",
        "facebook-pixel.js",
        "facebook-pixel-worker.js",
        "facebookpixel.js",
    ];
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-');
    let name = path.rsplit('/').next().unwrap_or_default();
    path.len() <= MAX_LOADER_BYTES
        && path.starts_with('/')
        && path.ends_with(".js")
        && name.len() > 3
        && path.bytes().all(plain)
        && !path.contains("//")
        && !path.contains("..")
        && !path.starts_with("/offsitepixels/")
        && !TAKEN.contains(&name.to_ascii_lowercase().as_str())
}

/// Whether `Accept-Encoding` has gzip and doesn't refuse it.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// Whether `If-None-Match` names a tag, weakly or not, or any.
fn names(value: &HeaderValue, etag: &str) -> bool {
    let Ok(value) = value.to_str() else { return false };
    value.split(',').map(str::trim).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tag_is_small() {
        // As long as may be, and as little like anything else.
        let long = tags("/qXz7/w_Kj3-Vb9QpYh5Z.js").pop();
        assert_eq!(long.as_ref().unwrap().path.len(), MAX_LOADER_BYTES);
        for tag in tags("/site.js").into_iter().chain(long) {
            println!("{}: {} bytes, {} gzipped", tag.path, tag.plain.len(), tag.gzip.len());
            assert!(tag.gzip.len() <= 2048, "{}: {} bytes", tag.path, tag.gzip.len());
        }
    }

    #[test]
    fn a_version_names_its_text() {
        let (first, second) = (tags("/a.js"), tags("/b.js"));
        assert_eq!(first[0].version, second[0].version);
        assert_ne!(first[2].version, second[2].version, "its path is in it");
        assert!(first[0].integrity.starts_with("sha384-") && first[0].integrity.len() == 7 + 64);
    }

    #[test]
    fn a_loader_is_where_nothing_else_is() {
        for good in ["/site.js", "/assets/shop-2.js", "/en_US/site.js"] {
            assert!(is_loader_path(good), "{good}");
        }
        let bad = ["", "site.js", "/site", "/.js", "/fp.js", "/en_US/fp.js", "/x/FBEVENTS.js", "/a//b.js", "/a{b}.js"];
        for bad in bad.into_iter().chain(["/offsitepixels/a.js", "/../a.js", "/a.js?b", "/ä.js"]) {
            assert!(!is_loader_path(bad), "{bad}");
        }
    }
}
