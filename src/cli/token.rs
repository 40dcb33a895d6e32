//! `pixelgate token create`, `list` and `revoke`: plain functions on a data directory.
//!
//! They work beside a running gateway, which takes notice at its next management request.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};

use crate::registry::tokens::{self, Grant};
use crate::time::Timestamp;

/// Makes a token and prints it: the only time that it can be seen.
pub fn create(data_dir: &Path, grant: &Grant, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    let token = tokens::create(data_dir, grant, now)?;
    writeln!(out, "{token}").context("the token was made but could not be printed: revoke it")?;
    out.flush().context("the token was made but could not be printed: revoke it")
}

/// Prints all tokens, without their text, as tab-separated columns with a head.
pub fn list(data_dir: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let tokens = tokens::list(data_dir)?;
    writeln!(out, "name\taccess\tad_accounts\tcreated\trevoked")?;
    for token in tokens {
        let access = if token.grant.read_only { "read" } else { "read,write" };
        let accounts =
            if token.grant.ad_accounts.is_empty() { "all".into() } else { token.grant.ad_accounts.join(",") };
        let revoked = token.revoked.map_or("-".into(), |time| time.to_rfc3339());
        let created = token.created.to_rfc3339();
        writeln!(out, "{}\t{access}\t{accounts}\t{created}\t{revoked}", token.grant.name)?;
    }
    Ok(out.flush()?)
}

/// Revokes the token of a name.
pub fn revoke(data_dir: &Path, name: &str, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    if !tokens::revoke(data_dir, name, now)? {
        bail!("no token named {name:?} is in force; `pixelgate token list` shows them");
    }
    writeln!(out, "revoked {name}")?;
    Ok(out.flush()?)
}
