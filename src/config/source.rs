//! Where words come from: a merged table of keys, read one by one, with a list of everything that is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::{Table, Value};

use super::units;

/// Something wrong with one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// `section.key`.
    pub key: String,
    /// What is wrong and what is allowed.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// Prefix of our variables.
const PREFIX: &str = "PIXELGATE_";
/// What Kubernetes injects for a Service named pixelgate.
const INJECTED: [&str; 2] = ["PIXELGATE_PORT", "PIXELGATE_SERVICE_"];

/// See the module.
#[derive(Default)]
pub(super) struct Source {
    table: Table,
    known: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Source {
    /// Notes a problem.
    pub(super) fn problem(&mut self, key: &str, text: String) {
        self.problems.push(Problem { key: key.to_owned(), text });
    }

    /// The file's text.
    pub(super) fn toml(&mut self, text: &str) {
        match text.parse::<Table>() {
            Ok(table) => self.table = table,
            Err(error) => self.problem("--config", error.to_string().trim().replace('\n', " ")),
        }
    }

    /// `PIXELGATE_SECTION__KEY`, which wins over the file.
    pub(super) fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            if INJECTED.iter().any(|injected| name.starts_with(injected)) {
                continue;
            }
            let key = rest.to_ascii_lowercase().replace("__", ".");
            let (sections, last) = key.rsplit_once('.').map_or((None, &key[..]), |(left, last)| (Some(left), last));
            let mut table = &mut self.table;
            for section in sections.iter().flat_map(|sections| sections.split('.')) {
                let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
                if !entry.is_table() {
                    *entry = Value::Table(Table::new());
                }
                table = entry.as_table_mut().expect("made one above");
            }
            table.insert(last.to_owned(), Value::String(value));
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.known.insert(key.to_owned());
        let mut parts = key.split('.');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next());
        match second {
            None => self.table.remove(first),
            Some(second) => self.table.get_mut(first)?.as_table_mut()?.remove(second),
        }
    }

    /// A word as text, whether it was written as text, number or truth.
    fn word(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            Value::Integer(number) => Some(number.to_string()),
            Value::Boolean(truth) => Some(truth.to_string()),
            other => {
                self.problem(key, format!("must be one value, not {}", other.type_str()));
                None
            }
        }
    }

    fn parsed<T>(&mut self, key: &str, default: &str, allowed: &str, parse: impl Fn(&str) -> Option<T>) -> T {
        let word = self.word(key);
        if let Some(word) = &word {
            match parse(word.trim()) {
                Some(value) => return value,
                None => self.problem(key, format!("{word:?} is not allowed; {allowed}")),
            }
        }
        parse(default).expect("defaults are allowed")
    }

    pub(super) fn text(&mut self, key: &str, default: &str) -> String {
        self.optional_text(key).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn optional_text(&mut self, key: &str) -> Option<String> {
        self.word(key)
    }

    pub(super) fn address(&mut self, key: &str, default: &str) -> SocketAddr {
        self.parsed(key, default, "allowed is ADDRESS:PORT such as 127.0.0.1:8080", |word| word.parse().ok())
    }

    pub(super) fn number(&mut self, key: &str, default: u64, allowed: RangeInclusive<u64>) -> u64 {
        let text = format!("allowed are whole numbers from {} to {}", allowed.start(), allowed.end());
        self.parsed(key, &default.to_string(), &text, |word| {
            word.parse().ok().filter(|number| allowed.contains(number))
        })
    }

    pub(super) fn size(&mut self, key: &str, default: &str, allowed: RangeInclusive<u64>) -> u64 {
        let text = format!("allowed are sizes such as {default}, from {} to {} bytes", allowed.start(), allowed.end());
        self.parsed(key, default, &text, |word| units::bytes(word).filter(|bytes| allowed.contains(bytes)))
    }

    pub(super) fn span(&mut self, key: &str, default: &str) -> Duration {
        self.parsed(key, default, "allowed are durations such as 500ms, 10s, 5m, 24h, 7d", units::span)
    }

    pub(super) fn truth(&mut self, key: &str, default: bool) -> bool {
        self.parsed(key, &default.to_string(), "allowed are true and false", |word| word.parse().ok())
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &str, default: &str, choices: &[(&str, T)]) -> T {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.parsed(key, default, &format!("allowed: {}", words.join(", ")), |word| {
            choices.iter().find(|(known, _)| *known == word).map(|(_, value)| *value)
        })
    }

    /// Texts: an array, or one text with commas; empty = none.
    pub(super) fn list(&mut self, key: &str) -> Vec<String> {
        let words = match self.take(key) {
            None => Vec::new(),
            Some(Value::String(text)) => text.split(',').map(|word| word.trim().to_owned()).collect(),
            Some(Value::Array(values)) if values.iter().all(Value::is_str) => {
                values.iter().filter_map(Value::as_str).map(|word| word.trim().to_owned()).collect()
            }
            Some(_) => {
                self.problem(key, "must be an array of texts or one text with commas".into());
                Vec::new()
            }
        };
        words.into_iter().filter(|word| !word.is_empty()).collect()
    }

    /// A table of any names, quoted (`"sasl.password"`), dotted or from the environment (`SASL_PASSWORD`).
    pub(super) fn map(&mut self, key: &str) -> BTreeMap<String, String> {
        let (mut map, mut todo) = (BTreeMap::new(), Vec::new());
        match self.take(key) {
            None => return map,
            Some(Value::Table(table)) => todo.push((String::new(), table)),
            Some(_) => self.problem(key, "must be a table".into()),
        }
        while let Some((prefix, table)) = todo.pop() {
            for (name, value) in table {
                let name = format!("{prefix}{}", name.replace('_', "."));
                match value {
                    Value::Table(inner) => todo.push((format!("{name}."), inner)),
                    Value::String(text) => drop(map.insert(name, text)),
                    Value::Integer(number) => drop(map.insert(name, number.to_string())),
                    Value::Boolean(truth) => drop(map.insert(name, truth.to_string())),
                    _ => self.problem(&format!("{key}.{name}"), "must be one value".into()),
                }
            }
        }
        map
    }

    pub(super) fn tables(&mut self, key: &str) -> Vec<Table> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let Value::Array(values) = value else {
            self.problem(key, "must be a list of tables".into());
            return Vec::new();
        };
        let mut tables = Vec::new();
        for value in values {
            match value {
                Value::Table(table) => tables.push(table),
                _ => self.problem(key, "must be a list of tables".into()),
            }
        }
        tables
    }

    /// The result, unless something is wrong; what nobody asked for is unknown.
    pub(super) fn finish<T>(mut self, built: T) -> Result<T, Vec<Problem>> {
        for key in leaves(&self.table) {
            let near = |known: &&String| (strsim::jaro_winkler(known, &key) * 1000.0) as u32;
            let nearest = self.known.iter().max_by_key(near).cloned().unwrap_or_default();
            self.problem(&key, format!("unknown key of this version; the nearest is {nearest}"));
        }
        if self.problems.is_empty() { Ok(built) } else { Err(self.problems) }
    }
}

fn leaves(table: &Table) -> Vec<String> {
    let mut keys = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => keys.extend(inner.keys().map(|key| format!("{name}.{key}"))),
            _ => keys.push(name.clone()),
        }
    }
    keys
}
