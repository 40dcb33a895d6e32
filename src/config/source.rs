//! Where words come from: the file's tables and the environment's variables, taken key by key; what is left is unknown.
//!
//! Nothing ends at the first problem: all are gathered.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use toml::{Table, Value};

use super::keys::{KEYS, Key};
use super::kind::Kind;
use crate::publish::properties;

/// Something wrong with one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// `section.key`.
    pub key: String,
    /// What is wrong and what is allowed.
    pub text: String,
}

impl Problem {
    /// A problem of a key.
    pub fn new(key: &str, text: String) -> Problem {
        Problem { key: key.to_owned(), text }
    }
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
/// `PIXELGATE_KAFKA__CLIENT__SASL_PASSWORD`.
const CLIENT: &str = "PIXELGATE_KAFKA__CLIENT__";
/// End of a variable that names a file with the value.
const FILE: &str = "_FILE";
/// A secret's file is at most this long: certificates fit, a wrong file does not fill memory.
const MAX_SECRET_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct Source {
    file: Table,
    /// By path; parts of a key as `path.part`.
    variables: BTreeMap<String, Value>,
    /// By librdkafka's name.
    client: BTreeMap<String, String>,
    pub(super) problems: Vec<Problem>,
}

/// The variable of a key.
pub(super) fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.to_ascii_uppercase().replace('.', "__"))
}

/// A name as TOML and problems write it: quoted if it has to be, always on one line.
pub(super) fn quoted(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { format!("{name:?}") }
}

impl Source {
    /// Notes a problem.
    pub(super) fn problem(&mut self, key: &str, text: String) {
        self.problems.push(Problem::new(key, text));
    }

    /// The file's text.
    pub(super) fn toml(&mut self, text: &str) {
        match text.parse::<Table>() {
            Ok(table) => self.file = table,
            Err(error) => {
                // Only the place and the rule: the line itself may hold a secret.
                let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
                let line = before.matches('\n').count() + 1;
                self.problem("--config", format!("line {line} is no TOML: {}", error.message().escape_debug()));
            }
        }
    }

    /// `PIXELGATE_SECTION__KEY`, which wins over the file.
    pub(super) fn environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut ours: Vec<(String, OsString)> = Vec::new();
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with(PREFIX) && !INJECTED.iter().any(|injected| name.starts_with(injected)) {
                ours.push((name, value));
            }
        }
        ours.sort();
        for (name, value) in ours {
            match value.into_string() {
                Ok(value) => self.one_variable(&name, value),
                Err(_) => self.problem(&quoted(&name), "its value is no UTF-8; allowed is text".to_owned()),
            }
        }
    }

    fn one_variable(&mut self, name: &str, value: String) {
        if let Some(end) = name.strip_prefix(CLIENT).filter(|end| !end.is_empty()) {
            return self.client_variable(name, end, value);
        }
        for key in KEYS.iter().filter(|key| !matches!(key.kind, Kind::Client | Kind::Pixels | Kind::Overlays)) {
            let whole = variable(key.path);
            if name == whole {
                self.variables.insert(key.path.to_owned(), Value::String(value));
                return;
            }
            if matches!(key.kind, Kind::Secret(_)) && name.strip_suffix(FILE) == Some(&whole) {
                return self.secret_file(key.path, name, &value);
            }
            if matches!(key.kind, Kind::Rate) {
                for part in ["rate", "burst"] {
                    if name == format!("{whole}__{}", part.to_ascii_uppercase()) {
                        self.variables.insert(format!("{}.{part}", key.path), Value::String(value));
                        return;
                    }
                }
            }
        }
        let path = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        let nearest = nearest(name, KEYS.iter().map(|key| variable(key.path)));
        self.problem(&quoted(&path), format!("{name:?} is no variable of pixelgate; the nearest is {nearest}"));
    }

    /// A secret that stands in a file.
    fn secret_file(&mut self, path: &'static str, name: &str, file: &str) {
        match read_secret(file) {
            Err(error) => {
                self.problem(path, format!("{name} names {file:?}: {error}; allowed is a readable file"));
            }
            // Variables come in order of their names, so the one without `_FILE` is there already.
            Ok(_) if self.variables.contains_key(path) => {
                self.problem(path, format!("given by two variables, one of them {name}; allowed is one"));
            }
            Ok(text) => drop(self.variables.insert(path.to_owned(), Value::String(text))),
        }
    }

    /// A librdkafka property, or the file that it stands in.
    fn client_variable(&mut self, name: &str, end: &str, value: String) {
        let whole = properties::from_variable(end);
        let (property, text) = match end.strip_suffix(FILE) {
            Some(start) if !properties::is_known(&whole) => {
                let property = properties::from_variable(start);
                match read_secret(&value) {
                    Ok(text) => (property, text),
                    Err(error) => {
                        let key = format!("kafka.client.{}", quoted(&property));
                        return self
                            .problem(&key, format!("{name} names {value:?}: {error}; allowed is a readable file"));
                    }
                }
            }
            _ => (whole, value),
        };
        if self.client.insert(property.clone(), text).is_some() {
            let key = format!("kafka.client.{}", quoted(&property));
            self.problem(&key, format!("given by two variables, one of them {name}; allowed is one"));
        }
    }

    /// The operator's value of a key, if there is one.
    pub(super) fn take(&mut self, key: &Key) -> Option<Value> {
        let of_file = match key.path.split_once('.') {
            Some((section, _)) if matches!(key.kind, Kind::Overlays) => self.file.remove(section),
            None => self.file.remove(key.path),
            Some((section, name)) => self.file.get_mut(section).and_then(Value::as_table_mut).and_then(|table| {
                let Some((inner, name)) = name.split_once('.') else { return table.remove(name) };
                table.get_mut(inner).and_then(Value::as_table_mut).and_then(|table| table.remove(name))
            }),
        };
        let value = self.variables.remove(key.path).or(of_file);
        match key.kind {
            Kind::Client => self.with_properties(key, value),
            Kind::Rate => self.with_parts(key, value),
            _ => value,
        }
    }

    /// A rate's parts: from variables, else from the value, else from the default.
    fn with_parts(&mut self, key: &Key, value: Option<Value>) -> Option<Value> {
        let mut table = match value {
            Some(Value::Table(table)) => table,
            other => {
                let parts: Vec<_> = ["rate", "burst"].iter().map(|part| format!("{}.{part}", key.path)).collect();
                if !parts.iter().any(|part| self.variables.contains_key(part)) {
                    return other;
                }
                Table::new()
            }
        };
        let default = key.default_value();
        for part in ["rate", "burst"] {
            if let Some(value) = self.variables.remove(&format!("{}.{part}", key.path)) {
                table.insert(part.to_owned(), value);
            } else if !table.contains_key(part)
                && let Some(value) = default.as_ref().and_then(|default| default.get(part))
            {
                table.insert(part.to_owned(), value.clone());
            }
        }
        Some(Value::Table(table))
    }

    /// One flat table of properties: quoted and dotted names of the file, then variables.
    fn with_properties(&mut self, key: &Key, value: Option<Value>) -> Option<Value> {
        let mut flat = Table::new();
        match value {
            Some(Value::Table(table)) => {
                let mut left: Vec<(String, Value)> = table.into_iter().collect();
                while let Some((name, value)) = left.pop() {
                    if let Value::Table(inner) = value {
                        left.extend(inner.into_iter().map(|(end, value)| (format!("{name}.{end}"), value)));
                    } else if flat.insert(name.clone(), value).is_some() {
                        let key = format!("{}.{}", key.path, quoted(&name));
                        self.problem(&key, "given twice, quoted and dotted; allowed is once".to_owned());
                    }
                }
            }
            None => {}
            other => return other,
        }
        for (name, text) in std::mem::take(&mut self.client) {
            flat.insert(name, Value::String(text));
        }
        (!flat.is_empty()).then_some(Value::Table(flat))
    }

    /// After all keys are taken: what is left is unknown.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        for (name, value) in std::mem::take(&mut self.file) {
            let is_section =
                KEYS.iter().any(|key| key.path.split_once('.').is_some_and(|(section, _)| section == name));
            match value {
                Value::Table(inner) => {
                    for (end, value) in &inner {
                        let path = format!("{}.{}", quoted(&name), quoted(end));
                        match value.as_table().filter(|_| is_inner(&path)) {
                            None if is_inner(&path) => self.problem(&path, format!("allowed is a table [{path}]")),
                            None => self.unknown(&path),
                            Some(left) => {
                                left.keys().for_each(|end| self.unknown(&format!("{path}.{}", quoted(end))));
                            }
                        }
                    }
                    if inner.is_empty() && !is_section {
                        self.unknown(&quoted(&name));
                    }
                }
                _ if is_section => self.problem(&name, format!("allowed is a table [{name}]")),
                _ => self.unknown(&quoted(&name)),
            }
        }
        self.problems
    }

    fn unknown(&mut self, path: &str) {
        let nearest = nearest(path, KEYS.iter().map(|key| key.path.to_owned()));
        let text = format!("unknown key of this version; the nearest is {nearest}");
        self.problem(path, text);
    }
}

/// Whether keys of ours stand in a table of a section.
fn is_inner(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

fn nearest(name: &str, known: impl Iterator<Item = String>) -> String {
    known.max_by_key(|known| (strsim::jaro_winkler(known, name) * 1000.0) as u32).unwrap_or_default()
}

/// A file's text without the newline that editors put at its end.
fn read_secret(path: &str) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_SECRET_BYTES).read_to_string(&mut text)?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}
