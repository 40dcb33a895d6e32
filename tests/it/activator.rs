//! Holds listening sockets over restarts of a gateway and hands them to it, as a service manager does
//! (sd_listen_fds(3)).

use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};

use super::client::Client;
use super::gateway::{PATIENCE, Site, binary, until};

/// The sockets of a site.
pub struct Activator {
    site: Site,
    public: TcpListener,
    other: (&'static str, TcpListener),
    manager: UnixDatagram,
}

/// One run of the program on them.
pub struct Activated<'a> {
    activator: &'a Activator,
    child: Child,
}

impl Activator {
    /// Binds a site's addresses for good.
    pub fn new(site: Site) -> Activator {
        let ops = TcpListener::bind(site.ops).unwrap();
        Activator::with(site, "ops", ops)
    }

    /// The same with a listener of another name in the second place.
    pub fn with(site: Site, name: &'static str, listener: TcpListener) -> Activator {
        let (public, other) = (TcpListener::bind(site.public).unwrap(), (name, listener));
        let manager = UnixDatagram::bind(site.config().with_file_name("manager")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        Activator { site, public, other, manager }
    }

    /// The site.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Where websites connect to.
    pub fn public(&self) -> SocketAddr {
        self.site.public
    }

    /// Starts the program with both sockets.
    pub fn launch(&self) -> Activated<'_> {
        let (name, other) = &self.other;
        let names = format!("LISTEN_FDS=2 LISTEN_FDNAMES=public:{name}");
        let child = self.command(&self.public, other, &names).spawn().unwrap();
        Activated { activator: self, child }
    }

    /// Starts the program, and waits until it has told its manager that it is ready.
    pub fn start(&self) -> Activated<'_> {
        let running = self.launch();
        self.hears("READY=1");
        running
    }

    /// The program with two descriptors, 3 and 4, and assignments of variables. The shell, whose process it takes over,
    /// moves them there and knows the process id.
    pub fn command(&self, third: &impl AsFd, fourth: &impl AsFd, variables: &str) -> Command {
        let stdio = |descriptor: &dyn AsFd| -> OwnedFd { descriptor.as_fd().try_clone_to_owned().unwrap() };
        let stderr = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let program = binary();
        let mut command = Command::new("sh");
        let script = format!("exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$ {variables}; exec \"$@\"");
        command.args(["-c", &script, "sh"]).arg(program.get_program()).args(["serve", "--config"]);
        command.arg(self.site.config()).env("NOTIFY_SOCKET", self.site.config().with_file_name("manager"));
        for (name, value) in program.get_envs() {
            value.is_none().then(|| command.env_remove(name));
        }
        command.stdin(stdio(third)).stdout(stdio(fourth)).stderr(stderr);
        command
    }

    /// Everything that its gateways wrote to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> std::path::PathBuf {
        self.site.config().with_file_name("activated.log")
    }

    /// The next thing that the manager is told.
    fn hears(&self, expected: &str) {
        let mut told = [0; 256];
        let length = self.manager.recv(&mut told).unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        assert_eq!(String::from_utf8_lossy(&told[..length]).trim(), expected);
    }
}

impl Activated<'_> {
    /// SIGTERM, and the exit.
    pub fn stop(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.activator.hears("STOPPING=1");
        let mut status = None;
        until("the gateway ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Its `/readyz`.
    pub fn readiness(&self) -> u16 {
        Client::connect(self.activator.site.ops).unwrap().get("/readyz").unwrap().status
    }
}

impl Drop for Activated<'_> {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A command that must end by itself at once, and its exit code.
pub fn exit_code(mut command: Command) -> Option<i32> {
    let mut child = command.spawn().unwrap();
    let mut code = None;
    until("the program refuses and ends", || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    code.unwrap().code()
}
