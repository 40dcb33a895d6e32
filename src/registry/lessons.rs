//! What an upstream's replies say of pixels. Pure: bytes in, pixels out; anything in doubt says nothing.

use serde::Deserialize;

use crate::pixel::{Pixel, PixelId};

/// Bounds of what goes into every record, far above what the published API allows.
const NAME_CHARS_MAX: usize = 255;
const TAG_CHARS_MAX: usize = 100;

#[derive(Deserialize)]
struct Row {
    id: Id,
    name: Option<String>,
    tag: Option<String>,
    /// `true` from a pixelgate authority; anything else says nothing.
    archived: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Created {
    id: Id,
}

/// Digits as text or number; once published as `{"id": {"id": "…"}}`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(u64),
    Nested { id: Box<Id> },
}

impl Id {
    fn parse(&self) -> Option<PixelId> {
        match self {
            Id::Text(text) => PixelId::parse(text.as_bytes()),
            Id::Number(number) => PixelId::parse(number.to_string().as_bytes()),
            Id::Nested { id } => id.parse(),
        }
    }
}

/// A pixel as records will carry it.
pub fn pixel(id: PixelId, name: Option<&str>, tag: Option<&str>, ad_account: Option<&str>) -> Pixel {
    let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
    Pixel {
        id,
        name: name.map(|name| cut(name, NAME_CHARS_MAX)),
        tag: tag.map(|tag| cut(&tag.to_lowercase(), TAG_CHARS_MAX)),
        ad_account_id: ad_account.map(str::to_owned),
        archived: false,
    }
}

fn row(row: &Row, ad_account: Option<&str>) -> Option<Pixel> {
    let pixel = pixel(row.id.parse()?, row.name.as_deref(), row.tag.as_deref(), ad_account);
    Some(Pixel { archived: row.archived == Some(true.into()), ..pixel })
}

/// The pixels of a list; all or none.
pub fn list(body: &[u8], ad_account: &str) -> Option<Vec<Pixel>> {
    let rows: Vec<Row> = serde_json::from_slice(body).ok()?;
    rows.iter().map(|given| row(given, Some(ad_account))).collect()
}

/// A single pixel.
pub fn single(body: &[u8]) -> Option<Pixel> {
    row(&serde_json::from_slice(body).ok()?, None)
}

/// The id of a pixel that was created.
pub fn created(body: &[u8]) -> Option<PixelId> {
    serde_json::from_slice::<Created>(body).ok()?.id.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absurd_says_nothing() {
        for bad in [
            "",
            "<html>",
            "{}",
            "null",
            "[",
            r#"[{"id":"1"},{"id":"x"}]"#,
            r#"[{"id":"1"},{}]"#,
            r#"[{"id":"01"}]"#,
            r#"[{"id":1.5}]"#,
            r#"[{"id":"1","name":5}]"#,
            r#"[{"id":"1"}"#,
            r#"{"offsitepixels":[{"id":"1"}]}"#,
        ] {
            assert_eq!(list(bad.as_bytes(), "9"), None, "{bad}");
        }
        for bad in ["[]", "{}", r#"{"id":null}"#, r#"{"id":""}"#, r#"{"error":{"id":"1"}}"#] {
            assert_eq!(created(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_the_published_replies_say() {
        let body = r#"[{"id":"6014360342904","name":"A","tag":"CheckOut","status":"x"},{"id":7}]"#;
        let pixels = list(body.as_bytes(), "9").unwrap();
        assert_eq!((pixels[0].tag.as_deref(), pixels[0].ad_account_id.as_deref()), (Some("checkout"), Some("9")));
        assert_eq!((pixels[1].id.to_string().as_str(), &pixels[1].name), ("7", &None));
        assert_eq!(list(b"[]", "9"), Some(Vec::new()));
        let rows =
            br#"[{"id":"1","archived":true},{"id":"2","archived":null},{"id":"3","archived":"true"},{"id":"4"}]"#;
        let archived: Vec<bool> = list(rows, "9").unwrap().iter().map(|pixel| pixel.archived).collect();
        assert_eq!(archived, [true, false, false, false]);
        for body in [r#"{"id":"60"}"#, r#"{"id":60}"#, r#"{"id":{"id":"60"}}"#] {
            assert_eq!(created(body.as_bytes()).unwrap().to_string(), "60");
        }
        assert_eq!(single(body.as_bytes().get(1..70).unwrap()), None);
    }
}
