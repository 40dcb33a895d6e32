//! A strict reader of Prometheus' text format: refuses what a scraper might let pass, and gives the samples.

use std::collections::{BTreeMap, BTreeSet};

use super::client::Client;
use super::gateway::Site;

/// Labels of a sample, sorted by name.
pub type Labels = BTreeMap<String, String>;

/// One family.
#[derive(Debug, Default)]
pub struct Family {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Samples by name (with its suffix) and labels.
    pub samples: BTreeMap<(String, Labels), f64>,
}

/// A page that was found to be right.
#[derive(Debug, Default)]
pub struct Page(pub BTreeMap<String, Family>);

impl Page {
    /// Scrapes a site.
    pub fn of(site: &Site) -> Page {
        let reply = Client::connect(site.ops).unwrap().get("/metrics").unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let text = String::from_utf8(reply.body).unwrap();
        read(&text).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// The value of a sample, which must be there.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or_else(|| panic!("no sample {name} {labels:?}"))
    }

    /// The value of a sample.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Labels = labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let key = (name.to_owned(), labels);
        self.0.values().find_map(|family| family.samples.get(&key).copied())
    }

    /// All samples of a family that are not 0, without those of histograms' buckets and sums.
    pub fn counted(&self, family: &str) -> BTreeMap<Vec<String>, f64> {
        let samples = self.0[family].samples.iter();
        let counts = samples
            .filter(|((name, _), value)| !name.ends_with("_bucket") && !name.ends_with("_sum") && **value != 0.0);
        counts.map(|((_, labels), value)| (labels.values().cloned().collect(), *value)).collect()
    }
}

/// Reads a page or names its first fault.
pub fn read(text: &str) -> Result<Page, String> {
    if !text.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    let (mut page, mut current, mut helped) = (Page::default(), String::new(), BTreeSet::new());
    for (index, line) in text.lines().enumerate() {
        let fault = |what: &str| format!("line {}: {what}: {line}", index + 1);
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or_else(|| fault("a help without text"))?;
            if help.trim().len() < 2 || !helped.insert(name.to_owned()) {
                return Err(fault("help is empty or given twice"));
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| fault("a type without kind"))?;
            if !matches!(kind, "counter" | "gauge" | "histogram") || !is_name(name) || !helped.contains(name) {
                return Err(fault("a type unknown, badly named or without help before it"));
            }
            let family = Family { kind: kind.to_owned(), ..Family::default() };
            if page.0.insert(name.to_owned(), family).is_some() {
                return Err(fault("a family that is not in one piece"));
            }
            current = name.to_owned();
        } else {
            let (name, labels, value) = sample(line).ok_or_else(|| fault("no sample"))?;
            let family = page.0.get_mut(&current).ok_or_else(|| fault("a sample before any type"))?;
            let suffix = name.strip_prefix(current.as_str()).ok_or_else(|| fault("a sample of another family"))?;
            let expected = if family.kind == "histogram" { &["_bucket", "_sum", "_count"][..] } else { &[""] };
            if !expected.contains(&suffix) || (suffix == "_bucket") != labels.contains_key("le") {
                return Err(fault("a sample that its type doesn't have"));
            }
            if family.samples.insert((name, labels), value).is_some() {
                return Err(fault("a series given twice"));
            }
        }
    }
    page.0.iter().try_for_each(|(name, family)| check(name, family))?;
    Ok(page)
}

fn is_name(name: &str) -> bool {
    let fine =
        |(index, byte): (usize, u8)| byte == b'_' || byte.is_ascii_lowercase() || index > 0 && byte.is_ascii_digit();
    !name.is_empty() && name.bytes().enumerate().all(fine)
}

fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            match after.strip_prefix(',') {
                Some(after) => rest = after,
                None => break rest = after.strip_prefix('}')?,
            }
        }
    }
    let value = match rest.strip_prefix(' ')? {
        "+Inf" => f64::INFINITY,
        number if number.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'e')) => {
            number.parse().ok()?
        }
        _ => return None,
    };
    is_name(name).then(|| (name.to_owned(), labels, value))
}

/// A label's value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut letters) = (String::new(), text.char_indices());
    loop {
        match letters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match letters.next()?.1 {
                'n' => '\n',
                escaped @ ('"' | '\\') => escaped,
                _ => return None,
            }),
            (_, letter) => value.push(letter),
        }
    }
}

fn check(name: &str, family: &Family) -> Result<(), String> {
    let fault = |what: &str| Err(format!("{name}: {what}"));
    if family.samples.is_empty() {
        return fault("no sample");
    }
    let names: BTreeSet<Vec<&String>> =
        family.samples.keys().map(|(_, labels)| labels.keys().filter(|label| *label != "le").collect()).collect();
    if names.len() != 1 {
        return fault("samples with different labels");
    }
    if (family.kind == "counter") != name.ends_with("_total") {
        return fault("counters end in _total, others don't");
    }
    let counts =
        family.samples.iter().filter(|((sample, _), _)| !sample.ends_with("_sum") || family.kind != "histogram");
    let whole = |value: f64| value >= 0.0 && (value.fract() == 0.0 || name == "process_cpu_seconds_total");
    if family.kind != "gauge" && !counts.clone().all(|(_, value)| whole(*value)) {
        return fault("a count is no whole number");
    }
    if family.samples.values().any(|value| !value.is_finite()) {
        return fault("a value is not finite");
    }
    if family.kind == "histogram" { check_histogram(name, family) } else { Ok(()) }
}

fn check_histogram(name: &str, family: &Family) -> Result<(), String> {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for ((sample, labels), value) in &family.samples {
        let mut labels = labels.clone();
        let le = labels.remove("le");
        let buckets = series.entry(labels).or_default();
        if sample.ends_with("_bucket") {
            let le = le.filter(|le| le == "+Inf" || le.parse::<f64>().is_ok_and(f64::is_finite));
            let le = le.ok_or_else(|| format!("{name}: a bucket's bound is no number"))?;
            buckets.push((le.parse().unwrap(), *value));
        }
    }
    for (labels, mut buckets) in series {
        buckets.sort_by(|left, right| left.0.total_cmp(&right.0));
        let of = |suffix: &str| family.samples.get(&(format!("{name}{suffix}"), labels.clone())).copied();
        let rising = buckets.is_sorted_by(|left, right| left.1 <= right.1);
        let last = buckets.last().filter(|(bound, _)| bound.is_infinite()).map(|(_, count)| *count);
        if !rising || last.is_none() || last != of("_count") || of("_sum").is_none_or(|sum| sum < 0.0) {
            return Err(format!("{name}{labels:?}: buckets don't add up: {buckets:?}"));
        }
    }
    Ok(())
}

mod tests {
    use super::*;

    #[test]
    fn the_checker_refuses_each_kind_of_fault() {
        let head = "# HELP a_total Text.\n# TYPE a_total counter\n";
        let histogram = "# HELP h Text.\n# TYPE h histogram\n";
        assert!(read(&format!("{head}a_total{{x=\"1\",y=\"\\\"\\\\\\n\"}} 3\n")).is_ok());
        assert!(
            read(&format!("{histogram}h_bucket{{le=\"1\"}} 2\nh_bucket{{le=\"+Inf\"}} 2\nh_sum 1.5\nh_count 2\n"))
                .is_ok()
        );
        for wrong in [
            format!("{head}a_total 3"),
            "a_total 3\n".to_owned(),
            "# TYPE a_total counter\na_total 3\n".to_owned(),
            format!("{head}a_total 3.5\n"),
            format!("{head}a_total -1\n"),
            format!("{head}a_total NaN\n"),
            format!("{head}b_total 3\n"),
            format!("{head}a_total{{x=\"1\"}} 3\na_total{{x=\"1\"}} 4\n"),
            format!("{head}a_total{{x=\"1\"}} 3\na_total{{y=\"1\"}} 4\n"),
            format!("{head}a_total{{x=\"1\\t\"}} 3\n"),
            format!("{head}a_total{{x=1}} 3\n"),
            format!("{head}a_total{{x=\"1\",}} 3\n"),
            format!("{head}a_total 1\n{head}"),
            head.to_owned(),
            "# HELP a Text.\n# TYPE a counter\na 3\n".to_owned(),
            format!("{histogram}h_bucket{{le=\"1\"}} 3\nh_bucket{{le=\"+Inf\"}} 2\nh_sum 1\nh_count 2\n"),
            format!("{histogram}h_bucket{{le=\"1\"}} 2\nh_sum 1\nh_count 2\n"),
            format!("{histogram}h_bucket{{le=\"+Inf\"}} 2\nh_sum 1\nh_count 3\n"),
            format!("{histogram}h_bucket{{le=\"+Inf\"}} 2\nh_count 2\n"),
        ] {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }
}
