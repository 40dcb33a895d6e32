//! Writes configs: the commented reference `config/pixelgate.toml`, and what holds now (`pixelgate config`).

use super::keys::{Default, KEYS, Key};
use super::kind::{Kind, Word};
use super::overlay;
use super::source::{Source, variable};
use super::words::Words;

const HEAD: &str = "\
# Every key of pixelgate with its default. This file says the same as no file at all.
#
# A variable of the environment wins over the file: PIXELGATE_JOURNAL__MAX_BYTES is journal.max_bytes. A list may be one
# text with commas. Print what holds in the end: pixelgate config. Check it: pixelgate check.
# What is not written with a # has its default here; docs/contract.md tells each key's meaning in full.
";

/// Longest line of a comment.
const WIDTH: usize = 118;

/// The commented reference.
pub fn reference() -> String {
    let defaults = Words::read(Source::default()).0;
    let mut text = HEAD.to_owned();
    write(&mut text, |key, text| {
        text.push('\n');
        for line in key.doc.lines() {
            comment(line, text);
        }
        match &key.default {
            Default::Is(_) => assign(key, defaults.get(key.path), text),
            Default::Unset(then) => {
                comment(&format!("Not set: {then}."), text);
                text.push_str(&format!("# {} =\n", name(key)));
            }
        }
    });
    text
}

/// What holds, secrets redacted.
pub(super) fn effective(words: &Words) -> String {
    let mut text = String::new();
    write(&mut text, |key, text| match (&key.default, words.get(key.path)) {
        (Default::Unset(then), Word::Unset) => text.push_str(&format!("# {} is not set: {then}\n", name(key))),
        (_, word) => assign(key, word, text),
    });
    text
}

/// Sections in the rows' order.
fn write(text: &mut String, mut row: impl FnMut(&Key, &mut String)) {
    let mut current = "";
    for key in KEYS {
        let section = key.path.split_once('.').map_or("", |(section, _)| section);
        if section != current {
            text.push_str(&format!("\n[{section}]\n"));
            current = section;
        }
        row(key, text);
    }
}

fn name(key: &Key) -> &str {
    key.path.split_once('.').map_or(key.path, |(_, name)| name)
}

fn assign(key: &Key, word: &Word, text: &mut String) {
    match (word, word.to_toml()) {
        // Dotted, so that it may stand among the keys of its section.
        (Word::Properties(properties), _) => {
            for (property, value) in properties.iter() {
                let (property, value) = (toml_text(property), toml_text(&value.to_string()));
                text.push_str(&format!("{}.{property} = {value}\n", name(key)));
            }
            // An empty table would be in the way of a [section] of the same name further down.
            if properties.iter().next().is_none() {
                text.push_str(&format!("# [{}]\n", key.path));
            }
        }
        (Word::Pixels(pixels), _) if pixels.is_empty() => text.push_str(&format!("# [[{}]]\n", key.path)),
        (Word::Overlays(overlays), _) => overlay::write(overlays, text),
        (_, Some(value)) => text.push_str(&format!("{} = {value}\n", name(key))),
        (_, None) => {}
    }
}

fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// One paragraph, broken at spaces.
fn comment(paragraph: &str, text: &mut String) {
    let mut line = String::from("#");
    for word in paragraph.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

/// Names of all variables that the program knows, with those of a rate's parts; of `kafka.client` the beginning.
pub fn variables() -> Vec<String> {
    let mut names = Vec::new();
    for key in KEYS {
        let whole = variable(key.path);
        match key.kind {
            Kind::Pixels | Kind::Overlays => {}
            Kind::Client => names.push(format!("{whole}__")),
            Kind::Rate => names.extend([format!("{whole}__RATE"), format!("{whole}__BURST"), whole]),
            _ => names.push(whole),
        }
    }
    names
}

/// Paths of all keys.
pub fn paths() -> Vec<&'static str> {
    KEYS.iter().map(|key| key.path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn words(text: &str) -> Words {
        let mut source = Source::default();
        source.toml(text);
        let (words, problems) = Words::read(source);
        assert!(problems.is_empty(), "{problems:?}");
        words
    }

    #[test]
    fn the_reference_file_is_what_the_rows_say_and_equals_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/pixelgate.toml");
        if std::env::var_os("PIXELGATE_WRITE_REFERENCE").is_some() {
            std::fs::write(&path, reference()).unwrap();
        }
        let file = std::fs::read_to_string(&path).unwrap();
        let hint = "run PIXELGATE_WRITE_REFERENCE=1 cargo test --lib config::reference";
        assert!(file == reference(), "config/pixelgate.toml is not what the rows say; {hint}");
        assert_eq!(words(&file), words(""));
    }

    #[test]
    fn the_contract_tells_the_default_of_each_row() {
        let contract = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/contract.md")).unwrap();
        let mut seen = 0;
        for key in KEYS {
            let Default::Is(default) = key.default else { continue };
            let start = format!("| `{}` | ", key.path);
            let Some((_, rest)) = contract.split_once(&start) else { continue };
            seen += 1;
            let told: String = rest.split(" | ").next().unwrap().replace([' ', '`'], "");
            let told = told.trim_matches('"').to_owned();
            let expected = default.replace(' ', "");
            let is_told = if expected.is_empty() {
                told.starts_with("empty") || told == "none"
            } else {
                told.starts_with(&expected)
            };
            assert!(is_told, "docs/contract.md: {} is {default:?}, told is {told}", key.path);
        }
        assert!(seen > 35, "the scan sees {seen} rows");
    }

    #[test]
    fn what_holds_means_the_same_when_it_is_read_again() {
        let some = "data_dir = 'a \"b\"\\c'\nnode_id = 'n'\n[server]\nworkers = 3\npublic_url = 'https://p.example'\n\
                    shutdown_delay = '1500ms'\n[kafka]\nbrokers = 'a:1, b:2'\nrejected_topic = ''\n[kafka.client]\n\
                    'sasl.password' = '[redacted]'\nsasl.username = 'u'\nsocket.keepalive.enable = true\n\
                    [[registry.pixels]]\nid = '42'\nname = \"x\\n\"\ntag = 'T'\n[[registry.pixels]]\nid = '43'\n\
                    [pixels.'42']\norigins = 'Shop.example, *.shop.example,none'\ngpc = 'drop'\n[pixels.'*']\n\
                    consent = 'ignore'\n[pixels.43]\n";
        for text in ["", some] {
            let words_once = words(text);
            let written = effective(&words_once);
            assert_eq!(words(&written), words_once, "{written}");
            assert_eq!(effective(&words(&written)), written);
        }
    }

    #[test]
    fn what_holds_shows_no_secret() {
        let text = "[kafka.client]\n'sasl.password' = 'hunter2'\nsasl.username = 'u'\nssl.key.password = 'hunter2'\n";
        let words = words(text);
        let written = effective(&words);
        assert!(!written.contains("hunter2") && !format!("{words:?}").contains("hunter2"), "{written}");
        assert_eq!(written.matches("\"[redacted]\"").count(), 2, "{written}");
        assert!(written.contains("\"u\""), "{written}");
    }
}
