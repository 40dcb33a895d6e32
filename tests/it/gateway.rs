//! The real binary: where it lives (`Site`), one run of it (`Gateway`), and the ways to end one.
//!
//! A `Site` keeps directory, config and ports over many runs, so that a killed gateway comes back as itself.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::client::Client;

/// The pixel that every site knows.
pub const PIXEL: &str = "6010000000001";
/// How long anything that must happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
const STEP: Duration = Duration::from_millis(5);

/// A data directory with its config and ports.
pub struct Site {
    root: tempfile::TempDir,
    /// Public listener.
    pub public: SocketAddr,
    /// Ops listener.
    pub ops: SocketAddr,
    /// Further environment of the gateways of this site, not of its other commands.
    pub environment: Vec<(String, OsString)>,
    /// Another program than the one under test, for the gateways of this site.
    pub program: Option<PathBuf>,
}

impl Site {
    /// A fresh directory. `extra` is TOML after the tables `server`, `ops` and `registry`.
    ///
    /// All senders have one address, so limits are only counted unless `extra` has a table `limits`.
    pub fn new(extra: &str) -> Site {
        Site::with_server("", extra)
    }

    /// As `new`, with further lines in the table `server`.
    pub fn with_server(server: &str, extra: &str) -> Site {
        let root = tempfile::Builder::new().prefix("site-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let site = Site { root, public: free_address(), ops: free_address(), environment: Vec::new(), program: None };
        let (public, ops, data) = (site.public, site.ops, site.data());
        let limits = if extra.contains("[limits]") { "" } else { "[limits]\nmode = \"observe\"\n\n" };
        let config = format!(
            "data_dir = {data:?}\n\n[server]\nlisten = \"{public}\"\nworkers = 2\n\
             {server}\n\n[ops]\nlisten = \"{ops}\"\n\n[registry]\n\
             pixels = [{{ id = \"{PIXEL}\", name = \"Checkout\", tag = \"checkout\", fb_ad_account_id = \"8\" }}]\n\n\
             {limits}{extra}\n"
        );
        fs::write(site.config(), config).unwrap();
        site
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// The config file.
    pub fn config(&self) -> PathBuf {
        self.root.path().join("pixelgate.toml")
    }

    /// Replaces a text of the config by another, for the next start.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "{from:?} is not in the config");
        fs::write(self.config(), text.replace(from, to)).unwrap();
    }

    /// Everything that the gateways of this site wrote to stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Starts the gateway and waits until it is ready.
    pub fn start(&self) -> Gateway<'_> {
        let mut gateway = self.launch();
        gateway.wait_ready();
        gateway
    }

    /// Starts the gateway and waits for nothing.
    pub fn launch(&self) -> Gateway<'_> {
        let stderr = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let stdout = File::create(self.root.path().join("stdout.log")).unwrap();
        let mut command = self.program.as_ref().map_or_else(binary, without_settings);
        command
            .args(["serve", "--config"])
            .arg(self.config())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
        Gateway { site: self, child, ended: None }
    }

    /// Runs another command of the program on this site's config to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = binary();
        command.args(arguments).arg("--config").arg(self.config());
        output(command)
    }

    fn log_path(&self) -> PathBuf {
        self.root.path().join("stderr.log")
    }
}

/// One run.
pub struct Gateway<'a> {
    site: &'a Site,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Gateway<'_> {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Polls `/readyz` until it says 200.
    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if matches!(self.readiness(), Some(200)) {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                self.ended = Some(status);
                panic!("the gateway ended with {status}; it said:\n{}", self.site.log());
            }
            assert!(Instant::now() < deadline, "not ready in time; it said:\n{}", self.site.log());
            thread::sleep(STEP);
        }
    }

    /// The status of `/readyz`, if it answers.
    pub fn readiness(&self) -> Option<u16> {
        let mut client = Client::connect(self.site.ops).ok()?;
        client.get("/readyz").ok().map(|reply| reply.status)
    }

    /// A figure of `/metrics`, by its name with labels, without `pixelgate_`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics([name]).map(|[value]| value)
    }

    /// Figures of one scrape; `None` without an answer, or if one of them is not there.
    pub fn metrics<const N: usize>(&self, names: [&str; N]) -> Option<[f64; N]> {
        let text = Client::connect(self.site.ops).ok()?.get("/metrics").ok()?.body;
        let text = String::from_utf8(text).unwrap();
        let mut found = [0.0; N];
        for (name, value) in names.iter().zip(&mut found) {
            let wanted = format!("pixelgate_{name} ");
            *value = text.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok())?;
        }
        Some(found)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// `kill -9`: no code of the program runs after this.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        self.ended = Some(status);
        assert_eq!(status.signal(), Some(9), "it had ended before: {status}; it said:\n{}", self.site.log());
    }

    /// Sends SIGTERM and doesn't wait.
    pub fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.ended = Some(status);
                return status;
            }
            assert!(Instant::now() < deadline, "did not end in time; it said:\n{}", self.site.log());
            thread::sleep(STEP);
        }
    }

    /// Whether it has ended by itself, and how.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.ended = self.ended.or(self.child.try_wait().unwrap());
        self.ended
    }

    /// SIGTERM, and its exit code.
    pub fn stop(self) -> Option<i32> {
        self.ask_to_stop();
        self.wait().code()
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // Only a failed test gets here; nothing may outlive it.
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Runs a command that must end by itself; one that doesn't, such as a gateway that should have refused, is killed.
pub fn output(mut command: Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = Pid::from_child(&child);
    let (ended, is_over) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        if is_over.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            kill_process(id, Signal::KILL).ok();
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(ended);
    guard.join().unwrap();
    assert_ne!(output.status.signal(), Some(9), "it did not end: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The program under test, or the one that `PIXELGATE_TEST_BINARY` names, without the environment's own settings.
pub fn binary() -> Command {
    let built = || env!("CARGO_BIN_EXE_pixelgate").into();
    without_settings(std::env::var_os("PIXELGATE_TEST_BINARY").unwrap_or_else(built))
}

/// A program without the environment's own settings.
fn without_settings(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PIXELGATE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Polls until something holds.
pub fn until(what: &str, holds: impl FnMut() -> bool) {
    until_or(|| what.to_owned(), holds);
}

/// The same; what is told if it doesn't is made then.
pub fn until_or(told: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {}", told());
        thread::sleep(STEP);
    }
}

/// A loopback port that is free now. Below the range that the kernel gives to outgoing connections: a load generator
/// that connects to a killed gateway's port in that range can be connected to itself, and then holds the port.
pub fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1)))
}

/// The first of so many ports in a row that are free now, and that no other test of this process is given: a program
/// binds some of them late, and some again after a restart.
pub fn free_ports(count: u16) -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Not where a process with the next id begins, which may run beside this one.
    let start = std::process::id().wrapping_mul(613) % u32::from(COUNT);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(u32::from(count), Ordering::Relaxed);
        let offset = ((start + step) % u32::from(COUNT)) as u16;
        let mut ports = FIRST + offset..FIRST + offset + count;
        if ports.end <= FIRST + COUNT && ports.all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return FIRST + offset;
        }
    }
    panic!("no {count} free ports in a row on loopback");
}
