//! What is peculiar to `/tr`, the endpoint of `fbq` and `_fbq`: its names for things that have names already.

use std::borrow::Cow;

use super::parse::{lossy, percent_decode};

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
