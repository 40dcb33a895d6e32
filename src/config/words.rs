//! All keys' checked values: what `Config::build` takes its `Options` from, and what `pixelgate config` prints.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use toml::Value;

use super::keys::{Default, KEYS, Key};
use super::kind::{Kind, Word};
use super::overlay::Overlays;
use super::source::{Problem, Source};
use super::units::{self, Limit};
use crate::pixel::Pixel;
use crate::publish::properties::Properties;
use crate::secret::Secret;
use crate::upstream;

/// Keys that say where to listen.
const LISTENERS: [&str; 3] = ["server.listen", "ops.listen", "management.listen"];

/// Keys that go together.
const TLS: [&str; 2] = ["server.tls.certificate", "server.tls.key"];
/// Needed with another format than JSON; and two that are set both or none.
const SCHEMA_REGISTRY: [&str; 3] =
    ["kafka.schema_registry.url", "kafka.schema_registry.username", "kafka.schema_registry.password"];

/// By path; each key is in it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Words(BTreeMap<&'static str, Word>);

impl Key {
    /// The default as if it were the operator's.
    pub(super) fn default_value(&self) -> Option<Value> {
        match (&self.kind, &self.default) {
            (_, Default::Unset(_)) => None,
            // A rate is written as the table that the file would have.
            (Kind::Rate, Default::Is(text)) if text.starts_with('{') => {
                let table = format!("it = {text}").parse::<toml::Table>().expect("defaults are TOML");
                table.into_iter().map(|(_, value)| value).next()
            }
            (_, Default::Is(text)) => Some(Value::String((*text).to_owned())),
        }
    }

    fn default_word(&self, problems: &mut Vec<Problem>) -> Word {
        match self.default_value() {
            None => Word::Unset,
            Some(value) => self.kind.read(self.path, value, problems).unwrap_or(Word::Unset),
        }
    }
}

impl Words {
    /// Reads every key; all problems at once. A key with a problem has its default.
    pub(super) fn read(mut source: Source) -> (Words, Vec<Problem>) {
        let mut words = BTreeMap::new();
        for key in KEYS {
            let optional = matches!(key.default, Default::Unset(_)) && !matches!(key.kind, Kind::List(_));
            // An empty text takes back what is unset by default: an environment can't leave a variable out.
            let given = source.take(key).filter(|value| !(optional && value.as_str() == Some("")));
            let word = given.and_then(|value| key.kind.read(key.path, value, &mut source.problems));
            words.insert(key.path, word.unwrap_or_else(|| key.default_word(&mut source.problems)));
        }
        let mut words = Words(words);
        words.derive();
        words.relate(&mut source.problems);
        words.cross_check(&mut source.problems);
        (words, source.finish())
    }

    /// Defaults that follow from the machine or from other keys.
    fn derive(&mut self) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(1024) as i64;
        self.fill("server.workers", Word::Number(cores));
        let is_tls = *self.get("server.tls.certificate") != Word::Unset;
        self.fill("server.public_url", Word::Text(public_url(self.address("server.listen"), is_tls)));
    }

    /// Keys that can't go together.
    fn cross_check(&self, problems: &mut Vec<Problem>) {
        let proxies = matches!(self.get("registry.mode"), Word::Text(mode) if mode == "proxy");
        let told = problems.iter().any(|problem| problem.key == "registry.upstream");
        if proxies && *self.get("registry.upstream") == Word::Unset && !told {
            let text = format!("missing, and needed with registry.mode = \"proxy\"; {}", upstream::ALLOWED);
            problems.push(Problem::new("registry.upstream", text));
        }
        let (given, most) = (self.pixels("registry.pixels").len(), self.count("registry.max_pixels"));
        if given > most {
            let text = format!("{given} pixels are more than registry.max_pixels = {most}; allowed is at most that");
            problems.push(Problem::new("registry.pixels", text));
        }
        let topics = ["kafka.events_topic", "kafka.rejected_topic"];
        let progress = self.text("kafka.progress_topic");
        if let Some(same) = topics.iter().find(|path| !progress.is_empty() && self.text(path) == progress) {
            let text = format!("{progress} is {same}; allowed is a topic of its own, since it is compacted");
            problems.push(Problem::new("kafka.progress_topic", text));
        }
        for (index, path) in LISTENERS.iter().enumerate().skip(1) {
            let Some(address) = self.optional_address(path) else { continue };
            for other_path in &LISTENERS[..index] {
                // Management on exactly the public address is how an operator says that it is meant to be public.
                let is_meant = *path == "management.listen" && *other_path == "server.listen";
                let other = self.address(other_path);
                if collide(address, other) && !(is_meant && address == other) {
                    let text = format!("{address} collides with {other_path} = {other}; allowed is a port of its own");
                    problems.push(Problem::new(path, text));
                }
            }
        }
    }

    /// What browsers would silently drop a cookie for.
    fn cookie(&self, problems: &mut Vec<Problem>) {
        let (name, secure) = (self.text("cookie.name").to_ascii_lowercase(), self.truth("cookie.secure"));
        let mut problem = |path, text: &str| problems.push(Problem::new(path, text.to_owned()));
        if self.text("cookie.same_site") == "none" && !secure {
            problem("cookie.same_site", "none is not allowed without cookie.secure = true; allowed: lax, strict");
        }
        // What these prefixes promise (RFC 6265bis): __Http- says HttpOnly, which it is, and Secure.
        let is_bound = name.starts_with("__host-");
        if !secure && ["__host-", "__secure-", "__http-"].iter().any(|prefix| name.starts_with(prefix)) {
            problem("cookie.secure", "false is not allowed with that prefix of cookie.name; allowed is true");
        }
        if is_bound && *self.get("cookie.domain") != Word::Unset {
            problem("cookie.domain", "a cookie.name with __Host- is for one host alone; allowed is no domain");
        }
    }

    /// What is wrong between keys.
    fn relate(&self, problems: &mut Vec<Problem>) {
        self.cookie(problems);
        let is_set = |path| *self.get(path) != Word::Unset;
        let lacks = |problems: &[Problem], path| !is_set(path) && !problems.iter().any(|problem| problem.key == path);
        let format = self.text("kafka.format");
        if format != "json" && lacks(problems, SCHEMA_REGISTRY[0]) {
            let text = format!("missing, and needed with kafka.format = \"{format}\"; {}", upstream::ALLOWED);
            problems.push(Problem::new(SCHEMA_REGISTRY[0], text));
        }
        for (path, other) in [(SCHEMA_REGISTRY[1], SCHEMA_REGISTRY[2]), (SCHEMA_REGISTRY[2], SCHEMA_REGISTRY[1])] {
            if is_set(other) && lacks(problems, path) {
                problems.push(Problem::new(path, format!("missing; allowed is one, together with {other}")));
            }
        }
        for (path, other) in TLS.into_iter().zip(TLS.into_iter().rev()) {
            if is_set(other) && lacks(problems, path) {
                let text = format!("missing, and needed with {other}; allowed is the path of a PEM file");
                problems.push(Problem::new(path, text));
            }
        }
        let says_hsts = self.span("server.tls.hsts_max_age") > Duration::ZERO;
        if says_hsts && !is_set(TLS[0]) {
            let text = "browsers heed it by https only; allowed with server.tls.certificate, else 0s";
            problems.push(Problem::new("server.tls.hsts_max_age", text.to_owned()));
        }
        let (inflight, body) = (self.size("server.max_inflight_bytes"), self.size("limits.max_body_bytes"));
        if inflight < body {
            let (inflight, body) = (units::write_bytes(inflight), units::write_bytes(body));
            let text = format!("{inflight} has no room for a body; allowed is limits.max_body_bytes ({body}) and more");
            problems.push(Problem::new("server.max_inflight_bytes", text));
        }
    }

    fn fill(&mut self, path: &'static str, word: Word) {
        if *self.get(path) == Word::Unset {
            self.0.insert(path, word);
        }
    }

    /// Any key's value.
    pub(super) fn get(&self, path: &str) -> &Word {
        self.0.get(path).unwrap_or_else(|| panic!("{path} has no row in keys.rs"))
    }

    pub(super) fn optional_text(&self, path: &str) -> Option<&str> {
        match self.get(path) {
            Word::Text(text) => Some(text),
            Word::Unset => None,
            other => mismatch(path, other),
        }
    }

    pub(super) fn text(&self, path: &str) -> String {
        self.optional_text(path).unwrap_or_else(|| mismatch(path, &Word::Unset)).to_owned()
    }

    pub(super) fn optional_secret(&self, path: &str) -> Option<&Secret> {
        match self.get(path) {
            Word::Secret(secret) => Some(secret),
            Word::Unset => None,
            other => mismatch(path, other),
        }
    }

    /// The value that goes with the chosen word.
    pub(super) fn choice<T: Copy>(&self, path: &str, choices: &[(&str, T)]) -> T {
        let text = self.text(path);
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).expect("a row's words are all here")
    }

    pub(super) fn number(&self, path: &str) -> i64 {
        match self.get(path) {
            Word::Number(number) => *number,
            other => mismatch(path, other),
        }
    }

    pub(super) fn count(&self, path: &str) -> usize {
        usize::try_from(self.number(path)).expect("the row allows none below 0")
    }

    pub(super) fn size(&self, path: &str) -> u64 {
        match self.get(path) {
            Word::Size(bytes) => *bytes,
            other => mismatch(path, other),
        }
    }

    pub(super) fn span(&self, path: &str) -> Duration {
        match self.get(path) {
            Word::Span(span) => *span,
            other => mismatch(path, other),
        }
    }

    pub(super) fn truth(&self, path: &str) -> bool {
        match self.get(path) {
            Word::Truth(truth) => *truth,
            other => mismatch(path, other),
        }
    }

    pub(super) fn optional_address(&self, path: &str) -> Option<SocketAddr> {
        match self.get(path) {
            Word::Address(address) => Some(*address),
            Word::Unset => None,
            other => mismatch(path, other),
        }
    }

    pub(super) fn address(&self, path: &str) -> SocketAddr {
        self.optional_address(path).unwrap_or_else(|| mismatch(path, &Word::Unset))
    }

    pub(super) fn optional_list(&self, path: &str) -> Option<&[String]> {
        match self.get(path) {
            Word::List(words) => Some(words),
            Word::Unset => None,
            other => mismatch(path, other),
        }
    }

    pub(super) fn list(&self, path: &str) -> Vec<String> {
        self.optional_list(path).unwrap_or_else(|| mismatch(path, &Word::Unset)).to_vec()
    }

    pub(super) fn limit(&self, path: &str) -> Option<Limit> {
        match self.get(path) {
            Word::Limit(limit) => *limit,
            other => mismatch(path, other),
        }
    }

    pub(super) fn properties(&self, path: &str) -> Properties {
        match self.get(path) {
            Word::Properties(properties) => properties.clone(),
            other => mismatch(path, other),
        }
    }

    pub(super) fn overlays(&self, path: &str) -> Overlays {
        match self.get(path) {
            Word::Overlays(overlays) => overlays.clone(),
            other => mismatch(path, other),
        }
    }

    pub(super) fn pixels(&self, path: &str) -> Vec<Pixel> {
        match self.get(path) {
            Word::Pixels(pixels) => pixels.clone(),
            other => mismatch(path, other),
        }
    }
}

/// Where pages find a listener, as long as nobody says.
pub(super) fn public_url(listen: SocketAddr, is_tls: bool) -> String {
    format!("{}://{listen}", if is_tls { "https" } else { "http" })
}

/// Whether two listeners can't both be there. Port 0 is a free one each time.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let same_ip = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && same_ip
}

/// A row and its reader don't agree: every test that loads a config sees it.
fn mismatch(path: &str, word: &Word) -> ! {
    panic!("{path} is read as another kind than its row's: {word:?}")
}
