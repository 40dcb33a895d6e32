//! `pixelgate serve`: runs the gateway until a signal or a failure.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, bail};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{Refusal, Running};
use crate::config::Config;
use crate::http::listen::Passed;
use crate::registry::tokens::FIRST_TOKEN_FILE;

/// Serves; `Ok` after a clean stop.
pub fn run(config: Config, file: Option<&Path>) -> anyhow::Result<()> {
    let passed = Passed::take().map_err(|error| Refusal(anyhow::anyhow!(error)))?;
    actix_web::rt::System::new().block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
        let mut hangup = signal(SignalKind::hangup()).context("signals")?;
        let data_dir = config.data_dir.clone();
        let running = Running::start(config, passed)?;
        greet(&data_dir, file, &running)?;
        running.ready();
        tell_manager(NotifyState::Ready);
        let reloads = async {
            while hangup.recv().await.is_some() {
                running.reload().await;
            }
        };
        let failed = tokio::select! {
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            () = running.failed() => true,
            // For ever: signals go on coming.
            () = reloads => false,
        };
        tell_manager(NotifyState::Stopping);
        let closed = running.stop().await;
        if failed || !closed {
            bail!("the journal or the publisher failed; the next start finds out what is on disk");
        }
        tracing::info!("stopped");
        Ok(())
    })
}

/// Tells the service manager, if one asked for it (systemd's `Type=notify`).
fn tell_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager can't be told");
    }
}

/// What to paste next. The token itself is never printed: the lines read its file. They use the listeners' addresses,
/// since a public URL may lead through a proxy that isn't there yet.
fn greet(data_dir: &Path, file: Option<&Path>, running: &Running) -> anyhow::Result<()> {
    let token = data_dir.join(FIRST_TOKEN_FILE);
    if !token.exists() {
        return Ok(());
    }
    let url = |address| local(address, running.is_tls());
    let (token, pixels_url) = (quoted(&token), url(running.management.unwrap_or(running.public)));
    let url = url(running.public);
    // The certificate is for a name, and this is an address.
    let curl = if running.is_tls() { "curl -k" } else { "curl" };
    let config = file.map(|file| format!(" --config {}", quoted(file))).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "pixelgate listens on {url}. Create a pixel, fire it, see it:\n\n\
         ID=$({curl} -s {pixels_url}/offsitepixels -H \"Authorization: OAuth $(cat {token})\" \
         -d 'fb_ad_account_id=9&name=Shoes purchase&tag=CHECKOUT' | tr -cd 0-9)\n\
         {curl} -i \"{url}/offsite_event.php?id=$ID&value=0.01&currency=GBP\" -o /dev/null -D -\n\
         pixelgate journal tail{config}    # or: cargo run --release -- journal tail{config}\n"
    )?;
    Ok(out.flush()?)
}

/// The URL of a listener from its own machine.
fn local(mut address: SocketAddr, is_tls: bool) -> String {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("{}://{address}", if is_tls { "https" } else { "http" })
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_to_paste_reach_the_listener_and_the_file() {
        for (address, url) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:80", "http://[::1]:80"),
            ("192.0.2.1:80", "http://192.0.2.1:80"),
        ] {
            assert_eq!(local(address.parse().unwrap(), false), url);
            assert_eq!(local(address.parse().unwrap(), true), url.replace("http:", "https:"));
        }
        assert_eq!(quoted(Path::new("it's here")), r"'it'\''s here'");
    }
}
