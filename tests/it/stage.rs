//! What fault scenarios have in common: a gateway with the shim under it and the proxy before Kafka, visitors with
//! numbered events, and the judge at the end. One line of the verdict table each.

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::audit::{Findings, balanced_stat};
use super::broker::Broker;
use super::client::Client;
use super::gateway::{Gateway, Site};
use super::load::{Ledger, Load};
use super::oracle::{self, Verdict, judge};
use super::proxy::{Network, Proxy};
use super::random::Random;
use super::scene::{self, values, wait_published, wait_until_published};
use super::shim::Shim;

/// Short, so that an outage is longer than a transaction may last.
pub const TRANSACTION: Duration = Duration::from_secs(3);

/// A scenario's surroundings.
pub struct Stage<'a> {
    /// Where the gateway lives.
    pub site: &'a Site,
    /// Its disk and clock.
    pub shim: &'a Shim,
    /// Its way to Kafka.
    pub proxy: &'a Proxy,
    /// Kafka itself.
    pub broker: &'a Broker,
    /// Where its events go.
    pub topic: &'a str,
    /// Visitors who go on through everything.
    pub load: Load,
    /// What further visitors know.
    pub others: RefCell<Ledger>,
    /// From the run's seed.
    pub random: RefCell<Random>,
}

impl Stage<'_> {
    /// A time from `low` to `high` milliseconds.
    pub fn millis(&self, low: u64, high: u64) -> Duration {
        self.random.borrow_mut().millis(low, high)
    }

    /// A number below `bound`.
    pub fn below(&self, bound: usize) -> usize {
        self.random.borrow_mut().next() as usize % bound
    }

    /// Further visitors, who don't rest; `run` begins their numbers.
    pub fn crowd(&self, run: &'static str) -> Load {
        Load::numbered(self.site.public, 6, Duration::ZERO, run)
    }

    /// Takes back what a killed gateway had not synced.
    pub fn cut_power(&self) {
        self.shim.cut_power(&self.site.data(), &mut self.random.borrow_mut());
    }
}

/// What may be wrong at the end and is right: of a destroyed record, that it is lost and counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Clean,
    /// As many lost as `journal stat` counts as damaged (but for those that nobody was told of), at least one.
    Damage,
}

/// A line of the table.
pub struct Row {
    name: String,
    outcome: Result<(Verdict, String, Duration), String>,
    took: Duration,
    expect: Expect,
}

impl Row {
    /// Whether it is as it should be.
    pub fn is_good(&self) -> bool {
        let Ok((verdict, ..)) = &self.outcome else { return false };
        match self.expect {
            Expect::Clean => verdict.is_clean(),
            // How many is compared with the journal's own count when the judge speaks.
            Expect::Damage => {
                let Findings { lost, doubled, invented, altered } = verdict.findings;
                lost > 0 && (doubled, invented, altered) == (0, 0, 0)
            }
        }
    }
}

/// Above the rows.
pub const HEAD: &str = "| fault | what happened | acknowledged | refused | open | consumed | lost | doubled | invented \
                        | altered | last event in | took | verdict |\n\
                        |---|---|---|---|---|---|---|---|---|---|---|---|---|";

impl Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.is_good() { "holds" } else { "**BROKEN**" };
        let took = self.took.as_secs_f64();
        match &self.outcome {
            Ok((verdict, detail, fresh)) => {
                let Findings { lost, doubled, invented, altered } = verdict.findings;
                let Verdict { acknowledged, refused, open, consumed, .. } = verdict;
                let (name, fresh) = (&self.name, fresh.as_secs_f64());
                write!(
                    out,
                    "| {name} | {detail} | {acknowledged} | {refused} | {open} | {consumed} | {lost} | {doubled} "
                )?;
                write!(out, "| {invented} | {altered} | {fresh:.1} s | {took:.0} s | {word} |")
            }
            Err(error) => {
                let first = error.lines().next().unwrap_or_default();
                write!(out, "| {} | {first} | | | | | | | | | | {took:.0} s | {word} |", self.name)
            }
        }
    }
}

/// A site whose gateway has the shim under it and the proxy before Kafka.
struct Set {
    site: Site,
    shim: Shim,
    topic: String,
}

impl Set {
    /// `name` is the scenario's and makes the topic; `journal` are further lines of that table.
    fn new(broker: &Broker, name: &str, journal: &str) -> Set {
        let topic: String =
            name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '.' }).collect();
        let transaction = format!("transaction_timeout = \"{}s\"\n", TRANSACTION.as_secs());
        let (mut site, shim) = (scene::site(&broker.detour().1.to_string(), &topic, &transaction), Shim::new());
        site.reconfigure("[journal]\n", &format!("[journal]\n{journal}"));
        site.environment = shim.recording(&site.data());
        Set { site, shim, topic }
    }
}

/// What a scenario does: it gets a publishing gateway under load, and gives back one that runs, with everything mended;
/// the text says what happened.
pub trait Play: for<'s> FnOnce(&Stage<'s>, Gateway<'s>) -> (Gateway<'s>, String) {}

impl<F: for<'s> FnOnce(&Stage<'s>, Gateway<'s>) -> (Gateway<'s>, String)> Play for F {}

/// One scenario from its beginning to the judge's word.
pub fn act(
    name: &str,
    journal: &str,
    expect: Expect,
    (broker, proxy): (&Broker, &Proxy),
    random: Random,
    play: impl Play,
) -> Row {
    proxy.set(Network::Good);
    proxy.release();
    row(name, expect, || {
        let set = Set::new(broker, name, journal);
        let site = &set.site;
        let load = Load::numbered(site.public, 3, Duration::from_millis(8), "");
        let gateway = site.start();
        wait_published(site, &gateway, 20);
        let stage = Stage {
            site,
            shim: &set.shim,
            proxy,
            broker,
            topic: &set.topic,
            load,
            others: RefCell::default(),
            random: RefCell::new(random),
        };
        let (gateway, detail) = play(&stage, gateway);
        let Stage { load, others, .. } = stage;
        let mut ledger = others.into_inner();
        ledger.absorb(load.finish());
        let (verdict, fresh) = end((site, gateway), (broker, &set.topic), expect, ledger);
        (verdict, detail, fresh)
    })
}

/// One scenario: `play` says the judge's word, what happened, and how long a fresh event took.
pub fn row(name: &str, expect: Expect, play: impl FnOnce() -> (Verdict, String, Duration)) -> Row {
    let begun = Instant::now();
    let played = catch_unwind(AssertUnwindSafe(play));
    let outcome = played.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    });
    let row = Row { name: name.to_owned(), outcome, took: begun.elapsed(), expect };
    if let (false, Err(error)) = (row.is_good(), &row.outcome) {
        eprintln!("{name}: {error}");
    }
    eprintln!("{row}");
    row
}

/// All is mended: a fresh event passes, the gateway is stopped, the judge speaks, the journal's own count balances.
pub fn end(
    (site, gateway): (&Site, Gateway<'_>),
    (broker, topic): (&Broker, &str),
    expect: Expect,
    mut ledger: Ledger,
) -> (Verdict, Duration) {
    let fresh = Instant::now();
    send_last(site, &mut ledger);
    wait_until_published(site, &gateway);
    let fresh = fresh.elapsed();
    assert_balance(site, &gateway);
    assert_eq!(gateway.stop(), Some(0), "{}", site.log());
    let verdict = judge(&ledger, &values(broker, topic));
    let stat = balanced_stat(site);
    assert_eq!(stat["published"].as_u64(), Some(verdict.consumed as u64), "{stat}; {verdict:?}");
    if expect == Expect::Damage {
        // Requests without an answer may be among the damaged, and nobody misses them.
        let (damaged, lost) = (stat["damaged"].as_u64().unwrap(), verdict.findings.lost as u64);
        assert!((lost..=lost + verdict.open as u64).contains(&damaged), "{stat}; {verdict:?}");
    }
    if expect == Expect::Clean && !verdict.is_clean() {
        eprintln!("{topic}: {stat}; it said:\n{}", site.log());
    }
    assert!(!site.log().contains("panicked"), "{}", site.log());
    (verdict, fresh)
}

/// The figures of one scrape add up.
fn assert_balance(site: &Site, gateway: &Gateway<'_>) {
    let names = [
        "journal_accepted_events",
        "journal_published_events",
        "journal_pending_events",
        "journal_parked_events",
        "journal_expired_events",
        "journal_damaged_events",
    ];
    let mut figures = None;
    // One that wakes up closes connections, perhaps this one.
    scene::wait_for("figures", site, || {
        figures = gateway.metrics(names);
        figures.is_some()
    });
    let [accepted, fates @ ..] = figures.expect("it answered");
    assert_eq!(accepted, fates.iter().sum::<f64>(), "{fates:?}");
    assert!(accepted > 0.0);
}

/// An event after all is mended: it must pass like any other.
fn send_last(site: &Site, ledger: &mut Ledger) {
    let reply = Client::connect(site.public).and_then(|mut client| oracle::offer(&mut client, 0, "last")).unwrap();
    assert!(matches!(reply.status, 200 | 204), "{reply:?}");
    ledger.sent.insert("last".into());
    ledger.numbered.insert("last".into());
    ledger.acknowledged.insert(reply.record_id().expect("accepted").to_owned(), "last".into());
}

/// Waits for the end of a gateway that is to be killed by a trap or a crash point, and starts the next.
pub fn reborn<'s>(stage: &Stage<'s>, mut gateway: Gateway<'s>, what: &str) -> Gateway<'s> {
    scene::wait_for(what, stage.site, || gateway.has_ended().is_some());
    assert_eq!(gateway.wait().code(), None, "{what}: killed, not ended: {}", stage.site.log());
    stage.site.start()
}
