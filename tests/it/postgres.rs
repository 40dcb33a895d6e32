//! A real PostgreSQL from the system's package, with data of its own: started, frozen, stopped at once, brought back.
//!
//! PostgreSQL refuses to run as root; then it runs as `nobody`. Without it a test fails and says what to install.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::gateway::{free_address, until};

const INSTALL: &str = "the e2e tests need PostgreSQL: apt-get install postgresql";
/// Debian's number of `nobody` and of `nogroup`.
const NOBODY: u32 = 65_534;
/// Must never be seen in a log.
pub const PASSWORD: &str = "hunter2-of-the-database";

/// A server with its data.
pub struct Postgres {
    root: tempfile::TempDir,
    address: SocketAddr,
    settings: Vec<String>,
    process: Option<Child>,
}

impl Postgres {
    /// A fresh server that answers.
    pub fn start() -> Postgres {
        Postgres::prepared(|_| Vec::new())
    }

    /// As `start`; `prepare` may put files into its directory, and names settings such as `ssl=on`.
    pub fn prepared(prepare: impl FnOnce(&Path) -> Vec<String>) -> Postgres {
        // Not below the build's directory: `nobody` may not reach that.
        let root = tempfile::Builder::new().prefix("postgres-").tempdir_in(std::env::temp_dir()).unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let password = root.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        let settings = prepare(root.path());
        for entry in fs::read_dir(root.path()).unwrap() {
            own(&entry.unwrap().path());
        }
        own(root.path());
        let mut server = Postgres { root, address: free_address(), settings, process: None };
        let mut command = server.program("initdb");
        command.args(["-U", "pixelgate", "-E", "UTF8", "--locale=C", "-A", "scram-sha-256", "--no-sync"]);
        let output = command.arg("--pwfile").arg(&password).arg("-D").arg(server.data()).output().unwrap();
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        server.restart();
        server
    }

    /// The URL of its database.
    pub fn url(&self) -> String {
        self.url_of("127.0.0.1", "postgres")
    }

    pub fn url_of(&self, host: &str, database: &str) -> String {
        format!("postgres://pixelgate:{PASSWORD}@{host}:{}/{database}", self.address.port())
    }

    /// Starts it on its data, and waits until it answers.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.path().join("log")).unwrap();
        let port = self.address.port().to_string();
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.root.path()).args(["-h", "127.0.0.1", "-p", &port]);
        // What this costs in a power cut is not what these tests are about.
        for setting in ["fsync=off", "max_connections=50"].into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.process = Some(child);
        let log = self.root.path().join("log");
        until("PostgreSQL answers", || {
            let child = self.process.as_mut().expect("it was started");
            if let Some(status) = child.try_wait().unwrap() {
                panic!("PostgreSQL ended with {status}: {}", fs::read_to_string(&log).unwrap());
            }
            self.try_sql("postgres", "SELECT 1").is_ok()
        });
    }

    /// Ends it at once, with all that it was doing.
    pub fn stop(&mut self) {
        let mut child = self.process.take().expect("it runs");
        kill_process(Pid::from_child(&child), Signal::QUIT).unwrap();
        child.wait().unwrap();
    }

    /// Every process of it stands still, with its sockets open; or goes on.
    pub fn freeze(&self, is_frozen: bool) {
        let child = self.process.as_ref().expect("it runs");
        let signal = if is_frozen { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(child), signal).unwrap();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1).map(str::to_owned));
            if parent == Some(child.id().to_string()) {
                kill_process(Pid::from_raw(id).unwrap(), signal).ok();
            }
        }
    }

    /// What a statement prints, columns separated by `|`.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        self.try_sql(database, statement).unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    fn try_sql(&self, database: &str, statement: &str) -> Result<String, String> {
        let mut command = self.program("psql");
        let output = command.args(["-X", "-A", "-t", "-q", "-c", statement, &self.url_of("127.0.0.1", database)]);
        let output = output.output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Copies a database into another one that is empty, as the documentation says: `pg_dump`, `pg_restore`.
    pub fn dump_and_restore(&self, from: &str, to: &str) {
        let file = self.root.path().join(format!("{from}.dump"));
        let (from, to) = (self.url_of("127.0.0.1", from), self.url_of("127.0.0.1", to));
        let dump = self.program("pg_dump").arg("-Fc").arg("-f").arg(&file).arg(&from).output().unwrap();
        assert!(dump.status.success(), "pg_dump: {}", String::from_utf8_lossy(&dump.stderr));
        let restore = self.program("pg_restore").args(["-1", "-d", &to]).arg(&file).output().unwrap();
        assert!(restore.status.success(), "pg_restore: {}", String::from_utf8_lossy(&restore.stderr));
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// One of its programs, not as root.
    fn program(&self, name: &str) -> Command {
        let path = programs().join(name);
        let mut command = match rustix::process::getuid().is_root() {
            false => Command::new(path),
            true => {
                let mut command = Command::new("setpriv");
                command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"]).arg(path);
                command
            }
        };
        // libpq looks for certificates at home, and root's is closed to others.
        command
            .current_dir(self.root.path())
            .env("HOME", self.root.path())
            .env("LC_ALL", "C")
            .env("PGCONNECT_TIMEOUT", "5");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.freeze(false); // a frozen one would not end
        }
        if let Some(mut child) = self.process.take() {
            kill_process(Pid::from_child(&child), Signal::QUIT).ok();
            self.process = None;
            child.wait().ok();
        }
    }
}

fn own(path: &Path) {
    if rustix::process::getuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// Where the newest installed version has its programs; Debian keeps them out of the search path.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap_or_else(|error| panic!("{INSTALL} ({error})"));
    let number = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = versions.flatten().map(|entry| entry.path()).max_by_key(number);
    let programs = newest.map(|version| version.join("bin")).filter(|programs| programs.join("initdb").exists());
    programs.unwrap_or_else(|| panic!("{INSTALL}"))
}
