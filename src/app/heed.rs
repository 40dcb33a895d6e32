//! What `check` would say, heeded at a start: problems refuse it, warnings are logged.

use super::Refusal;
use crate::config::Config;
use crate::preflight::{self, Finding};

/// Looks at everything that can be known before the directory is claimed.
pub(super) fn all(config: &Config) -> anyhow::Result<()> {
    heed(preflight::file_system(config))?;
    heed(preflight::management(config))?;
    heed(preflight::proxies(config))?;
    heed(preflight::cookie(config))?;
    heed(preflight::kafka_client(config))?;
    heed(preflight::upstream(config))
}

fn heed(finding: Option<Finding>) -> anyhow::Result<()> {
    match finding {
        Some(Finding::Problem(text)) => return Err(Refusal(anyhow::anyhow!(text)).into()),
        Some(Finding::Warning(text)) => tracing::warn!("{text}"),
        None => {}
    }
    Ok(())
}
