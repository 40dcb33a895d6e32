//! `pixelgate token create`, `list` and `revoke`: plain functions on a registry, wherever it is.
//!
//! They work beside a running gateway, which takes notice at its next management request.

use std::io::Write;

use anyhow::{Context, bail};

use crate::registry::audit::By;
use crate::registry::tokens::Grant;
use crate::registry::{Options, commands};
use crate::time::Timestamp;

/// The audit log names the user of a command.
fn by_user() -> By {
    By::user(rustix::process::getuid().as_raw())
}

/// Makes a token and prints it: the only time that it can be seen.
pub fn create(options: &Options, grant: &Grant, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    let token = commands::create_token(options, grant, &by_user(), now)?;
    writeln!(out, "{token}").context("the token was made but could not be printed: revoke it")?;
    out.flush().context("the token was made but could not be printed: revoke it")
}

/// Prints all tokens, without their text, as tab-separated columns with a head.
pub fn list(options: &Options, out: &mut impl Write) -> anyhow::Result<()> {
    let tokens = commands::list_tokens(options)?;
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
pub fn revoke(options: &Options, name: &str, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    if !commands::revoke_token(options, name, &by_user(), now)? {
        bail!("no token named {name:?} is in force; `pixelgate token list` shows them");
    }
    writeln!(out, "revoked {name}")?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::registry::tokens::hash;
    use crate::registry::{Learning, Mode};

    fn at(data_dir: &Path) -> Options {
        let (pixels, learning) = (Vec::new(), Learning::none());
        Options { mode: Mode::Local, data_dir: data_dir.into(), pixels, max_pixels: 1, learning, database: None }
    }

    fn grant(name: &str) -> Grant {
        Grant { name: name.into(), ad_accounts: vec!["9".into(), "8".into()], read_only: true }
    }

    /// A pipe whose reader has gone.
    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_token_that_could_not_be_printed_is_named_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = create(&at(dir.path()), &grant("a"), Timestamp(1), &mut Broken).unwrap_err();
        assert!(error.to_string().contains("revoke it"), "{error}");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        assert!(list(&at(dir.path()), &mut out).is_err());
        assert!(revoke(&at(dir.path()), "a", Timestamp(1), &mut out).is_err());
        create(&at(dir.path()), &grant("a"), Timestamp(1), &mut Vec::new()).unwrap();
        assert!(revoke(&at(dir.path()), "b", Timestamp(1), &mut out).unwrap_err().to_string().contains("\"b\""));
        assert!(out.is_empty());
    }

    #[test]
    fn tokens_are_printed_once_listed_and_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let (mut printed, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
        create(&at(dir.path()), &grant("Jo"), Timestamp(1000), &mut printed).unwrap();
        let token = String::from_utf8(printed).unwrap();
        assert_eq!(token.len(), 41);
        list(&at(dir.path()), &mut before).unwrap();
        revoke(&at(dir.path()), "Jo", Timestamp(2000), &mut Vec::new()).unwrap();
        list(&at(dir.path()), &mut after).unwrap();
        let head = "name\taccess\tad_accounts\tcreated\trevoked\n";
        let line = "Jo\tread\t9,8\t1970-01-01T00:00:01.000Z\t";
        assert_eq!(String::from_utf8(before).unwrap(), format!("{head}{line}-\n"));
        assert_eq!(String::from_utf8(after).unwrap(), format!("{head}{line}1970-01-01T00:00:02.000Z\n"));
        let stored = std::fs::read(dir.path().join(crate::registry::FILE)).unwrap();
        let hash = hash(token.trim().as_bytes());
        assert!(stored.windows(32).any(|window| window == hash), "its hash and nothing else is there");
    }
}
