//! The blocks of docs/consumers.md that tests run: taken from the page itself, so that page and test can't differ.

use std::fs;
use std::path::Path;

/// The block below the line `<!-- run: NAME -->`.
pub fn block(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/consumers.md");
    let text = fs::read_to_string(path).unwrap();
    let mark = format!("<!-- run: {name} -->\n```");
    let mut found = text.split(&mark).skip(1);
    let rest = found.next().unwrap_or_else(|| panic!("docs/consumers.md has no block {name}"));
    assert_eq!(found.next(), None, "docs/consumers.md has two blocks {name}");
    let (_, body) = rest.split_once('\n').unwrap();
    body.split_once("\n```").unwrap().0.to_owned()
}

/// The block as words of a shell's command line; none of them has a space in it.
pub fn words(name: &str) -> Vec<String> {
    let text = block(name);
    assert!(!text.contains(['\n', '"', '\'', '\\', '$']), "not a plain command line: {text}");
    text.split(' ').map(str::to_owned).collect()
}

/// What a block with `pip install …` installs, and how.
pub fn requirements(name: &str) -> Vec<String> {
    let mut words = words(name);
    assert_eq!(words[..2], ["pip", "install"], "{words:?}");
    let pinned = |word: &String| word.starts_with("--") || word.contains("==");
    assert!(words[2..].iter().all(pinned), "without a version: {words:?}");
    words.split_off(2)
}
