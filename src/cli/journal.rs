//! `pixelgate journal …`: a look at the records of a running or crashed gateway. Never writes, takes no lock.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::app::Refusal;
use crate::config::Config;
use crate::journal::books::{self, count};
use crate::journal::disk::RealDisk;
use crate::journal::look::Log;
use crate::journal::segment::Paths;
use crate::journal::{Batch, Commit, Journal, Next, Observer};
use crate::node::{self, Node};
use crate::record::{Kind, Position};
use crate::time::SystemClock;

/// How often a followed journal is looked at.
const FOLLOW: Duration = Duration::from_millis(200);
/// How long the journal may take to close.
const CLOSE: Duration = Duration::from_secs(20);
/// Records that `tail` begins with.
const TAIL: u64 = 10;

/// What to look at.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Figures, as one JSON object.
    Stat,
    /// Read everything; name segment and byte of damage.
    Verify,
    /// The last records as NDJSON.
    Tail {
        /// Go on with what comes.
        #[arg(long)]
        follow: bool,
        /// Which records, and how.
        #[command(flatten)]
        filter: Filter,
    },
    /// All retained records as NDJSON.
    Export {
        /// Position to begin at.
        #[arg(long)]
        from: Option<u64>,
        /// Which records, and how.
        #[command(flatten)]
        filter: Filter,
    },
    /// Publish what is left in the directory of a gateway that is gone, as that gateway would. Needs its lock.
    Publish {
        /// Until everything is delivered (or parked).
        #[arg(long, required = true)]
        until_empty: bool,
        /// Give up after so many seconds; without it, Kafka is waited for until a signal comes.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Then take this node out of kafka.progress_topic: it is gone for good, and nothing waits for it any more.
        #[arg(long)]
        retire: bool,
    },
}

/// A directory that is ours to publish from.
pub(super) struct Held {
    /// Its lock and name.
    pub(super) node: Node,
    /// Its journal.
    pub(super) journal: Journal,
}

struct Quiet;

impl Observer for Quiet {
    fn committed(&self, _: &Commit) {}
}

impl Held {
    /// Takes the lock of a directory that is there, has a name, and somewhere to publish to.
    pub(super) fn claim(config: &Config) -> anyhow::Result<Held> {
        if config.kafka.brokers.is_empty() {
            return Err(
                Refusal(anyhow::anyhow!("kafka.brokers: none; allowed are HOST:PORT such as kafka-1:9092")).into()
            );
        }
        // Looked at first: claiming would make a directory, and another name means another cursor.
        Log::open(&config.data_dir).map_err(|error| Refusal(error.into()))?;
        let name = config.data_dir.join(node::NAME);
        if config.node_id.is_none() && !name.exists() {
            let nameless = anyhow::anyhow!("node_id: {} is gone; set the node's own", name.display());
            return Err(Refusal(nameless).into());
        }
        let node = Node::claim(&config.data_dir, config.node_id.as_deref()).map_err(Refusal::of_claim)?;
        let journal = Journal::open(config.journal.clone(), Arc::new(SystemClock), Arc::new(Quiet))
            .map_err(Refusal::of_journal)?;
        Ok(Held { node, journal })
    }

    /// Ends the journal's thread.
    pub(super) fn close(&self) {
        self.journal.close(CLOSE, &SystemClock);
    }
}

/// Which records, and how.
#[derive(Args, Clone, Copy)]
pub struct Filter {
    /// Which kind.
    #[arg(long, value_enum, default_value = "event")]
    kind: Which,
    /// Prefix each line with its position and a tab.
    #[arg(long)]
    positions: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Event,
    Rejected,
    All,
}

/// Runs one of them.
pub fn run(command: &Command, config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    if let Command::Publish { timeout, retire, .. } = command {
        return super::publish::run(config, timeout.map(Duration::from_secs), *retire, out);
    }
    let mut log = Log::open(&config.data_dir).map_err(|error| Refusal(error.into()))?;
    match command {
        // Done above: it takes the lock.
        Command::Publish { .. } => {}
        Command::Stat => stat(&log, config, out)?,
        Command::Verify => verify(&log, out)?,
        Command::Tail { follow, filter } => tail(&mut log, *follow, *filter, out)?,
        Command::Export { from, filter } => {
            let oldest = log.oldest();
            let from = from.map_or(oldest, Position);
            if from < oldest {
                let gone = anyhow::anyhow!("--from {from}: no longer retained; the oldest position is {oldest}");
                return Err(Refusal(gone).into());
            }
            print_from(&log, from, *filter, out)?;
        }
    }
    Ok(out.flush()?)
}

fn stat(log: &Log, config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let snapshot = log.snapshot();
    let parked = books::parked_files(&RealDisk, &Paths::new(&config.data_dir))?;
    let counts = count(&log.cursor, &log.ledger, parked.keys(), snapshot.events);
    let figures = serde_json::json!({
        "accepted": counts.accepted,
        "published": counts.published,
        "pending": counts.pending,
        "parked": counts.parked,
        "expired": counts.expired,
        "damaged": counts.damaged,
        "next_position": snapshot.end.0,
        "publish_next_position": log.cursor.position.0,
        "oldest_position": log.oldest().0,
        "bytes": snapshot.segments.iter().map(|segment| segment.bytes).sum::<u64>(),
        "unpublished_bytes": books::unpublished_bytes(&snapshot, log.cursor.position),
        "segments": snapshot.segments.len(),
        "journal_id": crate::journal::hex::encode(&log.id()),
    });
    Ok(writeln!(out, "{figures}")?)
}

fn verify(log: &Log, out: &mut impl Write) -> anyhow::Result<()> {
    let (mut reader, mut records, mut damages) = (log.reader(log.oldest()), 0, log.beyond.len());
    for damage in &log.beyond {
        writeln!(out, "damage: {damage}")?;
    }
    loop {
        match reader.read_next()? {
            Next::Batch(batch) => records += batch.entries().count(),
            Next::Damage(damage) => {
                damages += 1;
                writeln!(out, "damage: {damage}")?;
            }
            Next::Expired(_) => {}
            Next::End => break,
        }
    }
    if let Some((segment, byte)) = &log.torn {
        writeln!(out, "torn tail: segment {segment} byte {byte}: an unsynced batch, the next start cuts it")?;
    }
    writeln!(out, "{records} records readable, {damages} damaged stretches")?;
    if damages > 0 {
        bail!("the journal is damaged");
    }
    Ok(())
}

fn tail(log: &mut Log, follow: bool, filter: Filter, out: &mut impl Write) -> anyhow::Result<()> {
    // Kinds share positions, so further back than ten positions may be needed; look at growing stretches.
    let (end, oldest, mut back) = (log.snapshot().end, log.oldest(), TAIL);
    let mut from = oldest;
    while end.0.saturating_sub(back) > oldest.0 {
        let start = Position(end.0 - back);
        if matching(log, start, filter)? >= TAIL {
            from = start;
            break;
        }
        back *= 8;
    }
    let skip = matching(log, from, filter)?.saturating_sub(TAIL);
    let mut next = print_skipping(log, from, filter, skip, out)?;
    if !follow {
        return Ok(());
    }
    loop {
        out.flush()?;
        std::thread::sleep(FOLLOW);
        log.refresh()?;
        next = print_from(log, next, filter, out)?;
    }
}

fn matching(log: &Log, from: Position, filter: Filter) -> anyhow::Result<u64> {
    let (mut reader, mut found) = (log.reader(from), 0);
    loop {
        match reader.read_next()? {
            Next::Batch(batch) => found += lines(&batch, filter).count() as u64,
            Next::Damage(_) | Next::Expired(_) => {}
            Next::End => return Ok(found),
        }
    }
}

fn lines(batch: &Batch, filter: Filter) -> impl Iterator<Item = crate::journal::Entry<'_>> {
    batch.entries().filter(move |entry| match filter.kind {
        Which::All => true,
        Which::Event => entry.head.kind == Kind::Event,
        Which::Rejected => entry.head.kind == Kind::Rejected,
    })
}

fn print_from(log: &Log, from: Position, filter: Filter, out: &mut impl Write) -> anyhow::Result<Position> {
    print_skipping(log, from, filter, 0, out)
}

fn print_skipping(
    log: &Log,
    from: Position,
    filter: Filter,
    mut skip: u64,
    out: &mut impl Write,
) -> anyhow::Result<Position> {
    let mut reader = log.reader(from);
    loop {
        match reader.read_next()? {
            Next::Batch(batch) => {
                for entry in lines(&batch, filter) {
                    if skip > 0 {
                        skip -= 1;
                        continue;
                    }
                    if filter.positions {
                        write!(out, "{}\t", entry.position)?;
                    }
                    out.write_all(entry.body)?;
                    out.write_all(b"\n")?;
                }
            }
            Next::Damage(damage) => tracing::warn!(%damage, "damage"),
            Next::Expired(_) => {}
            Next::End => return Ok(reader.position()),
        }
    }
}
