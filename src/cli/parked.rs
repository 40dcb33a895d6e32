//! `pixelgate parked list` and `retry`: records that Kafka refused alone.

use std::io::Write;
use std::sync::Arc;

use anyhow::{anyhow, bail};

use super::journal::Held;
use crate::app::Refusal;
use crate::config::Config;
use crate::journal::look::Log;
use crate::publish::parked;
use crate::publish::retry::retry;
use crate::time::{SystemClock, Timestamp};

/// What to do with them.
#[derive(clap::Subcommand)]
pub enum Command {
    /// One JSON object a line: position, record_id, reason, size, times. Also of a running gateway.
    List {
        /// With the record itself.
        #[arg(long)]
        records: bool,
    },
    /// Offer all of them to Kafka again, exactly once. Needs the directory for itself: stop the gateway first.
    Retry,
}

/// Runs one of them.
pub fn run(command: &Command, config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    match command {
        Command::List { records } => list(config, *records, out),
        Command::Retry => offer(config, out),
    }
}

fn list(config: &Config, with_records: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let log = Log::open(&config.data_dir).map_err(|error| Refusal(error.into()))?;
    let mut unreadable = 0;
    for position in parked::positions(&config.data_dir)? {
        // Beyond the cursor it is the trace of an attempt: the record is pending.
        if position >= log.cursor.position {
            continue;
        }
        let record = match parked::read(&config.data_dir, position) {
            Ok(record) => record,
            // Somebody retries them, just now.
            Err(parked::ParkedError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::error!(%error, "parked");
                unreadable += 1;
                continue;
            }
        };
        let mut line = serde_json::json!({
            "position": position.0,
            "record_id": record.record_id(),
            "reason": record.reason,
            "size": record.body.len(),
            "received_at": Timestamp(record.head.time_ms).to_rfc3339(),
            "parked_at": record.parked_at.to_rfc3339(),
        });
        if with_records {
            let text = || String::from_utf8_lossy(&record.body).into_owned().into();
            line["record"] = serde_json::from_slice(&record.body).unwrap_or_else(|_| text());
        }
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    if unreadable > 0 {
        bail!("{unreadable} files in {} can't be read", config.data_dir.join("parked").display());
    }
    Ok(())
}

fn offer(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let held = Held::claim(config)?;
    if parked::positions(&config.data_dir)?.is_empty() {
        return Ok(writeln!(out, "{}", serde_json::json!({ "delivered": 0, "refused": 0 }))?);
    }
    let outcome = retry(config.kafka.clone(), &held.node.node_id, held.journal.clone(), Arc::new(SystemClock));
    held.close();
    let retried = outcome.map_err(|error| anyhow!(error))?;
    for (position, reason) in &retried.refused {
        tracing::warn!(%position, reason, "still parked");
    }
    let refused = retried.refused.len();
    writeln!(out, "{}", serde_json::json!({ "delivered": retried.delivered, "refused": refused }))?;
    out.flush()?;
    if refused > 0 {
        bail!("{refused} records are still refused; `pixelgate parked list` says why");
    }
    Ok(())
}
