//! The commands. Results on stdout, logs on stderr; 0 done, 1 failed while running, 2 bad config, usage or directory.

pub mod check;
pub mod journal;
pub mod parked;
mod publish;
pub mod registry;
pub mod serve;
pub mod token;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::app::Refusal;
use crate::config::{self, Config, Problem};
use crate::http::tag;
use crate::registry::tokens::Grant;
use crate::telemetry;
use crate::time::{Clock, SystemClock};

/// Conversion event ingestion gateway: a 2xx means fdatasync'ed here.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// TOML file; without it the embedded defaults.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway (the default).
    Serve,
    /// Print every problem of the config, and try the disk and Kafka.
    Check,
    /// Print the config that holds, as TOML, secrets redacted.
    Config,
    /// Look into the journal, also of a running or crashed gateway. Never writes.
    #[command(subcommand)]
    Journal(journal::Command),
    /// Records that Kafka refused alone, for their size or content.
    #[command(subcommand)]
    Parked(parked::Command),
    /// The scripts that pages load.
    #[command(subcommand)]
    Tag(Tag),
    /// Management tokens of the local registry.
    #[command(subcommand)]
    Token(Token),
    /// The local registry: what was changed and by whom, and copies of it.
    #[command(subcommand)]
    Registry(registry::Command),
}

#[derive(Subcommand)]
enum Tag {
    /// Print each script's URL and its value for the attribute `integrity`.
    Integrity,
}

#[derive(Subcommand)]
enum Token {
    /// Make a token and print it once.
    Create(NewToken),
    /// List tokens, without their text.
    List,
    /// Revoke a token by its name.
    Revoke {
        /// Its name.
        name: String,
    },
}

#[derive(Args)]
struct NewToken {
    /// What it is called in lists and in `creator`.
    #[arg(long)]
    name: String,
    /// An ad account it is for; repeat for more, none means all.
    #[arg(long = "ad-account")]
    ad_accounts: Vec<String>,
    /// Only reading.
    #[arg(long)]
    read_only: bool,
}

/// Runs the command line and ends the process.
///
/// Without the C library's handlers for its end: OpenSSL's would free what threads of librdkafka still use, since a
/// stop does not wait for a client that is only connecting, and the process would end by a segmentation fault.
pub fn main() -> ! {
    let code = answer(Cli::parse());
    let _ = io::stdout().flush();
    signal_hook::low_level::exit(code)
}

/// Does what the command line asks for; the exit code.
fn answer(cli: Cli) -> i32 {
    let (config, problems) = config::load(cli.config.as_deref(), std::env::vars_os());
    let command = cli.command.unwrap_or(Command::Serve);
    // They are the result of `check`; for the others they are an error.
    if !problems.is_empty() && !matches!(command, Command::Check) {
        for problem in problems {
            let _ = writeln!(io::stderr(), "{problem}");
        }
        return 2;
    }
    let result = run(command, config, &problems, cli.config.as_deref());
    match result {
        Ok(()) => 0,
        Err(error)
            if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            0
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "pixelgate: {error:#}");
            if error.is::<Refusal>() { 2 } else { 1 }
        }
    }
}

fn run(command: Command, config: Config, problems: &[Problem], file: Option<&Path>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if matches!(command, Command::Serve | Command::Parked(_) | Command::Journal(_)) {
        telemetry::start(&config.log_level, config.log_json);
    }
    match command {
        Command::Serve => {
            drop(out);
            serve::run(config, file)
        }
        Command::Check => check::run(&config, problems, &mut out),
        Command::Config => Ok(out.write_all(config.to_toml().as_bytes())?),
        Command::Journal(command) => journal::run(&command, &config, &mut out),
        Command::Parked(command) => parked::run(&command, &config, &mut out),
        Command::Registry(command) => registry::run(&command, &config, &mut out),
        Command::Tag(Tag::Integrity) => tag_integrity(&config, &mut out),
        Command::Token(Token::Create(new)) => {
            let grant = Grant { name: new.name, ad_accounts: new.ad_accounts, read_only: new.read_only };
            token::create(&config.registry, &grant, SystemClock.now(), &mut out)
        }
        Command::Token(Token::List) => token::list(&config.registry, &mut out),
        Command::Token(Token::Revoke { name }) => token::revoke(&config.registry, &name, SystemClock.now(), &mut out),
    }
}

/// One line per script: its URL, which changes with its text, a tab, and the value of `integrity`.
fn tag_integrity(config: &Config, out: &mut impl Write) -> anyhow::Result<()> {
    for tag in tag::tags(&config.loader_path) {
        let base = &config.server.public_url;
        writeln!(out, "{base}{}?v={}\t{}", tag.path, tag.version, tag.integrity)?;
    }
    Ok(out.flush()?)
}
