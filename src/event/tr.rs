//! What is peculiar to `/tr`, the endpoint of `fbq` and `_fbq`: its names for things that have names already.

use std::borrow::Cow;

use super::parse::{self, lossy, percent_decode};
use super::rejection::Rejection;
use super::{Body, RawEvent, Source};

/// Most events of a batch.
pub const MAX_BATCH: usize = 32;

/// A member of custom data as the page named it. Its name is percent-encoded within the brackets; a form's own coding
/// is another layer around that, which multipart bodies don't have.
pub(super) fn custom_name(name: &str) -> Option<String> {
    (name.starts_with("cd[") && name.contains('%')).then(|| lossy(&percent_decode(name.as_bytes())).into_owned())
}

/// Gives pairs the names that they have elsewhere: `cd[value]` and `cd[currency]` stand in for `value` and `currency`,
/// and digits as the event's name, without an `id` or with `null`, are an old conversion pixel's id.
pub(super) fn rename(pairs: &mut Vec<(Cow<'_, str>, Cow<'_, str>)>) {
    let at = |pairs: &[(Cow<'_, str>, _)], wanted: &str| pairs.iter().position(|(name, _)| name == wanted);
    for (nested, plain) in [("cd[value]", "value"), ("cd[currency]", "currency")] {
        if let (Some(nested), None) = (at(pairs, nested), at(pairs, plain)) {
            pairs[nested].0 = Cow::Borrowed(plain);
        }
    }
    let id = at(pairs, "id");
    let is_null = id.is_none_or(|id| pairs[id].1 == "null");
    if let (true, Some(ev)) = (is_null, at(pairs, "ev"))
        && pairs[ev].1.bytes().all(|byte| byte.is_ascii_digit())
    {
        pairs[ev].0 = Cow::Borrowed("id");
        if let Some(id) = id {
            pairs.remove(id);
        }
    }
}

/// The events of a batch in order, each a query string: `batch=1` and `events[0]`, `events[1]` and so on. `None` if the
/// request is none.
pub fn batch<'a>(raw: &RawEvent<'a>) -> Option<Result<Vec<Cow<'a, str>>, Rejection>> {
    let has = |bytes: &[u8]| memchr::memmem::find(bytes, b"batch").is_some();
    let body = match raw.body {
        Body::None => &[],
        Body::Form(bytes) | Body::Multipart(bytes, _) | Body::Json(bytes) | Body::Text(bytes) => bytes,
    };
    if raw.route != Source::Tr || !(has(raw.query) || has(body)) {
        return None;
    }
    // A body that can't be read is refused as any event's.
    let pairs = parse::pairs(raw).ok()?;
    if !pairs.iter().any(|(name, text)| name == "batch" && text == "1") {
        return None;
    }
    let mut events: Vec<(usize, Cow<'a, str>)> = pairs.into_iter().filter_map(numbered).collect();
    if events.is_empty() {
        return Some(Err(Rejection::MalformedBody));
    }
    if events.len() > MAX_BATCH {
        return Some(Err(Rejection::BodyTooLarge));
    }
    events.sort_by_key(|(number, _)| *number);
    Some(Ok(events.into_iter().map(|(_, event)| event).collect()))
}

fn numbered<'a>((name, event): (Cow<'a, str>, Cow<'a, str>)) -> Option<(usize, Cow<'a, str>)> {
    Some((name.strip_prefix("events[")?.strip_suffix(']')?.parse().ok()?, event))
}
