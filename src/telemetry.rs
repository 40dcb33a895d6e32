//! Logs: to stderr, as text or JSON. What each part may say, so that no client can write them full.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Libraries that speak at the level of errors of what any client can cause by a malformed request. Replies and
/// metrics tell of those.
const SILENT: &[&str] = &["actix_http", "actix_web"];
/// Libraries whose ordinary news is none to an operator.
const QUIET: &[&str] = &["actix_server", "librdkafka", "rdkafka"];

/// Starts logging; must be called once. `level` is a word of `log.level`; unknown words mean `info`.
pub fn start(level: &str, json: bool) {
    let level: LevelFilter = level.parse().unwrap_or(LevelFilter::INFO);
    let logs = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let logs = if json { logs.json().boxed() } else { logs.boxed() };
    // The filter is for all: one for a layer forgets the next line of a thread after each of `log`'s that it refused.
    tracing_subscriber::registry().with(targets(level)).with(logs).init();
    std::panic::set_hook(Box::new(|fault| {
        // As every other line: a panic may be of a library, and tell what a client sent.
        let text = fault.payload_as_str().unwrap_or_default().escape_debug().to_string();
        let at = fault.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(thread = std::thread::current().name(), at, "a fault in the program: panicked: {text}");
    }));
}

fn targets(level: LevelFilter) -> Targets {
    // Whoever asks for details gets all of them.
    let detailed = level >= LevelFilter::DEBUG;
    let silent = SILENT.iter().map(|target| (*target, if detailed { level } else { LevelFilter::OFF }));
    let quiet = QUIET.iter().map(|target| (*target, if detailed { level } else { level.min(LevelFilter::WARN) }));
    Targets::new().with_default(level).with_targets(silent).with_targets(quiet)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_malformed_request_is_no_log_line() {
        let info = targets(LevelFilter::INFO);
        assert!(!info.would_enable("actix_http::h1::dispatcher", &Level::ERROR));
        assert!(!info.would_enable("actix_server::builder", &Level::INFO));
        assert!(info.would_enable("librdkafka", &Level::WARN));
        assert!(info.would_enable("pixelgate::app", &Level::INFO));
        assert!(!targets(LevelFilter::ERROR).would_enable("librdkafka", &Level::WARN));
        assert!(targets(LevelFilter::DEBUG).would_enable("actix_http::h1::dispatcher", &Level::ERROR));
    }
}
