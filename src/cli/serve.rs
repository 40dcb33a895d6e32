//! `pixelgate serve`: runs the gateway until a signal or a failure.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::Running;
use crate::config::Config;
use crate::registry::tokens::FIRST_TOKEN_FILE;
use crate::telemetry;

/// Serves; `Ok` after a clean stop.
pub fn run(config: Config) -> anyhow::Result<()> {
    telemetry::start(&config.log_level, config.log_json);
    actix_web::rt::System::new().block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
        let (data_dir, public_url) = (config.data_dir.clone(), config.server.public_url.clone());
        let running = Running::start(config)?;
        let pixels_url = running.management.map_or_else(|| public_url.clone(), |address| format!("http://{address}"));
        greet(&data_dir, &public_url, &pixels_url)?;
        running.ready();
        let failed = tokio::select! {
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            () = running.failed() => true,
        };
        let closed = running.stop().await;
        if failed || !closed {
            bail!("the journal failed; the next start finds out what is on disk");
        }
        tracing::info!("stopped");
        Ok(())
    })
}

/// What to paste next. The token itself is never printed: the lines read its file.
fn greet(data_dir: &Path, url: &str, pixels_url: &str) -> anyhow::Result<()> {
    let token = data_dir.join(FIRST_TOKEN_FILE);
    if !token.exists() {
        return Ok(());
    }
    let token = token.display();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "pixelgate listens on {url}. Create a pixel, fire it, see it:\n\n\
         ID=$(curl -s {pixels_url}/offsitepixels -H \"Authorization: OAuth $(cat '{token}')\" \
         -d 'fb_ad_account_id=9&name=Shoes purchase&tag=CHECKOUT' | tr -cd 0-9)\n\
         curl -i \"{url}/offsite_event.php?id=$ID&value=0.01&currency=GBP\" -o /dev/null -D -\n\
         pixelgate journal tail    # or: cargo run --release -- journal tail\n"
    )?;
    Ok(out.flush()?)
}
