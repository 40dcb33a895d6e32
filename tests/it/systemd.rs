//! The shipped units under systemd itself, as process 1 of a namespace: their sandbox is applied as on a server, and a
//! call that it does not allow ends the program, which is stricter than what is shipped (the call fails).

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::audit::{CLEAN, audit, balanced_stat, export};
use super::client::Client;
use super::crowd::Crowd;
use super::gateway::{PIXEL, Site, free_address, until, until_or};
use super::packages::{Overlay, ROOT, package, stripped};
use super::tls_site::{self, TlsSite};
use super::tools::{root, run};
use super::{fleet, stranded};

/// Mounts the hierarchy of cgroups, which is this machine's: once more must not change its options.
const HIERARCHY: &str = "hierarchy() {
        options=$(sed -n 's/^[^ ]* [^ ]* cgroup2 \\([^ ]*\\) .*/\\1/p' /proc/self/mounts | head -n 1 | tr , '\n' |
            grep -x 'nsdelegate\\|favordynmods\\|memory_localevents\\|memory_recursiveprot' | paste -s -d , || true)
        mount -t cgroup2 ${options:+-o $options} cgroup2 $1
    }
    ";

/// Boots: `sh -ec BOOT sh DIRECTORY CGROUP`, in namespaces of its own. Kernel settings are not writable from within, as
/// in a container, and nothing that it runs may touch this machine's network, modules or clock.
const BOOT: &str = "cd $1
    mount -t overlay overlay -o lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work merged
    cd merged
    mount -t proc proc proc; mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys
    mount -t sysfs sysfs sys -o ro; hierarchy sys/fs/cgroup
    mkdir sys/fs/cgroup/$2; echo 1 > sys/fs/cgroup/$2/cgroup.procs
    mount -t tmpfs tmpfs dev
    for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
    mkdir dev/pts dev/shm; ln -s pts/ptmx dev/ptmx
    for name in dev/shm run tmp; do mount -t tmpfs tmpfs $name; done
    pivot_root . mnt
    umount -l mnt; mount --make-rshared /
    exec unshare --cgroup sh -ec 'umount /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
        exec setpriv --bounding-set -net_admin,-sys_module,-sys_time,-sys_rawio --inh-caps -all \
            /lib/systemd/systemd --system --unit=sysinit.target --show-status=0 --log-level=warning'";

/// A machine that runs systemd, on an overlay's files; the network is everybody's.
struct Machine {
    overlay: Overlay,
    boot: Child,
    init: u32,
    cgroup: String,
}

impl Machine {
    fn boot(overlay: Overlay) -> Machine {
        assert!(rustix::process::geteuid().is_root(), "{ROOT}");
        let systemd = Path::new("/lib/systemd/systemd");
        assert!(systemd.exists(), "the e2e tests need systemd: apt-get install systemd");
        let cgroup = format!("pixelgate-test-{}", overlay.dir.path().file_name().unwrap().to_str().unwrap());
        for unit in ["network-online.target", "networking.service", "nftables.service", "systemd-modules-load.service"]
        {
            let mask = overlay.path(&format!("/etc/systemd/system/{unit}"));
            fs::create_dir_all(mask.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink("/dev/null", mask).unwrap();
        }
        // Whatever ends this thread ends it, too.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--uts",
            "--ipc",
            "--propagation",
            "private",
            "--kill-child",
        ]);
        command.args(["sh", "-ec", &[HIERARCHY, BOOT].concat(), "sh"]).arg(overlay.dir.path()).arg(&cgroup);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("container", "test");
        let log = fs::File::create(overlay.dir.path().join("boot.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let boot = command.spawn().expect("the e2e tests need unshare: apt-get install util-linux");
        let mut machine = Machine { overlay, boot, init: 0, cgroup };
        let children = format!("/proc/{0}/task/{0}/children", machine.boot.id());
        until("systemd is up", || {
            let log = || fs::read_to_string(machine.overlay.dir.path().join("boot.log")).unwrap();
            assert!(machine.boot.try_wait().unwrap().is_none(), "it ended: {}", log());
            let child = fs::read_to_string(&children).unwrap_or_default();
            machine.init = child.trim().parse().unwrap_or(0);
            let name = fs::read_to_string(format!("/proc/{}/comm", machine.init)).unwrap_or_default();
            let asked = ["systemctl", "is-active", "sysinit.target"];
            name == "systemd\n" && machine.within(&asked).output().unwrap().status.success()
        });
        machine
    }

    /// A command on it.
    fn within(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string()]);
        command.args(["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd", "--"]).args(words);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn run(&self, words: &[&str]) -> String {
        let said = self.within(words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(said.status.success(), "{words:?}: {}\n{}", text(&said.stderr), self.log());
        text(&said.stdout)
    }

    /// A property of the service.
    fn show(&self, property: &str) -> String {
        self.run(&["systemctl", "show", "--value", "--property", property, "pixelgate.service"]).trim().to_owned()
    }

    /// What the service wrote, and what systemd says of it.
    fn log(&self) -> String {
        let words = ["systemctl", "status", "--no-pager", "--full", "--lines=200", "pixelgate.service"];
        String::from_utf8_lossy(&self.within(&words).output().unwrap().stdout).into_owned()
    }

    /// The service's process as the tests' own system numbers it, found by its number in the machine.
    fn process(&self) -> u32 {
        let inside = self.show("MainPID");
        let namespace = |id: u32| fs::read_link(format!("/proc/{id}/ns/pid")).ok();
        let is_it = |id: &u32| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            namespace(*id) == namespace(self.init) && numbers.split_whitespace().next_back() == Some(&inside)
        };
        let ids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        ids.into_iter().find(is_it).unwrap_or_else(|| panic!("no process {inside}: {}", self.log()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.boot.kill().ok();
        self.boot.wait().ok();
        // Its cgroup can be removed once the last process is gone, which a slow disk may hold up.
        let script = HIERARCHY.to_owned()
            + "hierarchy /mnt; cd /mnt
            for try in $(seq 300); do
                find $1 -depth -type d -exec rmdir {} + 2> /dev/null; [ -e $1 ] || exit 0; sleep 0.2
            done; exit 1";
        let removed = Command::new("unshare").args(["--mount", "sh", "-c", &script, "sh", &self.cgroup]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("the cgroup {} is still there", self.cgroup);
        }
    }
}

/// Puts a file on the overlay before it is booted.
fn put(overlay: &Overlay, path: &str, text: &str) {
    let path = overlay.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Drop-ins of an administrator: free ports, and the end for a call that is not allowed.
fn drop_ins(overlay: &Overlay, public: SocketAddr, ops: SocketAddr, lines: &str) {
    let socket = format!("[Socket]\nListenStream=\nListenStream={public}\n");
    put(overlay, "/etc/systemd/system/pixelgate.socket.d/test.conf", &socket);
    let service = format!("[Service]\nSystemCallErrorNumber=kill\nEnvironment=PIXELGATE_OPS__LISTEN={ops}\n{lines}");
    put(overlay, "/etc/systemd/system/pixelgate.service.d/test.conf", &service);
}

/// A site whose data directory is the machine's, for commands that read it.
fn reader(data: &Path) -> Site {
    let site = Site::new("");
    site.reconfigure(site.data().to_str().unwrap(), data.to_str().unwrap());
    site
}

/// What is told of a process in `/proc`.
fn told(process: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{process}/{file}")).unwrap()
}

fn assert_confined(machine: &Machine) {
    let process = machine.process();
    let status = told(process, "status");
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.lines().any(|other| other == line), "{line}: {status}");
    }
    assert!(!status.contains("Uid:\t0"), "{status}");
    let mounts = told(process, "mountinfo");
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.contains(" / ro,"), "{root}");
    // Neither other processes nor kernel settings.
    assert!(mounts.contains("hidepid=invisible,subset=pid"), "{mounts}");
}

/// How nice each thread of this name is.
fn niceness(process: u32, name: &str) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|task| task.unwrap().path());
    let nice = |task: PathBuf| {
        let stat = fs::read_to_string(task.join("stat")).ok()?;
        let (head, rest) = stat.rsplit_once(") ")?;
        // The 19th field of proc(5), the third of which comes first here.
        (head.split_once('(')?.1 == name).then(|| rest.split(' ').nth(16).unwrap().parse().unwrap())
    };
    tasks.filter_map(nice).collect()
}

/// A gateway of an authority, with a Kafka.
fn settings(mock: &stranded::Mock, authority: &Site) -> String {
    let settings = [
        ("KAFKA__BROKERS", mock.bootstrap_servers()),
        ("KAFKA__CLIENT__COMPRESSION_TYPE", "zstd".into()),
        ("LIMITS__MODE", "observe".into()),
        ("VALIDATION__UNKNOWN_PIXEL", "flag".into()),
        ("REGISTRY__MODE", "proxy".into()),
        ("REGISTRY__UPSTREAM", format!("http://{}", authority.public)),
        ("REGISTRY__UPSTREAM_TOKEN_FILE", "%d/token".into()),
        ("REGISTRY__AD_ACCOUNTS", "9".into()),
        ("REGISTRY__SYNC_INTERVAL", "1s".into()),
    ];
    settings.map(|(name, value)| format!("Environment=PIXELGATE_{name}={value}\n")).concat()
}

#[test]
fn the_package_serves_in_its_sandbox_and_an_upgrade_refuses_nobody() {
    let authority = Site::new("");
    let elder = authority.start();
    let token = fleet::first_token(&authority);
    let pixel = fleet::create(&authority, &token, "9", "Shoes");
    let mock = stranded::mock();

    let overlay = Overlay::new();
    let program = stripped(overlay.dir.path());
    let (old, new) = (package(&overlay, &program, "0.0.1"), package(&overlay, &program, "0.0.2"));
    let (public, ops) = (free_address(), free_address());
    put(&overlay, "/etc/pixelgate-token", &token);
    let lines = settings(&mock, &authority);
    drop_ins(&overlay, public, ops, &format!("LoadCredential=token:/etc/pixelgate-token\n{lines}"));
    // Images of containers forbid that packages start what they bring; on a server nothing does.
    put(&overlay, "/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 0\n");
    fs::set_permissions(overlay.path("/usr/sbin/policy-rc.d"), Permissions::from_mode(0o755)).unwrap();
    let machine = Machine::boot(overlay);

    // Installed, it runs: who installs it sees it ready, as its unit tells when that is.
    machine.run(&["dpkg", "-i", &old]);
    assert_eq!((&*machine.show("ActiveState"), &*machine.show("SubState")), ("active", "running"), "{}", machine.log());
    assert_eq!(Client::connect(ops).unwrap().get("/readyz").unwrap().status, 200);
    assert_confined(&machine);
    let known = || Client::connect(public).unwrap().get(&format!("/offsite_event.php?id={pixel}")).unwrap();
    until("the list of pixels came", || known().header("x-pixelgate-warning").is_none());
    assert_eq!(niceness(machine.process(), "registry-sync"), [10], "the one that gives way is let");

    // An upgrade under load, then an end without warning.
    let crowd = Crowd::start(move || Client::connect(public));
    crowd.wait_for(300);
    let first = machine.process();
    machine.run(&["dpkg", "-i", &new]);
    crowd.wait_for(300);
    assert_ne!(machine.process(), first, "it was restarted");
    assert_confined(&machine);
    let met = crowd.finish(|| machine.log());
    kill_process(Pid::from_raw(machine.process() as i32).unwrap(), Signal::KILL).unwrap();
    until("systemd starts it again", || machine.show("NRestarts") == "1" && machine.show("ActiveState") == "active");
    assert_eq!(known().status, 200);

    let metrics = || String::from_utf8(Client::connect(ops).unwrap().get("/metrics").unwrap().body).unwrap();
    let is_empty = || metrics().contains("\npixelgate_journal_pending_events 0\n");
    until_or(|| format!("Kafka has everything: {}{}", machine.log(), metrics()), is_empty);
    machine.run(&["dpkg", "-r", "pixelgate"]);
    assert_eq!((&*machine.show("ActiveState"), &*machine.show("Result")), ("inactive", "success"));
    assert!(Client::connect(public).is_err(), "its socket went with it");
    let reader = reader(&machine.overlay.path("/var/lib/pixelgate"));
    let mut records = export(&reader);
    records.retain(|record| record.contains("nonce")); // the crowd's
    assert_eq!(audit(&met, &records), CLEAN);
    let stat = balanced_stat(&reader);
    assert_eq!(stat["published"], stat["accepted"], "{stat}");
    drop(elder);
}

/// What the unit's first lines say, and a certificate as docs/operations.md has it.
fn by_hand() -> Overlay {
    let overlay = Overlay::new();
    let program = stripped(overlay.dir.path());
    let mut install = Command::new("install");
    install.args(["-D", "-m", "0755"]).arg(program).arg(overlay.path("/usr/local/bin/pixelgate"));
    run(install, ROOT);
    for unit in ["pixelgate.service", "pixelgate.socket"] {
        let text = fs::read_to_string(root().join("deploy").join(unit)).unwrap();
        put(&overlay, &format!("/etc/systemd/system/{unit}"), &text);
    }
    let config = format!(
        "data_dir = \"/var/lib/pixelgate\"\n[server.tls]\ncertificate = \"/etc/pixelgate/tls/fullchain.pem\"\n\
         key = \"/etc/pixelgate/tls/privkey.pem\"\n[registry]\n\
         pixels = [{{ id = \"{PIXEL}\", name = \"a\", tag = \"lead\", fb_ad_account_id = \"8\" }}]\n\
         [limits]\nmode = \"observe\"\n"
    );
    put(&overlay, "/etc/pixelgate/pixelgate.toml", &config);
    fs::set_permissions(overlay.path("/etc/pixelgate"), Permissions::from_mode(0o755)).unwrap();
    overlay
}

#[test]
fn the_unit_with_a_user_that_only_exists_while_it_runs_keeps_its_events_and_renews_its_certificate() {
    let secured = TlsSite::new("", "");
    let overlay = by_hand();
    let (public, ops) = (free_address(), free_address());
    drop_ins(&overlay, public, ops, "SupplementaryGroups=pixelgate-tls\n");
    let machine = Machine::boot(overlay);
    machine.run(&["groupadd", "--system", "pixelgate-tls"]);
    machine.run(&["install", "-d", "-m", "0750", "-g", "pixelgate-tls", "/etc/pixelgate/tls"]);
    let renew = || {
        secured.install(&secured.issue());
        for (from, name) in [(secured.certificate(), "fullchain.pem"), (secured.key(), "privkey.pem")] {
            // By name the machine would find what its root showed first.
            let script = "umask 027; cat > $1.new; chgrp pixelgate-tls $1.new; mv $1.new $1";
            let mut install = machine.within(&["sh", "-ec", script, "sh", &format!("/etc/pixelgate/tls/{name}")]);
            install.stdin(fs::File::open(from).unwrap());
            run(install, ROOT);
        }
    };
    renew();
    machine.run(&["systemctl", "daemon-reload"]);
    machine.run(&["systemctl", "enable", "--now", "pixelgate.socket", "pixelgate.service"]);
    assert_confined(&machine);

    let connector = secured.trusting().build();
    let shown = || {
        let client = Client::over(tls_site::connect(public, &connector).unwrap());
        tls_site::served(&client).to_der().unwrap()
    };
    let first = shown();
    let visitors = secured.trusting().build();
    let crowd = Crowd::start(move || Ok(Client::over(tls_site::connect(public, &visitors)?)));
    crowd.wait_for(100);
    renew();
    machine.run(&["systemctl", "reload", "pixelgate.service"]);
    until_or(|| format!("the new certificate is shown: {}", machine.log()), || shown() != first);
    crowd.wait_for(100);
    machine.run(&["systemctl", "restart", "pixelgate.service"]);
    crowd.wait_for(100);
    let met = crowd.finish(|| machine.log());
    machine.run(&["systemctl", "stop", "pixelgate.socket", "pixelgate.service"]);
    assert_eq!(machine.show("Result"), "success");
    // Where systemd keeps what belongs to a user who comes and goes.
    let data = machine.overlay.path("/var/lib/private/pixelgate");
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o750);
    let reader = reader(&data);
    assert_eq!(audit(&met, &export(&reader)), CLEAN);
    balanced_stat(&reader);

    // What only a person can mend is not tried again.
    machine.run(&["sh", "-ec", "echo 'colour = 1' >> /etc/pixelgate/pixelgate.toml"]);
    assert!(!machine.within(&["systemctl", "start", "pixelgate.service"]).status().unwrap().success());
    let state = ["ActiveState", "ExecMainStatus", "NRestarts"].map(|name| machine.show(name));
    assert_eq!(state, ["failed", "2", "0"], "{}", machine.log());
    assert!(machine.log().contains("colour"), "it says what is wrong: {}", machine.log());
}
