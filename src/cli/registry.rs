//! `pixelgate registry audit` and `backup`: they work beside a running gateway and change nothing of it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Subcommand;

use crate::config::Config;
use crate::registry::{self, Mode, backup, commands};

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Print who changed which pixel or token, as NDJSON, the oldest first.
    Audit,
    /// Copy pixels, tokens and audit log to a new file, also of a running gateway.
    Backup {
        /// The file; it must not be there yet.
        file: PathBuf,
    },
}

/// Does it.
pub fn run(command: &Command, config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    match command {
        Command::Audit => print_audit(config, out),
        Command::Backup { .. } if config.registry.database.is_some() && config.registry.mode == Mode::Local => {
            bail!("the registry is in registry.database: copy that with pg_dump")
        }
        Command::Backup { file } => {
            let bytes = backup::write(&config.data_dir, file)?;
            writeln!(out, "{bytes} bytes in {}", file.display())?;
            Ok(out.flush()?)
        }
    }
}

fn print_audit(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    let printed = commands::read_audit(&config.registry, &mut |line| {
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")
    });
    match printed {
        // A reader that has seen enough is no fault, as `main` knows it.
        Err(registry::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(source.into())
        }
        printed => printed.context("the audit log can't be printed"),
    }?;
    Ok(out.flush()?)
}
