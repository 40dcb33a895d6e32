//! `[pixels."<id>"]`: what the operator lays over single pixels, or over all with `[pixels."*"]`.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::kind::shown;
use super::source::{Problem, quoted};
use crate::pixel::PixelId;
use crate::policy::{ORIGINS_MAX, Origins, Overlay, PIXELS_MAX, Treatment};

/// The table for all pixels.
const ALL: &str = "*";
/// What a table may hold.
const KEYS: &str = "allowed are origins, gpc, consent";

/// All tables: `None` is the one for all pixels.
pub(super) type Overlays = BTreeMap<Option<PixelId>, Overlay>;

/// Reads the tables; says everything that is wrong with them.
pub(super) fn read(table: Table, problems: &mut Vec<Problem>) -> Option<Overlays> {
    let before = problems.len();
    let mut overlays = Overlays::new();
    if table.len() > PIXELS_MAX {
        let text = format!("{} pixels are too many; allowed are {PIXELS_MAX}", table.len());
        problems.push(Problem::new("pixels", text));
        return None;
    }
    for (name, value) in table {
        let path = format!("pixels.{name:?}");
        let pixel = PixelId::parse(name.as_bytes());
        if pixel.is_none() && name != ALL {
            let allowed = "allowed are ids of 1 to 20 digits without a leading zero, and \"*\" for all pixels";
            problems.push(Problem::new(&path, format!("no id of a pixel; {allowed}")));
        }
        match value {
            Value::Table(table) => drop(overlays.insert(pixel, overlay(&path, table, problems))),
            other => problems.push(Problem::new(&path, format!("{} is not allowed; {KEYS}", shown(&other)))),
        }
    }
    (problems.len() == before).then_some(overlays)
}

fn overlay(path: &str, mut table: Table, problems: &mut Vec<Problem>) -> Overlay {
    let origins = table.remove("origins").and_then(|value| origins(&format!("{path}.origins"), value, problems));
    let mut treatment = |name: &str| {
        let value = table.remove(name)?;
        let found = Treatment::ALL.iter().find(|(word, _)| value.as_str().map(str::trim) == Some(word));
        if found.is_none() {
            let text = format!("{} is not allowed; allowed are ignore, anonymise, drop", shown(&value));
            problems.push(Problem::new(&format!("{path}.{name}"), text));
        }
        found.map(|(_, treatment)| *treatment)
    };
    let (gpc, consent) = (treatment("gpc"), treatment("consent"));
    for left in table.keys() {
        problems.push(Problem::new(&format!("{path}.{}", quoted(left)), format!("unknown; {KEYS}")));
    }
    Overlay { origins, gpc, consent }
}

/// An array of texts or one text with commas. None at all is no way to shut a pixel: it is archived for that.
fn origins(path: &str, value: Value, problems: &mut Vec<Problem>) -> Option<Origins> {
    let mut problem = |text: String| problems.push(Problem::new(path, text));
    let words: Vec<Value> = match value {
        Value::String(text) => text.split(',').map(|word| Value::String(word.to_owned())).collect(),
        Value::Array(words) => words,
        other => vec![other],
    };
    if words.len() > ORIGINS_MAX {
        problem(format!("{} hosts are too many; allowed are {ORIGINS_MAX}", words.len()));
        return None;
    }
    let mut texts = Vec::new();
    for word in &words {
        match word.as_str().map(str::trim) {
            Some("") => {}
            Some(text) if Origins::parse([text]).is_ok() => texts.push(text),
            _ => problem(format!("{} is not allowed; {}", shown(word), Origins::ALLOWED)),
        }
    }
    if words.iter().all(|word| word.as_str().is_some_and(|text| text.trim().is_empty())) {
        problem(format!("no page may report; leave it out to let all, else {}", Origins::ALLOWED));
        return None;
    }
    Origins::parse(texts).ok()
}

/// The tables as TOML, or how they would look.
pub(super) fn write(overlays: &Overlays, text: &mut String) {
    if overlays.is_empty() {
        text.push_str(
            "# [pixels.\"6010000000001\"]\n# origins = [\"shop.example\", \"*.shop.example\"]\n\
             # gpc = \"anonymise\"\n# consent = \"anonymise\"\n",
        );
    }
    for (pixel, overlay) in overlays {
        let name = pixel.map_or(ALL.to_owned(), |pixel| pixel.to_string());
        text.push_str(&format!("\n[pixels.\"{name}\"]\n"));
        if let Some(origins) = &overlay.origins {
            let words = origins.words().map(Value::String).collect();
            text.push_str(&format!("origins = {}\n", Value::Array(words)));
        }
        for (name, treatment) in [("gpc", overlay.gpc), ("consent", overlay.consent)] {
            if let Some(treatment) = treatment {
                text.push_str(&format!("{name} = \"{}\"\n", treatment.as_str()));
            }
        }
    }
}
