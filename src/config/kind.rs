//! Kinds of keys: how the operator's value is read, what is allowed, and how it is written back.

use std::net::SocketAddr;
use std::time::Duration;

use toml::{Table, Value};

use super::overlay::{self, Overlays};
use super::source::{Problem, quoted};
use super::units::{self, Limit};
use crate::pixel::{Pixel, PixelId};
use crate::publish::properties::{self, Properties};
use crate::registry;
use crate::secret::Secret;

/// What a key's value may be.
#[derive(Debug)]
pub(super) enum Kind {
    /// A text that fits a rule.
    Text(Rule),
    /// A text that fits a rule and that nobody may see; a variable with `_FILE` behind its name reads it from a file.
    Secret(Rule),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number, both ends included.
    Number(u64, u64),
    /// A whole number up to this, or -1 for the broker's own.
    OrBrokers(u64),
    /// Bytes, both ends included.
    Size(u64, u64),
    /// Milliseconds, both ends included.
    Span(u64, u64),
    /// True or false.
    Truth,
    /// Address and port.
    Address,
    /// Texts that each fit a rule.
    List(Rule),
    /// A rate and a burst, or `"off"`.
    Rate,
    /// `kafka.client`.
    Client,
    /// `registry.pixels`.
    Pixels,
    /// The tables `[pixels."<id>"]`.
    Overlays,
}

/// A test and the words that say it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) allowed: &'static str,
    pub(super) fits: fn(&str) -> bool,
}

/// A checked value.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Word {
    Unset,
    Text(String),
    Secret(Secret),
    Number(i64),
    Size(u64),
    Span(Duration),
    Truth(bool),
    Address(SocketAddr),
    List(Vec<String>),
    Limit(Option<Limit>),
    Properties(Properties),
    Pixels(Vec<Pixel>),
    Overlays(Overlays),
}

/// Longest part of a bad value that a problem repeats.
const SHOWN_CHARS: usize = 100;
/// Longest name of a pixel, as in management.
const NAME_CHARS_MAX: usize = 255;

impl Kind {
    /// Reads a value; says everything that is wrong with it.
    pub(super) fn read(&self, path: &str, value: Value, problems: &mut Vec<Problem>) -> Option<Word> {
        match (self, value) {
            (Kind::List(rule), value) => list(path, rule, value, problems),
            (Kind::Client, Value::Table(table)) => client(path, table, problems),
            (Kind::Pixels, Value::Array(values)) => pixels(path, values, problems),
            (Kind::Overlays, Value::Table(table)) => overlay::read(table, problems).map(Word::Overlays),
            (kind, value) => {
                let word = kind.one(&value);
                if word.is_none() {
                    let shown = if matches!(kind, Kind::Secret(_)) { "what it has".to_owned() } else { shown(&value) };
                    problems.push(Problem::new(path, format!("{shown} is not allowed; {}", kind.allowed())));
                }
                word
            }
        }
    }

    /// One value, if it is allowed. Whatever is no text in TOML may be written as one, as the environment has to.
    fn one(&self, value: &Value) -> Option<Word> {
        let text = value.as_str().map(str::trim);
        let number = || value.as_integer().or_else(|| text?.parse().ok());
        let count =
            |least: u64, most: u64| number().filter(|n| u64::try_from(*n).is_ok_and(|n| least <= n && n <= most));
        match self {
            Kind::Text(rule) => text.filter(|text| (rule.fits)(text)).map(|text| Word::Text(text.to_owned())),
            Kind::Secret(rule) => {
                text.filter(|text| (rule.fits)(text)).map(|text| Word::Secret(Secret::new(text.to_owned())))
            }
            Kind::Choice(words) => text.filter(|text| words.contains(text)).map(|text| Word::Text(text.to_owned())),
            Kind::Number(least, most) => count(*least, *most).map(Word::Number),
            Kind::OrBrokers(most) => count(1, *most).or_else(|| number().filter(|n| *n == -1)).map(Word::Number),
            Kind::Size(least, most) => {
                let bytes = number().and_then(|n| u64::try_from(n).ok()).or_else(|| units::bytes(text?));
                bytes.filter(|bytes| least <= bytes && bytes <= most).map(Word::Size)
            }
            Kind::Span(least, most) => {
                let fits = |span: &Duration| (u128::from(*least)..=u128::from(*most)).contains(&span.as_millis());
                units::span(text?).filter(fits).map(Word::Span)
            }
            Kind::Truth => value.as_bool().or_else(|| text?.parse().ok()).map(Word::Truth),
            Kind::Address => text?.parse().ok().map(Word::Address),
            Kind::Rate => match value {
                Value::Table(table) => Limit::from_table(table).map(|limit| Word::Limit(Some(limit))),
                _ => (text? == "off").then_some(Word::Limit(None)),
            },
            // An empty text is what the environment and defaults have for none.
            Kind::Client => text?.is_empty().then(|| Word::Properties(Properties::default())),
            Kind::Pixels => text?.is_empty().then(|| Word::Pixels(Vec::new())),
            Kind::Overlays => text?.is_empty().then(|| Word::Overlays(Overlays::new())),
            Kind::List(_) => None,
        }
    }

    /// What is allowed, for people.
    pub(super) fn allowed(&self) -> String {
        match self {
            Kind::Text(rule) | Kind::List(rule) | Kind::Secret(rule) => rule.allowed.to_owned(),
            Kind::Choice(words) => format!("allowed: {}", words.join(", ")),
            Kind::Number(least, most) => format!("allowed are whole numbers from {least} to {most}"),
            Kind::OrBrokers(most) => format!("allowed are whole numbers from 1 to {most}, and -1 for the broker's own"),
            Kind::Size(least, most) => {
                let (least, most) = (units::write_bytes(*least), units::write_bytes(*most));
                format!("allowed are sizes such as 64KiB or 5GiB, from {least} to {most}")
            }
            Kind::Span(least, most) => {
                let write = |ms: &u64| units::write_span(Duration::from_millis(*ms));
                format!("allowed are durations such as 500ms, 10s, 24h, from {} to {}", write(least), write(most))
            }
            Kind::Truth => "allowed are true and false".to_owned(),
            Kind::Address => "allowed is ADDRESS:PORT such as 127.0.0.1:8080".to_owned(),
            Kind::Rate => "allowed are { rate = \"200/s\", burst = 1000 } and \"off\"".to_owned(),
            Kind::Client => "allowed is a table of librdkafka properties".to_owned(),
            Kind::Pixels => "allowed is a list of tables with id, name, tag, fb_ad_account_id".to_owned(),
            Kind::Overlays => "allowed are tables [pixels.\"<id>\"]".to_owned(),
        }
    }
}

/// A bad value, shortened and on one line.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > SHOWN_CHARS => {
            format!("{:?}…", text.chars().take(SHOWN_CHARS).collect::<String>())
        }
        Value::String(text) => format!("{text:?}"),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => value.to_string(),
        Value::Table(_) => "this table".to_owned(),
        other => format!("a TOML {}", other.type_str()),
    }
}

/// An array of texts, or one text with commas; empty = none.
fn list(path: &str, rule: &Rule, value: Value, problems: &mut Vec<Problem>) -> Option<Word> {
    let values = match value {
        Value::String(text) => text.split(',').map(|word| Value::String(word.to_owned())).collect(),
        Value::Array(values) => values,
        other => {
            let text =
                format!("{} is not allowed; allowed is an array of texts or one text with commas", shown(&other));
            problems.push(Problem::new(path, text));
            return None;
        }
    };
    let before = problems.len();
    let mut words = Vec::new();
    for value in values {
        match value.as_str().map(str::trim) {
            Some("") => {}
            Some(word) if (rule.fits)(word) => words.push(word.to_owned()),
            _ => problems.push(Problem::new(path, format!("{} is not allowed; {}", shown(&value), rule.allowed))),
        }
    }
    (problems.len() == before).then_some(Word::List(words))
}

/// librdkafka properties, already flat. Their values may be secrets: no problem repeats one.
fn client(path: &str, table: Table, problems: &mut Vec<Problem>) -> Option<Word> {
    let before = problems.len();
    let mut properties = Properties::default();
    for (name, value) in table {
        let key = format!("{path}.{}", quoted(&name));
        let text = match value {
            Value::String(text) => text,
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(truth) => truth.to_string(),
            other => {
                problems.push(Problem::new(&key, format!("allowed is one value, not a TOML {}", other.type_str())));
                continue;
            }
        };
        match properties::problem(&name, &text) {
            Some(problem) => problems.push(Problem::new(&key, problem)),
            None => properties.insert(name, text),
        }
    }
    (problems.len() == before).then_some(Word::Properties(properties))
}

/// `id`, and optionally `name`, `tag`, `fb_ad_account_id`.
fn pixels(path: &str, values: Vec<Value>, problems: &mut Vec<Problem>) -> Option<Word> {
    let before = problems.len();
    let mut pixels: Vec<Pixel> = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Value::Table(mut table) = value else {
            problems.push(Problem::new(&path, format!("{} is not allowed; {}", shown(&value), Kind::Pixels.allowed())));
            continue;
        };
        let id = table.remove("id").as_ref().and_then(Value::as_str).and_then(|id| PixelId::parse(id.as_bytes()));
        let mut text = |name: &str| match table.remove(name) {
            None => None,
            Some(Value::String(text)) => Some(text),
            Some(other) => {
                let text = format!("{} is not allowed; allowed is a text in quotes", shown(&other));
                problems.push(Problem::new(&format!("{path}.{name}"), text));
                None
            }
        };
        let (name, tag, ad_account_id) = (text("name"), text("tag"), text("fb_ad_account_id"));
        if name.as_ref().is_some_and(|name| name.chars().count() > NAME_CHARS_MAX) {
            let text = format!("allowed are at most {NAME_CHARS_MAX} characters");
            problems.push(Problem::new(&format!("{path}.name"), text));
        }
        if let Some(account) = ad_account_id.as_ref().filter(|account| !registry::is_ad_account(account)) {
            let text =
                format!("{account:?} is not allowed; allowed are 1 to 20 digits without a leading zero, in quotes");
            problems.push(Problem::new(&format!("{path}.fb_ad_account_id"), text));
        }
        for left in table.keys() {
            let text = "unknown; allowed are id, name, tag, fb_ad_account_id".to_owned();
            problems.push(Problem::new(&format!("{path}.{}", quoted(left)), text));
        }
        let Some(id) = id else {
            let text = "allowed is a text of 1 to 20 digits without a leading zero, in quotes".to_owned();
            problems.push(Problem::new(&format!("{path}.id"), text));
            continue;
        };
        if pixels.iter().any(|pixel| pixel.id == id) {
            problems.push(Problem::new(&format!("{path}.id"), format!("{id} is given twice; allowed is once")));
        }
        pixels.push(Pixel { id, name, tag: tag.map(|tag| tag.to_lowercase()), ad_account_id, archived: false });
    }
    (problems.len() == before).then_some(Word::Pixels(pixels))
}

impl Word {
    /// As TOML; `None` if nothing is set or it takes a table of its own.
    pub(super) fn to_toml(&self) -> Option<Value> {
        let text = |text: &str| Value::String(text.to_owned());
        Some(match self {
            Word::Unset | Word::Properties(_) | Word::Overlays(_) => return None,
            Word::Text(word) => text(word),
            Word::Secret(secret) => Value::String(secret.to_string()),
            Word::Number(number) => Value::Integer(*number),
            Word::Size(bytes) => Value::String(units::write_bytes(*bytes)),
            Word::Span(span) => Value::String(units::write_span(*span)),
            Word::Truth(truth) => Value::Boolean(*truth),
            Word::Address(address) => Value::String(address.to_string()),
            Word::List(words) => Value::Array(words.iter().map(|word| text(word)).collect()),
            Word::Limit(None) => text("off"),
            Word::Limit(Some(limit)) => Value::Table(limit.to_table()),
            Word::Pixels(pixels) => Value::Array(pixels.iter().map(|pixel| Value::Table(pixel_table(pixel))).collect()),
        })
    }
}

fn pixel_table(pixel: &Pixel) -> Table {
    let id = pixel.id.to_string();
    let fields = [
        ("id", Some(&id)),
        ("name", pixel.name.as_ref()),
        ("tag", pixel.tag.as_ref()),
        ("fb_ad_account_id", pixel.ad_account_id.as_ref()),
    ];
    fields.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::String(text?.clone())))).collect()
}
