//! What this gateway learns from a reply that passes through: told by the request, read from a bounded copy.
//!
//! A request that names an ad account twice teaches nothing: the upstream may have read the other one.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use bytes::Bytes;
use flate2::read::GzDecoder;

use super::presented;
use super::wire::Params;
use crate::pixel::{Pixel, PixelId};
use crate::registry::{Registry, lessons, tokens};
use crate::upstream::{Call, HeaderMap, Method, header};

/// Longest reply that is read, packed or not. What is longer is left to the sync.
const COPY_MAX_BYTES: usize = 16 << 20;
/// Longest time that a reply's end waits for the store.
const STORE: Duration = Duration::from_secs(5);

/// What a reply would be about.
enum Subject {
    List { ad_account: String },
    Single,
    Deleted { id: PixelId },
    Created { ad_account: String, name: Option<String>, tag: Option<String> },
}

/// One reply's lesson.
pub(super) struct Lesson {
    registry: Arc<Registry>,
    subject: Subject,
    /// The request may teach whatever the account.
    trusted: bool,
    packed: bool,
    copy: Vec<u8>,
    too_long: bool,
}

impl Lesson {
    /// What the reply to a call may teach, if anything.
    pub(super) fn of(registry: &Arc<Registry>, call: &Call) -> Option<Lesson> {
        let subject = subject(call)?;
        let authorization = call.headers.get(header::AUTHORIZATION);
        let token = authorization.and_then(|value| presented(value.as_bytes())).map(tokens::hash);
        let trusted = registry.teaches(None, token.as_ref());
        let may = match &subject {
            Subject::List { ad_account } | Subject::Created { ad_account, .. } => {
                trusted || registry.teaches(Some(ad_account), None)
            }
            // Their account is not told: what is known already may be told anew.
            Subject::Single | Subject::Deleted { .. } => true,
        };
        let (registry, copy) = (Arc::clone(registry), Vec::new());
        may.then_some(Lesson { registry, subject, trusted, packed: false, copy, too_long: false })
    }

    /// Whether the reply with this head teaches.
    pub(super) fn begins(&mut self, status: u16, headers: &HeaderMap) -> bool {
        let coding = headers.get(header::CONTENT_ENCODING).map(|coding| coding.as_bytes().to_ascii_lowercase());
        self.packed = coding.as_deref() == Some(b"gzip");
        match self.subject {
            Subject::Deleted { .. } => matches!(status, 200 | 204),
            _ => status == 200 && (self.packed || coding.is_none_or(|coding| coding == b"identity")),
        }
    }

    /// Whether the head of its reply is all of it, so that it waits for what is learnt.
    pub(super) fn is_in_the_head(&self) -> bool {
        matches!(self.subject, Subject::Deleted { .. })
    }

    /// Takes a copy of the next bytes.
    pub(super) fn take(&mut self, bytes: &Bytes) {
        self.too_long |= self.copy.len() + bytes.len() > COPY_MAX_BYTES;
        if self.too_long {
            self.copy = Vec::new();
        } else {
            self.copy.extend_from_slice(bytes);
        }
    }

    /// Learns. Returns when the pixels are known, or can't be soon.
    pub(super) async fn finish(self) {
        if self.too_long {
            return;
        }
        let learnt = tokio::time::timeout(STORE, web::block(move || self.learn()));
        if !matches!(learnt.await, Ok(Ok(()))) {
            tracing::warn!("a reply's pixels were not learnt in time");
        }
    }

    fn learn(self) {
        let Some(pixels) = self.read() else {
            return tracing::debug!("a reply of registry.upstream says nothing of pixels");
        };
        if let Err(error) = self.registry.learn(pixels) {
            tracing::warn!(%error, "a reply's pixels could not be learnt");
        }
    }

    fn read(&self) -> Option<Vec<Pixel>> {
        if let Subject::Deleted { id } = self.subject {
            // Refused from now on; the sync forgets it, or keeps it if its authority says that it is only archived.
            let pixel = self.registry.find(id)?.pixel.clone();
            let may = self.trusted || self.registry.teaches(pixel.ad_account_id.as_deref(), None);
            return may.then(|| vec![Pixel { archived: true, ..pixel }]);
        }
        let mut unpacked = Vec::new();
        let body = if self.packed {
            // One more than allowed shows that there is more.
            let most = COPY_MAX_BYTES as u64 + 1;
            GzDecoder::new(&self.copy[..]).take(most).read_to_end(&mut unpacked).ok()?;
            (unpacked.len() <= COPY_MAX_BYTES).then_some(&unpacked[..])?
        } else {
            &self.copy[..]
        };
        match &self.subject {
            Subject::Deleted { .. } => None,
            Subject::List { ad_account } => lessons::list(body, ad_account),
            Subject::Single => {
                let pixel = lessons::single(body)?;
                let known = self.registry.find(pixel.id);
                let account = known.as_ref().and_then(|entry| entry.pixel.ad_account_id.as_deref());
                (self.trusted || self.registry.teaches(account, None)).then(|| vec![pixel])
            }
            Subject::Created { ad_account, name, tag } => {
                let id = lessons::created(body)?;
                Some(vec![lessons::pixel(id, name.as_deref(), tag.as_deref(), Some(ad_account))])
            }
        }
    }
}

fn subject(call: &Call) -> Option<Subject> {
    let mut query = Params::default();
    query.read_form(call.target.query().unwrap_or_default().as_bytes()).ok()?;
    let id = call.target.path().strip_prefix("/offsitepixels/");
    if let Some(id) = id {
        let id = PixelId::parse(id.as_bytes())?;
        return match call.method {
            Method::GET if call.body.is_empty() => Some(Subject::Single),
            Method::PUT => Some(Subject::Single),
            Method::DELETE => Some(Subject::Deleted { id }),
            _ => None,
        };
    }
    if call.method == Method::GET && call.body.is_empty() && !query.repeated {
        return Some(Subject::List { ad_account: query.fb_ad_account_id? });
    }
    if call.method != Method::POST {
        return None;
    }
    // Over those of the query, so that a second account shows.
    let mut params = query;
    let kind = call.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        _ if call.body.is_empty() => {}
        "application/json" => params.read_json(&call.body).ok()?,
        "application/x-www-form-urlencoded" => params.read_form(&call.body).ok()?,
        _ => return None,
    }
    let Params { fb_ad_account_id, name, tag, repeated, .. } = params;
    (!repeated).then_some(Subject::Created { ad_account: fb_ad_account_id?, name, tag })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::HeaderValue;

    fn told(method: Method, target: &str, kind: &str, body: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
        let body = Bytes::copy_from_slice(body.as_bytes());
        match subject(&Call { method, target: target.parse().unwrap(), headers, body }) {
            None => "nothing".into(),
            Some(Subject::Single) => "one".into(),
            Some(Subject::Deleted { id }) => format!("no {id}"),
            Some(Subject::List { ad_account }) => format!("list {ad_account}"),
            Some(Subject::Created { ad_account, name, .. }) => format!("new {ad_account} {}", name.unwrap_or_default()),
        }
    }

    #[test]
    fn requests_tell_what_their_replies_are_about() {
        let form = "application/x-www-form-urlencoded; charset=utf-8";
        let check = |method: Method, target, body, expected: &str| {
            assert_eq!(told(method, target, form, body), expected, "{target} {body}");
        };
        check(Method::GET, "/offsitepixels?fb_ad_account_id=9", "", "list 9");
        check(Method::GET, "/offsitepixels?fb_ad_account_id=9&fb_ad_account_id=9", "", "list 9");
        check(Method::GET, "/offsitepixels?fb_ad_account_id=9&fb_ad_account_id=8", "", "nothing");
        check(Method::GET, "/offsitepixels?fb_ad_account_id=9&fb_ad_account%5Fid=8", "", "nothing");
        check(Method::GET, "/offsitepixels?fb_ad_account_id=9", "fb_ad_account_id=8", "nothing");
        check(Method::GET, "/offsitepixels", "", "nothing");
        check(Method::GET, "/offsitepixels/7", "", "one");
        check(Method::HEAD, "/offsitepixels?fb_ad_account_id=9", "", "nothing");
        check(Method::PUT, "/offsitepixels/7", "name=x", "one");
        check(Method::DELETE, "/offsitepixels/7", "", "no 7");
        check(Method::POST, "/offsitepixels/7", "name=x", "nothing");
        check(Method::POST, "/offsitepixels", "fb_ad_account_id=9&name=A+b", "new 9 A b");
        check(Method::POST, "/offsitepixels?fb_ad_account_id=8", "fb_ad_account_id=9&name=A", "nothing");
        let json =
            told(Method::POST, "/offsitepixels", "application/json", "{\"fb_ad_account_id\": 9, \"name\": \"x\"}");
        assert_eq!(json, "new 9 x");
        assert_eq!(told(Method::POST, "/offsitepixels", "multipart/form-data", "x"), "nothing");
    }
}
