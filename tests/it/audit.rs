//! The outside auditor: compares a ledger with the records that came out, wherever they came out.

use std::collections::HashMap;

use serde_json::Value;

use super::gateway::Site;
use super::load::Ledger;
use super::oracle;

/// What an audit saw.
#[derive(Debug, PartialEq, Eq)]
pub struct Findings {
    /// Acknowledged, and not there.
    pub lost: usize,
    /// Records that came out more than once, by record id or by nonce.
    pub doubled: usize,
    /// Records that nobody sent, or that a refused request left, or under another id than was answered.
    pub invented: usize,
    /// Records of numbered events that don't say what was sent.
    pub altered: usize,
}

/// No loss, no double, nothing invented or altered.
pub const CLEAN: Findings = Findings { lost: 0, doubled: 0, invented: 0, altered: 0 };

/// Compares; `records` are JSON texts of events. Prints the first offenders.
pub fn audit(ledger: &Ledger, records: &[String]) -> Findings {
    let mut findings = CLEAN;
    let mut by_id: HashMap<String, String> = HashMap::new();
    let mut nonces: HashMap<String, String> = HashMap::new();
    for text in records {
        let record: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in record {text}"));
        let id = record["record_id"].as_str().expect("each record has a record_id").to_owned();
        let nonce = record["params"]["nonce"].as_str().unwrap_or("(none)").to_owned();
        if by_id.insert(id.clone(), nonce.clone()).is_some() || nonces.insert(nonce.clone(), id).is_some() {
            report(&mut findings.doubled, "doubled", text);
        }
        if !ledger.sent.contains(&nonce) || ledger.refused.contains_key(&nonce) {
            report(&mut findings.invented, "invented", text);
        }
        if ledger.numbered.contains(&nonce) && !oracle::made(&record) {
            report(&mut findings.altered, "altered", text);
        }
    }
    for (id, nonce) in &ledger.acknowledged {
        match by_id.get(id) {
            None => report(&mut findings.lost, "lost", &format!("{id} nonce {nonce}")),
            Some(found) if found != nonce => report(&mut findings.invented, "mixed up", &format!("{id} {nonce}")),
            Some(_) => {}
        }
    }
    findings
}

fn report(count: &mut usize, word: &str, what: &str) {
    *count += 1;
    if *count <= 5 {
        eprintln!("{word}: {what}");
    }
}

/// `pixelgate journal export`: every retained event.
pub fn export(site: &Site) -> Vec<String> {
    let output = site.run(&["journal", "export"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "journal export: {complaint}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// `pixelgate journal stat`, with its balance checked.
pub fn balanced_stat(site: &Site) -> Value {
    let output = site.run(&["journal", "stat"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "journal stat: {complaint}");
    let stat: Value = serde_json::from_slice(&output.stdout).expect("stat prints one JSON object");
    let figure = |name: &str| stat[name].as_u64().unwrap_or_else(|| panic!("{name} is no integer in {stat}"));
    let parts = ["published", "pending", "parked", "expired", "damaged"].map(figure);
    assert_eq!(figure("accepted"), parts.iter().sum::<u64>(), "conservation does not balance: {stat}");
    stat
}

mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        for nonce in ["0-1", "0-2", "0-3", "0-4"] {
            ledger.sent.insert(nonce.to_owned());
        }
        ledger.acknowledged.insert("a".to_owned(), "0-1".to_owned());
        ledger.acknowledged.insert("b".to_owned(), "0-2".to_owned());
        ledger.refused.insert("0-3".to_owned(), "overloaded".to_owned());
        ledger.open.insert("0-4".to_owned());
        ledger
    }

    fn record(id: &str, nonce: &str) -> String {
        format!(r#"{{"record_id":"{id}","params":{{"nonce":"{nonce}"}}}}"#)
    }

    fn check(records: &[(&str, &str)], expected: Findings) {
        let records: Vec<String> = records.iter().map(|(id, nonce)| record(id, nonce)).collect();
        assert_eq!(audit(&ledger(), &records), expected);
    }

    #[test]
    fn an_audit_finds_each_kind_of_fault() {
        check(&[("a", "0-1"), ("b", "0-2")], CLEAN);
        check(&[("a", "0-1"), ("b", "0-2"), ("c", "0-4")], CLEAN);
        check(&[("a", "0-1")], Findings { lost: 1, ..CLEAN });
        check(&[("a", "0-1"), ("b", "0-2"), ("b", "0-2")], Findings { doubled: 1, ..CLEAN });
        check(&[("a", "0-1"), ("b", "0-2"), ("c", "0-2")], Findings { doubled: 1, ..CLEAN });
        check(&[("a", "0-1"), ("b", "0-2"), ("c", "9-9")], Findings { invented: 1, ..CLEAN });
        check(&[("a", "0-1"), ("b", "0-2"), ("c", "0-3")], Findings { invented: 1, ..CLEAN });
        check(&[("a", "0-2"), ("b", "0-1")], Findings { invented: 2, ..CLEAN });
    }
}
