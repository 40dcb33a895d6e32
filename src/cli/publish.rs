//! `pixelgate journal publish --until-empty`: empties a directory whose gateway is gone, as that gateway would.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::journal::Held;
use crate::app::Refusal;
use crate::config::Config;
use crate::publish::{Publisher, progress};
use crate::time::{Clock, SystemClock};

/// How often it is looked at, and how often it is told.
const LOOK: Duration = Duration::from_millis(50);
const TELL: Duration = Duration::from_secs(10);

/// Why it ended before the end.
enum End {
    Empty,
    Signal,
    Timeout,
    /// Only a person can mend this.
    Hopeless(&'static str),
}

/// Publishes what is left. The lock is held, and identity and cursor are the gateway's own.
pub fn run(config: &Config, timeout: Option<Duration>, retire: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if retire && config.kafka.progress_topic.is_none() {
        let needed = "kafka.progress_topic: empty; --retire takes a node out of it, so allowed is the gateways' own";
        return Err(Refusal(anyhow!(needed)).into());
    }
    let held = Held::claim(config)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let before = held.journal.stats().counts;
    let (mut end, mut blocked) = (End::Empty, None);
    if held.journal.stats().publish_position < held.journal.synced() {
        tracing::info!(pending = before.pending, "publishing what is left");
        let publisher =
            Publisher::start(config.kafka.clone(), &held.node.node_id, held.journal.clone(), clock.clone())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        end = runtime.block_on(watch(&held, &publisher, timeout))?;
        blocked = publisher.stats.blocked();
        // What is in hand is ended; with everything delivered only the side lane has something left.
        publisher.stop(2 * config.kafka.transaction_timeout, &*clock);
    }
    let (counts, node_id) = (held.journal.stats().counts, held.node.node_id.clone());
    held.close();
    let figures = serde_json::json!({
        "published": counts.published.saturating_sub(before.published),
        "pending": counts.pending,
        "parked": counts.parked,
    });
    writeln!(out, "{figures}")?;
    out.flush()?;
    let left = anyhow!("{} events are left", counts.pending);
    match end {
        End::Empty if retire => take_out(config, &node_id, counts.parked),
        End::Empty => Ok(()),
        End::Signal => Err(left.context("stopped by a signal")),
        End::Timeout => Err(left.context(match blocked {
            Some(cause) => format!("--timeout is over, and publishing is blocked: {cause}"),
            None => "--timeout is over".to_owned(),
        })),
        End::Hopeless(cause) => bail!("publishing is blocked until somebody mends it: {cause}; {left}"),
    }
}

/// The node's last word in the progress topic: there is no such node any more.
fn take_out(config: &Config, node_id: &str, parked: u64) -> anyhow::Result<()> {
    if parked > 0 {
        bail!("not retired: {parked} events are parked here; `pixelgate parked retry` offers them again");
    }
    let Some(topic) = &config.kafka.progress_topic else { return Ok(()) };
    progress::retire(&config.kafka, topic, node_id)
        .map_err(|error| anyhow!("everything is published, and the node is not retired: {error}"))
}

async fn watch(held: &Held, publisher: &Publisher, timeout: Option<Duration>) -> anyhow::Result<End> {
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let begun = SystemClock.monotonic();
    let mut told = begun;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(End::Signal),
            _ = interrupt.recv() => return Ok(End::Signal),
            () = tokio::time::sleep(LOOK) => {}
        }
        let stats = &publisher.stats;
        if stats.reached() >= held.journal.synced() {
            return Ok(End::Empty);
        }
        if publisher.is_at_end() || !publisher.is_sound() {
            return Ok(End::Hopeless(stats.blocked().unwrap_or("a fault of this program")));
        }
        let now = SystemClock.monotonic();
        if timeout.is_some_and(|timeout| now.saturating_sub(begun) >= timeout) {
            return Ok(End::Timeout);
        }
        if now.saturating_sub(told) >= TELL {
            told = now;
            let pending = held.journal.stats().counts.pending;
            tracing::info!(pending, blocked = stats.blocked().unwrap_or("no"), "publishing");
        }
    }
}
