//! Filter lists' rules against the URLs of tags and events: one that is blocked by its name tells nothing of anybody.

use std::fs;
use std::path::Path;

use regex::Regex;

use super::gateway::{PIXEL, Site};

const RULES: &str = include_str!("fixtures/filter-rules.txt");

fn rules() -> Vec<&'static str> {
    RULES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// The rule that blocks a URL of a page's own site, if there is one.
pub fn hit(url: &str) -> Option<&'static str> {
    let url = url.to_ascii_lowercase();
    rules().into_iter().find(|rule| url.contains(rule))
}

#[test]
fn no_rule_hits_what_is_ours() {
    let site = Site::new("");
    let printed = String::from_utf8(site.run(&["tag", "integrity"]).stdout).unwrap();
    let tags: Vec<&str> = printed.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(tags.len(), 3, "{printed}");
    let mut ours: Vec<String> = tags.into_iter().map(str::to_owned).collect();
    ours.extend(
        ours.clone().iter().map(|url| url.replace("/fp.js", "/en_US/fp.js").replace("/fbds.js", "/en_US/fbds.js")),
    );
    for path in ["/offsite_event.php", "/offsite_event"] {
        ours.push(format!("https://px.example.com{path}"));
        ours.push(format!("https://px.example.com{path}?id={PIXEL}&amp;value=0.01&amp;currency=GBP"));
    }
    for path in ["/tr", "/tr/"] {
        ours.push(format!("https://px.example.com{path}"));
        ours.push(format!("https://px.example.com{path}?ev={PIXEL}&cd[value]=0.00&cd[currency]=USD&noscript=1"));
        ours.push(format!("https://px.example.com{path}?ev=PageView&id={PIXEL}&noscript=1"));
    }
    // And what page owners are told to write.
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tag.md")).unwrap();
    let urls = Regex::new(r#"//px\.example\.com[^\s"'`)]*"#).unwrap();
    let documented: Vec<String> = urls.find_iter(&docs).map(|url| url.as_str().to_owned()).collect();
    assert!(documented.len() > 5, "{documented:?}");
    for url in ours.iter().chain(&documented) {
        assert_eq!(hit(url), None, "{url}");
    }
}

#[test]
fn each_rule_hits_and_no_script_can_have_such_a_name() {
    for rule in rules() {
        assert_eq!(hit(&format!("https://px.example.com{rule}")), Some(rule));
    }
    // The rule for noscript images as Meta's documents have them is why ours begin with the event's name.
    assert!(hit(&format!("https://px.example.com/tr?id={PIXEL}&ev=PageView&noscript=1")).is_some());
    for name in rules().into_iter().filter(|rule| rule.ends_with(".js")) {
        let site = Site::new(&format!("[tag]\nloader_path = \"{name}\""));
        assert_eq!(site.run(&["check"]).status.code(), Some(2), "{name}");
    }
}
