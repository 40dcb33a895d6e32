//! Sockets to listen on: bound here, or handed over by a service manager that holds them while this program restarts.
//!
//! The protocol is systemd's (sd_listen_fds(3)): `LISTEN_PID` says for whom, `LISTEN_FDS` how many, from descriptor 3
//! on, `LISTEN_FDNAMES` what each is. A connection that comes while nobody accepts waits in such a socket's queue.

use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

/// What a socket may be called.
const NAMES: [&str; 3] = ["public", "ops", "management"];
const ALLOWED: &str = "allowed are public, ops and management, each once (FileDescriptorName= of a .socket unit)";

/// Sockets that were handed over.
#[derive(Debug, Default)]
pub struct Passed {
    /// Instead of `server.listen`.
    pub public: Option<TcpListener>,
    /// Instead of `ops.listen`.
    pub ops: Option<TcpListener>,
    /// Instead of `management.listen`.
    pub management: Option<TcpListener>,
}

/// What the environment says.
#[derive(Default)]
struct Announced {
    pid: Option<String>,
    count: Option<String>,
    names: Option<String>,
}

impl Passed {
    /// Takes what was handed over; an error if it can't be what was meant. Only once, before there are threads: it
    /// removes the variables, so that no child takes them for its own.
    pub fn take() -> Result<Passed, String> {
        let text = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let announced = Announced { pid: text("LISTEN_PID"), count: text("LISTEN_FDS"), names: text("LISTEN_FDNAMES") };
        let names = announced.read(std::process::id())?;
        let mut passed = Passed::default();
        if names.is_empty() {
            return Ok(passed);
        }
        let mut sockets = ListenFd::from_env();
        for (index, name) in names.into_iter().enumerate() {
            let what = format!("descriptor {} ({name}), handed over with LISTEN_FDS", index + 3);
            let listener = sockets.take_tcp_listener(index).map_err(|error| format!("{what}: {error}"))?;
            let listener = listener.ok_or_else(|| format!("{what}: there is none"))?;
            if !socket_acceptconn(&listener).unwrap_or(false) {
                return Err(format!("{what}: it does not listen; allowed are listening TCP sockets"));
            }
            let place = match name {
                "public" => &mut passed.public,
                "ops" => &mut passed.ops,
                _ => &mut passed.management,
            };
            *place = Some(listener);
        }
        Ok(passed)
    }

    /// Where the sockets are: public, ops, management.
    pub fn addresses(&self) -> [Option<SocketAddr>; 3] {
        [&self.public, &self.ops, &self.management].map(|listener| listener.as_ref()?.local_addr().ok())
    }
}

impl Announced {
    /// The names of the sockets for the process `own`, in the order of their descriptors.
    fn read(&self, own: u32) -> Result<Vec<&'static str>, String> {
        let Some(count) = &self.count else { return Ok(Vec::new()) };
        match self.pid.as_deref().map(str::parse::<u32>) {
            Some(Ok(pid)) if pid == own => {}
            Some(Ok(pid)) => {
                // As the protocol has it: variables go down to children, the sockets are not theirs.
                tracing::warn!("LISTEN_FDS is meant for process {pid} and this is {own}: no socket is taken from it");
                return Ok(Vec::new());
            }
            _ => {
                let pid = self.pid.as_deref().unwrap_or_default();
                return Err(format!(
                    "LISTEN_PID = {pid:?}: no process id, but LISTEN_FDS is set; allowed is both or none"
                ));
            }
        }
        let most = NAMES.len();
        let count = count.parse::<usize>().ok().filter(|count| (1..=most).contains(count));
        let count = count.ok_or_else(|| {
            format!("LISTEN_FDS = {:?}: allowed are 1 to {most} sockets", self.count.as_deref().unwrap_or_default())
        })?;
        let Some(names) = self.names.as_deref().filter(|names| !names.is_empty()) else {
            return match count {
                1 => Ok(vec!["public"]),
                _ => Err(format!("LISTEN_FDNAMES is missing, and {count} sockets need names; {ALLOWED}")),
            };
        };
        let mut known = Vec::new();
        for given in names.split(':') {
            let name = NAMES.into_iter().find(|name| *name == given).filter(|name| !known.contains(name));
            known.push(name.ok_or_else(|| format!("LISTEN_FDNAMES = {names:?}: {given:?}; {ALLOWED}"))?);
        }
        match known.len() == count {
            true => Ok(known),
            false => Err(format!("LISTEN_FDNAMES = {names:?} names {}, LISTEN_FDS says {count}", known.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pid: Option<&str>, count: Option<&str>, names: Option<&str>) -> Result<Vec<&'static str>, String> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Announced { pid: owned(pid), count: owned(count), names: owned(names) }.read(7)
    }

    #[test]
    fn what_is_not_for_us_is_left_and_what_is_wrong_is_told() {
        assert_eq!(read(None, None, None), Ok(vec![]));
        assert_eq!(read(Some("7"), None, Some("public")), Ok(vec![]));
        assert_eq!(read(Some("8"), Some("x"), Some("y")), Ok(vec![]));
        for (pid, count, names, told) in [
            (None, "1", None, "LISTEN_PID"),
            (Some("x"), "1", None, "LISTEN_PID"),
            (Some("7"), "0", None, "1 to 3"),
            (Some("7"), "4", None, "1 to 3"),
            (Some("7"), "-1", None, "1 to 3"),
            (Some("7"), "2", None, "LISTEN_FDNAMES is missing"),
            (Some("7"), "1", Some("pixelgate.socket"), "allowed are public, ops and management"),
            (Some("7"), "2", Some("public:public"), "each once"),
            (Some("7"), "2", Some("public"), "names 1, LISTEN_FDS says 2"),
            (Some("7"), "1", Some("public:ops"), "names 2, LISTEN_FDS says 1"),
        ] {
            let error = read(pid, Some(count), names).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn sockets_have_names() {
        assert_eq!(read(Some("7"), Some("1"), None), Ok(vec!["public"]));
        assert_eq!(read(Some("7"), Some("1"), Some("")), Ok(vec!["public"]));
        assert_eq!(read(Some("7"), Some("1"), Some("ops")), Ok(vec!["ops"]));
        let all = Some("ops:management:public");
        assert_eq!(read(Some("7"), Some("3"), all), Ok(vec!["ops", "management", "public"]));
    }
}
