//! Makes a tag small: no comments, no blanks, short names for what the tag itself declares.
//!
//! For our own sources only, which keep to a part of ES5: statements end with `;` or a brace, a name that is declared
//! anywhere means a variable wherever it is no member, and there is no template, getter, label, `with` or `+ +`.

use std::collections::{BTreeMap, BTreeSet};

/// Characters after which a `/` begins a regular expression and no division.
const BEFORE_REGEX: &[u8] = b"(,=:;!&|?{}+";

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

/// Words, literals, and single characters of punctuation.
fn tokens(source: &str) -> Vec<&str> {
    let bytes = source.as_bytes();
    let mut found: Vec<&str> = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let start = at;
        let after_operator = found
            .last()
            .is_none_or(|last| *last == "return" || last.len() == 1 && BEFORE_REGEX.contains(&last.as_bytes()[0]));
        at += 1;
        match byte {
            b'/' if bytes.get(at) == Some(&b'/') => {
                at += memchr::memchr(b'\n', &bytes[at..]).unwrap_or(bytes.len() - at);
                continue;
            }
            b'\'' => at += literal(&bytes[at..], b'\''),
            b'/' if after_operator => at += literal(&bytes[at..], b'/'),
            byte if is_word(*byte) => at += bytes[at..].iter().take_while(|byte| is_word(**byte)).count(),
            byte if byte.is_ascii_whitespace() => continue,
            _ => {}
        }
        found.push(&source[start..at]);
    }
    found
}

/// Length of the rest of a string or regular expression, its end included. A `/` within brackets ends nothing.
fn literal(rest: &[u8], end: u8) -> usize {
    let (mut at, mut in_brackets) = (0, false);
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 1,
            b'[' if end == b'/' => in_brackets = true,
            b']' => in_brackets = false,
            byte if byte == end && !in_brackets => return at + 1,
            _ => {}
        }
        at += 1;
    }
    rest.len()
}

/// Names that are declared: functions, their parameters, variables, what is caught.
fn declared<'a>(tokens: &[&'a str]) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (index, token) in tokens.iter().enumerate() {
        let rest = &tokens[index + 1..];
        match *token {
            "function" | "catch" => {
                let head = rest.iter().take_while(|token| **token != ")");
                names.extend(head.filter(|token| is_word(token.as_bytes()[0])));
            }
            "var" => {
                let (mut depth, mut expects) = (0, true);
                for token in rest {
                    match *token {
                        "(" | "[" | "{" => depth += 1,
                        ")" | "]" | "}" => depth -= 1,
                        "," if depth == 0 => expects = true,
                        ";" if depth == 0 => break,
                        name if expects => {
                            names.insert(name);
                            expects = false;
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    names
}

/// Whether the word at `index` is a variable rather than a member's name.
fn is_variable(tokens: &[&str], index: usize) -> bool {
    let before = index.checked_sub(1).map_or("", |before| tokens[before]);
    let is_key = tokens.get(index + 1) == Some(&":") && matches!(before, "{" | ",");
    before != "." && !is_key
}

/// The same program, small.
pub fn minify(source: &str) -> String {
    let tokens = tokens(source);
    let declared = declared(&tokens);
    let (mut uses, mut foreign) = (BTreeMap::<&str, usize>::new(), BTreeSet::new());
    for (index, token) in tokens.iter().enumerate().filter(|(index, _)| is_variable(&tokens, *index)) {
        match declared.contains(token) {
            true => *uses.entry(token).or_default() += 1,
            false => _ = foreign.insert((*token, index).0),
        }
    }
    let letters = || ('a'..='z').chain('A'..='Z');
    let short = letters().map(String::from).chain(letters().flat_map(|a| letters().map(move |b| format!("{a}{b}"))));
    let mut short = short.filter(|name| !foreign.contains(name.as_str()));
    let mut by_use: Vec<(&str, usize)> = uses.into_iter().collect();
    by_use.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let renamed: BTreeMap<&str, String> =
        by_use.into_iter().filter_map(|(name, _)| Some((name, short.next()?))).collect();
    let mut out = String::with_capacity(source.len());
    for (index, token) in tokens.iter().enumerate() {
        let name = renamed.get(token).filter(|_| is_variable(&tokens, index)).map_or(*token, String::as_str);
        let next = name.as_bytes()[0];
        if is_word(next) && out.bytes().next_back().is_some_and(is_word) {
            out.push(' ');
        }
        // Before a brace that closes, a semicolon says nothing, unless it is a statement by itself.
        if *token == "}" && out.ends_with(';') {
            out.pop();
        }
        out.push_str(name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_short_and_texts_stay() {
        let source = "// A tag.\nvar total = 1, word;\nfunction add(word, k) {\n  total += word.total / 2; // no\n}\n";
        assert_eq!(tokens("a = /[/'\\]]x/g.b / 'it\\'s'"), ["a", "=", "/[/'\\]]x/", "g", ".", "b", "/", "'it\\'s'"]);
        assert_eq!(minify(source), "var b=1,a;function c(a,d){b+=a.total/2}");
        assert_eq!(minify("var word = {word: 1, b: word ? word : a.word}, a;"), "var a={word:1,b:a?a:b.word},b;");
        assert_eq!(minify("function f(item) { return typeof item; }"), "function b(a){return typeof a}");
        assert_eq!(minify("try { x(); } catch (error) { return 'a  b'; }"), "try{x()}catch(a){return'a  b'}");
        assert_eq!(minify("var i = 1; while (i--) i++;"), "var a=1;while(a--)a++;");
        // A global that is only read keeps its name, and nobody else gets it.
        assert_eq!(minify("var long = a + b;"), "var c=a+b;");
    }
}
