//! A real Apache Kafka: downloaded by Maven once, one broker in KRaft mode, killed, frozen and brought back on the same
//! data. Topics, groups and rights are in `admin`.
//!
//! Without Java or Maven a test that asks for a broker fails and says what to install.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::{Pid, Signal, kill_process};

use super::gateway::free_address;
use super::maven::{self, INSTALL};

const VERSION: &str = "4.1.1";
const PATIENCE: Duration = Duration::from_secs(240);

/// Rights can be set; what has none set is open to everybody.
const GUARDED: &str = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                       allow.everyone.if.no.acl.found=true\nsuper.users=User:nobody";

/// A broker with its data.
pub struct Broker {
    root: tempfile::TempDir,
    address: SocketAddr,
    /// Where its second listener listens, and where it tells clients of that listener to go.
    detour: (SocketAddr, SocketAddr),
    process: Mutex<Option<Child>>,
}

impl Broker {
    /// One broker for all tests that leave it alone, each with topics of its own. Ends with the last that holds it.
    pub fn shared() -> Arc<Broker> {
        static SHARED: Mutex<Weak<Broker>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let broker = Arc::new(Broker::start(GUARDED));
            *shared = Arc::downgrade(&broker);
            broker
        })
    }

    /// A fresh, empty broker that answers. `extra` are further lines of `server.properties`, which win over ours;
    /// `{address}`, `{controller}` and `{root}` stand for the listeners' addresses and the broker's own directory.
    pub fn start(extra: &str) -> Broker {
        Broker::prepared(extra, |_| {})
    }

    /// As `start`; `prepare` may put files into the broker's directory first.
    pub fn prepared(extra: &str, prepare: impl FnOnce(&Path)) -> Broker {
        let broker = Broker::formatted(extra, prepare);
        broker.restart();
        broker
    }

    /// As `prepared`, and not yet started: one of several that start together.
    pub fn formatted(extra: &str, prepare: impl FnOnce(&Path)) -> Broker {
        let root = tempfile::Builder::new().prefix("kafka-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        prepare(root.path());
        let broker = Broker {
            root,
            address: free_address(),
            detour: (free_address(), free_address()),
            process: Mutex::default(),
        };
        let controller = free_address();
        let (address, (detour, advertised), logs) = (broker.address, broker.detour, broker.root.path().join("logs"));
        let extra = extra.replace("{address}", &address.to_string()).replace("{controller}", &controller.to_string());
        let extra = extra.replace("{root}", &broker.root.path().display().to_string());
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@{controller}\n\
             listeners=PLAINTEXT://{address},DETOUR://{detour},CONTROLLER://{controller}\n\
             advertised.listeners=PLAINTEXT://{address},DETOUR://{advertised}\n\
             controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,DETOUR:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             log.dirs={}\nnum.partitions=4\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=4\nshare.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\ngroup.initial.rebalance.delay.ms=0\n\
             transaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n{extra}\n",
            logs.display()
        );
        fs::write(broker.properties(), properties).unwrap();
        let format = ["format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"];
        let output = java("kafka.tools.StorageTool").args(format).arg(broker.properties()).output().expect(INSTALL);
        assert!(output.status.success(), "format: {}", String::from_utf8_lossy(&output.stderr));
        broker
    }

    /// `host:port` for `kafka.brokers`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Its own directory.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// What a proxy needs so that a client goes through it for everything: (where it forwards to, where it listens).
    pub fn detour(&self) -> (SocketAddr, SocketAddr) {
        self.detour
    }

    /// SIGSTOP: connections stay open, nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.process().as_ref().expect("it runs")), signal).unwrap();
    }

    /// `kill -9`.
    pub fn kill(&self) {
        let mut process = self.process().take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM: it hands over what it leads, and ends.
    pub fn stop(&self) {
        self.signal(Signal::TERM);
        let mut process = self.process().take().expect("it runs");
        process.wait().unwrap();
    }

    /// Starts it on the data that is there, and waits until it answers.
    pub fn restart(&self) {
        self.launch();
        self.wait();
    }

    /// Waits until it answers.
    pub fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address());
        // A client per try: one that was refused waits before it tries again.
        while config.create::<BaseConsumer>().unwrap().fetch_metadata(None, Duration::from_secs(1)).is_err() {
            let ended = self.process().as_mut().expect("it was launched").try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "Kafka doesn't answer ({ended:?}): {}", self.log());
        }
    }

    /// Starts it and waits for nothing.
    pub fn launch(&self) {
        let log = File::options().create(true).append(true).open(self.root.path().join("kafka.log")).unwrap();
        let mut command = java("kafka.Kafka");
        command.arg(self.properties()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.process() = Some(command.spawn().expect(INSTALL));
    }

    fn properties(&self) -> PathBuf {
        self.root.path().join("server.properties")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("kafka.log")).unwrap_or_default()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut process) = self.process().take() {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

/// One of Kafka's own programs.
pub fn java(class: &str) -> Command {
    let mut command = Command::new("java");
    command.args(["-Xmx512m", "-XX:+UseSerialGC", "-cp"]).arg(libraries().join("*")).arg(class);
    command
}

/// Kafka's jars.
fn libraries() -> &'static Path {
    static LIBRARIES: OnceLock<PathBuf> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let kafka = |artifact: &str| format!("org.apache.kafka:{artifact}:{VERSION}");
        // Without the last the broker logs nothing.
        let log = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.2".to_owned();
        let artifacts = [kafka("kafka_2.13"), kafka("kafka-tools"), kafka("connect-file"), log];
        maven::jars(&format!("kafka-{VERSION}-connect"), &artifacts)
    })
}
