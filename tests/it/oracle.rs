//! Numbered events whose content follows from their number, and the judge of what became of them.
//!
//! The number is in the parameter `nonce`; everything else of an event can be told from it. So each record can
//! be held against what was sent, byte for byte, however long ago and through whatever it came.

use std::io;

use serde_json::{Map, Value};

use super::audit::{CLEAN, Findings, audit};
use super::client::{Client, Reply};
use super::gateway::PIXEL;
use super::load::Ledger;
use super::random::Random;

const PATH: &str = "/offsite_event.php";
const FORM: &str = "application/x-www-form-urlencoded";
/// What pages send, and what could break a record, a header or a page that shows it.
const LETTERS: [&str; 22] = [
    "a", "B", "7", " ", "\"", "\\", "<script>", "&", "=", "+", "%41", ";", "\r\n", "\t", "\0", "\u{7f}", "{}", "é",
    "漢", "😀", "\u{2028}", "'--",
];

/// Sends an event in one of the forms that there are.
pub fn offer(client: &mut Client, number: u64, nonce: &str) -> io::Result<Reply> {
    let pairs = pairs(nonce);
    let text = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
    let json = || Value::Object(pairs.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect());
    match number % 5 {
        0 => client.post(PATH, FORM, &text),
        1 => client.post(PATH, "application/json", &json().to_string()),
        2 => client.post(PATH, "text/plain;charset=UTF-8", &json().to_string()),
        _ => client.get(&format!("{PATH}?{text}")),
    }
}

/// Names and values as sent.
fn pairs(nonce: &str) -> Vec<(String, String)> {
    // FNV-1a.
    let hash = nonce
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut random = Random::new(hash);
    let mut pairs = vec![("id".into(), PIXEL.into()), ("nonce".into(), nonce.into())];
    if !random.next().is_multiple_of(4) {
        pairs.push(("value".into(), format!("{}.{:02}", random.next() % 100_000, random.next() % 100)));
        pairs.push(("currency".into(), ["GBP", "EUR", "JPY"][random.next() as usize % 3].into()));
    }
    if random.next().is_multiple_of(2) {
        pairs.push(("ev".into(), text(&mut random, 8)));
        pairs.push(("eid".into(), format!("{:x}", random.next())));
    }
    for number in 0..random.next() % 5 {
        let length = 1 + random.next() % 60;
        pairs.push((format!("p{number}"), text(&mut random, length)));
    }
    pairs
}

/// Whether a record says what was sent under its number, no more and no less.
pub fn made(record: &Value) -> bool {
    let Some(nonce) = record["params"]["nonce"].as_str() else { return false };
    let mut expected = Map::new();
    let mut params = Map::new();
    for (name, value) in pairs(nonce) {
        let field = match name.as_str() {
            "id" => "pixel_id",
            "value" | "currency" => &name,
            "ev" => "event_name",
            "eid" => "event_id",
            _ => {
                params.insert(name, value.into());
                continue;
            }
        };
        expected.insert(field.to_owned(), value.into());
    }
    expected.insert("params".into(), params.into());
    let fields = ["pixel_id", "value", "currency", "event_name", "event_id", "params", "warnings"];
    fields.into_iter().all(|field| record.get(field) == expected.get(field))
}

fn text(random: &mut Random, length: u64) -> String {
    // Neither empty, nor of spaces only.
    (0..length).map(|_| LETTERS[random.next() as usize % LETTERS.len()]).chain(["."]).collect()
}

/// What the judge says.
#[derive(Debug)]
pub struct Verdict {
    /// Answered with 2xx.
    pub acknowledged: usize,
    /// Answered with a reason that says that nothing was recorded.
    pub refused: usize,
    /// Not answered, or with `journal_unavailable`.
    pub open: usize,
    /// Records that came out.
    pub consumed: usize,
    /// Lost, doubled, invented, altered.
    pub findings: Findings,
}

impl Verdict {
    /// No fault of any kind.
    pub fn is_clean(&self) -> bool {
        self.findings == CLEAN && self.acknowledged > 0
    }
}

/// Holds what came out against what was sent and answered.
pub fn judge(ledger: &Ledger, records: &[String]) -> Verdict {
    Verdict {
        acknowledged: ledger.acknowledged.len(),
        refused: ledger.refused.len(),
        open: ledger.open.len(),
        consumed: records.len(),
        findings: audit(ledger, records),
    }
}

mod tests {
    use super::*;

    #[test]
    fn the_judge_sees_what_is_altered() {
        let mut ledger = Ledger::default();
        ledger.sent.insert("0-1".into());
        ledger.numbered.insert("0-1".into());
        ledger.acknowledged.insert("a".into(), "0-1".into());
        let mut record = Map::new();
        let mut params = Map::new();
        for (name, value) in pairs("0-1") {
            match name.as_str() {
                "id" => drop(record.insert("pixel_id".into(), value.into())),
                "ev" => drop(record.insert("event_name".into(), value.into())),
                "eid" => drop(record.insert("event_id".into(), value.into())),
                "value" | "currency" => drop(record.insert(name, value.into())),
                _ => drop(params.insert(name, value.into())),
            }
        }
        record.insert("record_id".into(), "a".into());
        record.insert("params".into(), params.into());
        let whole = Value::Object(record.clone()).to_string();
        assert!(judge(&ledger, std::slice::from_ref(&whole)).is_clean());
        assert!(!judge(&ledger, &[]).is_clean());
        assert!(!judge(&ledger, &[whole.clone(), whole]).is_clean());
        record.insert("value".into(), "1".into());
        assert_eq!(judge(&ledger, &[Value::Object(record).to_string()]).findings.altered, 1);
    }
}
