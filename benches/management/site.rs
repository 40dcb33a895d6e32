//! A gateway in `proxy` mode on CPU 0: its directory, its config, its runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::load::{self, Done, Workload};

const PATIENCE: Duration = Duration::from_secs(120);

/// Keeps this thread, and what it starts, on one CPU.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).expect("the bench needs two CPUs");
}

pub(crate) struct Site {
    directory: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    ops: SocketAddr,
}

/// One run. Ends with it.
pub(crate) struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Site {
    /// `lines` go on in the table `registry`.
    pub(crate) fn new(upstream: SocketAddr, lines: &str) -> Site {
        let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let site = Site { directory: scratch.unwrap(), address: free_address(), ops: free_address() };
        site.configure(upstream, lines);
        site
    }

    /// Writes the config for the next run.
    pub(crate) fn configure(&self, upstream: SocketAddr, lines: &str) {
        let (data, public, ops) = (self.directory.path().join("data"), self.address, self.ops);
        let config = format!(
            "data_dir = {data:?}\n[server]\nlisten = \"{public}\"\nworkers = 1\n[ops]\nlisten = \"{ops}\"\n\
             [limits]\nmode = \"off\"\n[log]\nlevel = \"error\"\n[journal]\nmax_bytes = \"2GiB\"\n\
             [registry]\nmode = \"proxy\"\nupstream = \"http://{upstream}\"\n{lines}\n"
        );
        std::fs::write(self.file(), config).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("pixelgate.toml")
    }

    pub(crate) fn start(&self) -> Gateway {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pixelgate"));
        command.arg("--config").arg(self.file()).stdout(Stdio::null()).stderr(Stdio::inherit());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PIXELGATE_")) {
            command.env_remove(name);
        }
        pin(0);
        let child = command.spawn();
        pin(1);
        Gateway(child.unwrap())
    }

    pub(crate) fn start_and_wait(&self) -> Gateway {
        let gateway = self.start();
        until("the gateway answers", || std::net::TcpStream::connect(self.address).is_ok());
        gateway
    }

    /// Runs a request in a closed loop.
    pub(crate) fn load(&self, target: &str, connections: usize, time: Duration) -> Done {
        let requests = vec![request(target)];
        let workload = Workload { address: self.address, requests, connections, is_fresh: false, wrap: load::plain };
        load::run(&workload, time)
    }

    /// A figure of `/metrics`.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(self.ops).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Whether an event of this pixel is accepted.
    pub(crate) fn accepts(&self, id: &str) -> bool {
        use std::io::{Read, Write};
        let ask = || -> std::io::Result<Vec<u8>> {
            let mut stream = std::net::TcpStream::connect(self.address)?;
            stream.write_all(&request(&format!("/offsite_event.php?id={id}")))?;
            let mut head = vec![0; 400];
            let read = stream.read(&mut head)?;
            head.truncate(read);
            Ok(head)
        };
        ask().is_ok_and(|head| {
            head.starts_with(b"HTTP/1.1 200") && memchr::memmem::find(&head, b"pixel_not_checked").is_none()
        })
    }
}

pub(crate) fn request(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: pixel.shop.example\r\nAuthorization: OAuth 0123456789\r\n\r\n").into_bytes()
}

/// Polls until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_micros(300));
    }
}
