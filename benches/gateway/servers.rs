//! The servers under test: the gateway's own binary, nginx, and this bench's binary run again as actix-web baselines.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::baseline;
use crate::requests::{Kind, PIXEL};
use crate::secured::{self, Security};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that runs.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// The gateway's operators' listener.
    pub(crate) ops: Option<SocketAddr>,
    pub(crate) takes_posts: bool,
    /// What it takes goes on to Kafka.
    pub(crate) publishes: bool,
    pub(crate) security: Security,
    command: Command,
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a gateway is to do.
#[derive(Clone)]
pub(crate) struct Wish {
    pub(crate) acknowledge: &'static str,
    pub(crate) workers: usize,
    /// Brokers, and the delivery.
    pub(crate) kafka: Option<(String, &'static str)>,
    pub(crate) security: Security,
}

/// Keeps this thread, and what it starts, on one CPU.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).expect("the bench needs two CPUs");
}

/// Where journals are written.
pub(crate) fn directory() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Server {
    /// actix-web, a constant reply of the gateway's bytes.
    pub(crate) fn constant(workers: usize) -> Server {
        let (address, directory) = (free_address(), scratch());
        Server::start(
            "actix-web, constant GIF",
            address,
            Security::Plain,
            baseline::command(address, workers, None),
            directory,
        )
    }

    /// actix-web that parses the form, writes JSON and gives it to librdkafka without waiting for anything.
    pub(crate) fn naive(workers: usize, brokers: &str) -> Server {
        let (address, directory) = (free_address(), scratch());
        let command = baseline::command(address, workers, Some(brokers));
        let mut server = Server::start("actix-web, fire and forget", address, Security::Plain, command, directory);
        server.publishes = true;
        server
    }

    /// nginx's `empty_gif` with the gateway's headers, no access log. `None` without nginx.
    pub(crate) fn nginx(workers: usize, security: Security) -> Option<Server> {
        let (address, directory) = (free_address(), scratch());
        let command = baseline::nginx(directory.path(), address, workers, security)?;
        let name = format!("nginx, empty_gif{}", security.word());
        let mut server = Server::start(&name, address, security, command, directory);
        server.takes_posts = false;
        Some(server)
    }

    /// The gateway.
    pub(crate) fn gateway(wish: &Wish) -> Server {
        let (command, address, ops, directory) = gateway(wish);
        let kafka = wish.kafka.as_ref().map_or(String::new(), |(_, delivery)| format!(", {delivery}"));
        let name = format!("pixelgate, {}{kafka}{}", wish.acknowledge, wish.security.word());
        let mut server = Server::start(&name, address, wish.security, command, directory);
        (server.ops, server.publishes) = (Some(ops), wish.kafka.is_some());
        server
    }

    fn start(
        name: &str,
        address: SocketAddr,
        security: Security,
        command: Command,
        directory: tempfile::TempDir,
    ) -> Server {
        let mut command = quiet(command);
        let (name, child, ops) = (name.to_owned(), spawn(&mut command), None);
        let (takes_posts, publishes) = (true, false);
        Server { name, address, ops, takes_posts, publishes, security, command, child, directory }.answered()
    }

    fn answered(mut self) -> Server {
        let deadline = Instant::now() + PATIENCE;
        while first_answer(self.address, self.security).is_err() {
            assert!(self.child.try_wait().unwrap().is_none(), "{} ended", self.name);
            assert!(Instant::now() < deadline, "{} doesn't answer", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
        self
    }

    /// Ends it, as an operator would.
    pub(crate) fn stop(&mut self) {
        // nginx's workers end with their master only if it is asked to.
        let id = rustix::process::Pid::from_child(&self.child);
        if matches!(self.child.try_wait(), Ok(None)) {
            rustix::process::kill_process(id, rustix::process::Signal::TERM).ok();
        }
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// The same once more, on the same directory.
    pub(crate) fn again(mut self) -> Server {
        self.child = spawn(&mut self.command);
        self.answered()
    }

    /// The gateway's `data_dir`.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// How long a gateway takes from its start in an empty directory to the end of its first accepted request.
    pub(crate) fn time_to_first_event() -> Duration {
        let wish = Wish { acknowledge: "synced", workers: 1, kafka: None, security: Security::Plain };
        let (command, address, _, _directory) = gateway(&wish);
        let begun = Instant::now();
        let mut child = quiet(command).spawn().unwrap();
        while first_answer(address, Security::Plain).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "the gateway ended");
            assert!(begun.elapsed() < PATIENCE, "the gateway doesn't answer");
            std::thread::sleep(Duration::from_micros(200));
        }
        let took = begun.elapsed();
        child.kill().unwrap();
        child.wait().unwrap();
        took
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A figure of the gateway's `/metrics`; `None` for other servers.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let mut stream = std::net::TcpStream::connect(self.ops?).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

fn gateway(wish: &Wish) -> (Command, SocketAddr, SocketAddr, tempfile::TempDir) {
    let (directory, address, ops) = (scratch(), free_address(), free_address());
    let data: PathBuf = directory.path().join("data");
    let file = directory.path().join("pixelgate.toml");
    let kafka = wish.kafka.as_ref().map_or(String::new(), |(brokers, delivery)| {
        let topic = address.port();
        format!(
            "[kafka]\nbrokers = [\"{brokers}\"]\ndelivery = \"{delivery}\"\nevents_topic = \"bench-{topic}\"\n\
             rejected_topic = \"\"\npartitions = 4\nreplication_factor = 1\n"
        )
    });
    let tls = match wish.security {
        Security::Plain => String::new(),
        Security::Tls => {
            let (certificate, key) = secured::install(directory.path());
            format!("tls.certificate = {certificate:?}\ntls.key = {key:?}\n")
        }
    };
    let config = format!(
        "data_dir = {data:?}\n[server]\nlisten = \"{address}\"\nworkers = {}\n{tls}[ops]\nlisten = \"{ops}\"\n\
         [journal]\nacknowledge = \"{}\"\nmax_bytes = \"8GiB\"\n[limits]\nmode = \"observe\"\n{kafka}[registry]\n\
         pixels = [{{ id = \"{PIXEL}\", name = \"Checkout\", tag = \"checkout\", fb_ad_account_id = \"8\" }}]\n\
         [log]\nlevel = \"warn\"\n",
        wish.workers, wish.acknowledge,
    );
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixelgate"));
    command.arg("--config").arg(&file);
    // The bench's own settings are none of the gateway's.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PIXELGATE_")) {
        command.env_remove(name);
    }
    (command, address, ops, directory)
}

fn spawn(command: &mut Command) -> Child {
    pin(0);
    let child = command.spawn();
    pin(1);
    child.unwrap()
}

fn quiet(mut command: Command) -> Command {
    command.stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// Sends a request on a connection of its own; succeeds when it is answered with 200, or secured when there is one.
fn first_answer(address: SocketAddr, security: Security) -> std::io::Result<()> {
    let mut stream = std::net::TcpStream::connect(address)?;
    if security == Security::Tls {
        return Ok(());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&Kind::Get.requests()[0])?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    if &status == b"HTTP/1.1 200" { Ok(()) } else { Err(std::io::ErrorKind::Other.into()) }
}

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bench-").tempdir_in(directory()).unwrap()
}
