//! Image and Debian package, made of the program under test: each is built, started as what it says itself, stopped,
//! and the package upgraded, removed and purged.
//!
//! Neither a container runtime nor systemd is needed: mount namespaces give the root directory, and user, environment
//! and command are read from the image's config and from the installed unit. That takes root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::Client;
use super::gateway::{PATIENCE, PIXEL, Site, binary, free_address};
use super::load::Load;
use super::tools::{patiently, root, run, scratch};

/// Whoever is not root reads this.
pub const ROOT: &str = "the e2e tests of packages need root, for mount namespaces: run them as root";

/// The program without its debug info, as releases have it.
pub fn stripped(dir: &Path) -> PathBuf {
    let path = dir.join("pixelgate");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&path).arg(binary().get_program());
    run(strip, "the e2e tests need binutils: apt-get install binutils");
    path
}

/// A shell with mounts of its own, in which the directory `$root` is what the program will see.
fn namespace(script: &str, directory: &Path) -> Command {
    assert!(rustix::process::geteuid().is_root(), "{ROOT}");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"]).arg(directory);
    command.stdin(Stdio::null());
    command
}

/// A process that must not outlive its test.
struct Running(Child);

impl Running {
    fn wait_ready(&mut self, ops: std::net::SocketAddr, log: &Path) {
        let log = || fs::read_to_string(log).unwrap_or_default();
        patiently("it is ready", || {
            assert!(self.0.try_wait().unwrap().is_none(), "it ended: {}", log());
            let reply = Client::connect(ops).and_then(|mut client| client.get("/readyz")).ok()?;
            (reply.status == 200).then_some(())
        });
    }

    /// Lines of `/proc/<pid>/status` by their names.
    fn status(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    }

    fn stop(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        patiently("it ends", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn fire(public: std::net::SocketAddr, count: usize) {
    let mut client = Client::connect(public).unwrap();
    for number in 0..count {
        // No pixel is known: unknown ones are let in.
        let reply = client.get(&format!("/offsite_event.php?id=7&value={number}")).unwrap();
        assert_eq!((reply.status, reply.record_id().is_some()), (200, true));
    }
}

fn accepted(data: &Path) -> u64 {
    let mut command = binary();
    command.args(["journal", "stat"]).env("PIXELGATE_DATA_DIR", data);
    serde_json::from_str::<Value>(&run(command, "")).unwrap()["accepted"].as_u64().unwrap()
}

/// What an OCI archive holds: its files, laid out as a root directory, and the image's `config`.
fn unpacked(archive: &Path, dir: &Path) -> (PathBuf, Value) {
    let tar = |from: &Path, into: &Path| {
        fs::create_dir_all(into).unwrap();
        let mut command = Command::new("tar");
        command.arg("-xf").arg(from).arg("-C").arg(into);
        run(command, "the e2e tests need tar");
    };
    let (blobs, root) = (dir.join("oci"), dir.join("root"));
    tar(archive, &blobs);
    let blob = |digest: &Value| blobs.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let json = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let manifest = json(&blob(&json(&blobs.join("index.json"))["manifests"][0]["digest"]));
    for layer in manifest["layers"].as_array().unwrap() {
        tar(&blob(&layer["digest"]), &root);
    }
    (root, json(&blob(&manifest["config"]["digest"]))["config"].clone())
}

#[test]
fn the_image_serves_as_nobody_special_on_a_read_only_root_and_drains() {
    let dir = scratch("image-");
    let archive = dir.path().join("image.tar");
    let mut build = Command::new(root().join("deploy/image.sh"));
    build.arg(stripped(dir.path())).arg(&archive);
    let said = run(build, "the e2e tests need bash");
    eprintln!("{said}");
    assert!(fs::metadata(&archive).unwrap().len() < 32 << 20, "{said}");
    let (image, config) = unpacked(&archive, dir.path());
    assert_eq!((&config["User"], &config["StopSignal"]), (&"10001:10001".into(), &"SIGTERM".into()));
    assert_eq!(
        fs::metadata(image.join("var/lib/pixelgate")).map(|meta| (meta.uid(), meta.mode() & 0o777)).unwrap(),
        (10001, 0o700)
    );
    assert!(!image.join("bin/sh").exists(), "no shell");
    let words = |name: &str| -> Vec<String> { serde_json::from_value(config[name].clone()).unwrap() };
    let (public, ops, data) = (free_address(), free_address(), dir.path().join("data"));
    fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(10001), Some(10001)).unwrap();
    // As runtimes do it: devices and processes are mounted, the root is not writable.
    let script =
        "root=$1; shift; mkdir -p $root/proc $root/dev; mount --bind $root $root; mount --rbind /proc $root/proc
        mount --bind /dev $root/dev; mount --bind $1 $root/var/lib/pixelgate; shift
        mount -o remount,bind,ro $root
        exec setpriv --no-new-privs chroot --userspec=10001:10001 $root \"$@\"";
    let mut command = namespace(script, &image);
    command.arg(&data).args(words("Entrypoint")).args(words("Cmd")).env_clear();
    command.envs(words("Env").iter().filter_map(|pair| pair.split_once('=')));
    command.env("PIXELGATE_SERVER__LISTEN", public.to_string()).env("PIXELGATE_OPS__LISTEN", ops.to_string());
    // It drains: visitors come while it stops, and are served for as long as it says.
    command.env("PIXELGATE_SERVER__SHUTDOWN_DELAY", "8s").env("PIXELGATE_LIMITS__MODE", "observe");
    command.env("PIXELGATE_VALIDATION__UNKNOWN_PIXEL", "flag").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let log = dir.path().join("log");
    command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let mut running = Running(command.spawn().expect("the e2e tests need unshare: apt-get install util-linux"));
    running.wait_ready(ops, &log);
    let status = running.status();
    assert_eq!(status["Uid"].split_whitespace().collect::<Vec<_>>(), ["10001"; 4]);
    assert_eq!((&*status["CapEff"], &*status["NoNewPrivs"]), ("0000000000000000", "1"));
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", running.0.id())).unwrap();
    assert!(mounts.lines().any(|line| line.split(' ').nth(4) == Some("/") && line.contains(" / ro")), "{mounts}");
    let load = Load::paced(public, 3, Duration::from_millis(5), "i");
    load.wait_for(50);
    let before = load.acknowledged();
    assert_eq!(running.stop(), Some(0), "{}", fs::read_to_string(&log).unwrap());
    assert!(load.acknowledged() >= before + 3, "served while it drains");
    let ledger = load.finish();
    assert!(ledger.refused.is_empty(), "{:?}", ledger.refused);
    let acknowledged = ledger.acknowledged.len() as u64;
    assert!((acknowledged..=acknowledged + ledger.open.len() as u64).contains(&accepted(&data)));
}

#[test]
fn systemds_own_activation_starts_it_with_the_first_visitor_who_waits() {
    let site = Site::new("");
    let mut command = Command::new("systemd-socket-activate");
    command.arg("-l").arg(site.public.to_string()).arg("--fdname=public").arg(binary().get_program());
    let log = site.data().with_extension("activated");
    command.args(["serve", "--config"]).arg(site.config()).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(fs::File::create(&log).unwrap());
    let mut running = Running(command.spawn().expect("the e2e tests need systemd's tools: apt-get install systemd"));
    // Its socket is there before the program is, which the first connection starts.
    let mut client = patiently("it listens", || Client::connect(site.public).ok());
    client.stream().set_read_timeout(Some(PATIENCE)).unwrap();
    let reply = client.get(&format!("/offsite_event.php?id={PIXEL}")).unwrap();
    assert_eq!(reply.status, 200, "{}", fs::read_to_string(&log).unwrap());
    running.wait_ready(site.ops, &log);
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("server.listen: on a socket that was handed over"), "{said}");
    assert_eq!(running.stop(), Some(0), "{}", fs::read_to_string(&log).unwrap());
    assert_eq!(accepted(&site.data()), 1);
}

/// This machine's root directory with a layer of its own on top, which alone is changed.
pub struct Overlay {
    /// Where its layer is: `upper`, `work` and `merged`.
    pub dir: tempfile::TempDir,
}

impl Overlay {
    /// A fresh one.
    pub fn new() -> Overlay {
        let dir = scratch("debian-");
        for name in ["upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Overlay { dir }
    }

    /// A path in it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("upper").join(path.trim_start_matches('/'))
    }

    /// A command in it.
    fn command(&self, words: &[&str]) -> Command {
        let script = "cd $1; shift
            mount -t overlay overlay -o lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work merged
            mount --rbind /proc merged/proc; mount --rbind /dev merged/dev; mount --rbind /sys merged/sys
            exec chroot merged \"$@\"";
        let mut command = namespace(script, self.dir.path());
        command.args(words).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// What a command in it prints.
    pub fn run(&self, words: &[&str]) -> String {
        run(self.command(words), ROOT)
    }

    /// Starts what the installed unit starts, as its user and with its environment; what needs systemd is left out.
    fn start(&self, public: std::net::SocketAddr, ops: std::net::SocketAddr) -> Running {
        let unit = fs::read_to_string(self.path("/usr/lib/systemd/system/pixelgate.service")).unwrap();
        let values = |key: &str| -> Vec<String> {
            unit.lines().filter_map(|line| line.strip_prefix(key)).map(str::to_owned).collect()
        };
        let [user, start] = [&values("User=")[..], &values("ExecStart=")[..]].map(|values| values[0].clone());
        let mut words = vec!["setpriv", "--reuid", &user, "--regid", &user, "--init-groups", "--no-new-privs"];
        words.extend(start.split(' '));
        let mut command = self.command(&words);
        command.envs(values("Environment=").iter().filter_map(|pair| pair.split_once('=')));
        command.env("PIXELGATE_SERVER__LISTEN", public.to_string()).env("PIXELGATE_OPS__LISTEN", ops.to_string());
        command.env("PIXELGATE_VALIDATION__UNKNOWN_PIXEL", "flag");
        let log = self.dir.path().join("log");
        command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let mut running = Running(command.spawn().unwrap());
        running.wait_ready(ops, &log);
        running
    }
}

/// Builds the package in a version, and puts it where the overlay's dpkg sees it.
pub fn package(overlay: &Overlay, program: &Path, version: &str) -> String {
    let mut build = Command::new(root().join("deploy/debian/build.sh"));
    build.arg(program).arg(overlay.dir.path().join("upper")).arg(version).env("DPKG_DEB_COMPRESSOR_TYPE", "gzip");
    let path = run(build, "the e2e tests need bash");
    format!("/{}", Path::new(path.trim()).file_name().unwrap().to_str().unwrap())
}

#[test]
fn the_package_installs_starts_upgrades_and_leaves_events_alone() {
    let overlay = Overlay::new();
    let program = stripped(overlay.dir.path());
    let (old, new) = (package(&overlay, &program, "0.0.1"), package(&overlay, &program, "0.0.2"));
    overlay.run(&["dpkg", "-i", &old]);
    let data = overlay.path("/var/lib/pixelgate");
    let owner = overlay.run(&["stat", "-c", "%U:%G %a", "/var/lib/pixelgate"]);
    assert_eq!(owner.trim(), "pixelgate:pixelgate 700");
    let enabled = overlay.path("/etc/systemd/system/multi-user.target.wants/pixelgate.service");
    assert!(fs::symlink_metadata(&enabled).is_ok(), "the unit is enabled");
    overlay.run(&["systemd-analyze", "verify", "/usr/lib/systemd/system/pixelgate.service"]);
    // No worse than docs/operations.md says, in tenths.
    let security = "systemd-analyze security --offline=true --threshold=15 /usr/lib/systemd/system/pixelgate.service";
    overlay.run(&security.split(' ').collect::<Vec<_>>());

    let (public, ops) = (free_address(), free_address());
    let running = overlay.start(public, ops);
    fire(public, 10);
    assert_eq!(running.stop(), Some(0));
    let token = fs::metadata(data.join("management-token")).unwrap().permissions().mode() & 0o777;
    assert_eq!(token, 0o600);
    assert_eq!(accepted(&data), 10);

    // An administrator's change and decision outlive an upgrade; scripts may run twice.
    let config = overlay.path("/etc/pixelgate/pixelgate.toml");
    let changed = fs::read_to_string(&config).unwrap() + "\n[log]\nlevel = \"warn\"\n";
    fs::write(&config, &changed).unwrap();
    fs::remove_file(&enabled).unwrap(); // what `systemctl disable` does
    overlay.run(&["dpkg", "-i", &new]);
    overlay.run(&["/var/lib/dpkg/info/pixelgate.postinst", "configure", "0.0.2"]);
    assert_eq!(fs::read_to_string(&config).unwrap(), changed);
    assert!(fs::symlink_metadata(&enabled).is_err(), "disabled stays disabled");
    let running = overlay.start(public, ops);
    fire(public, 5);
    assert_eq!(running.stop(), Some(0));
    assert_eq!(accepted(&data), 15);

    overlay.run(&["dpkg", "-r", "pixelgate"]);
    assert!(config.exists() && !overlay.path("/usr/bin/pixelgate").exists());
    let mut purge = overlay.command(&["dpkg", "-P", "pixelgate"]);
    let said = purge.output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(String::from_utf8_lossy(&said.stderr).contains("/var/lib/pixelgate is kept"));
    assert!(!config.exists());
    assert_eq!(accepted(&data), 15, "a purge leaves events");
    overlay.run(&["dpkg", "-i", &old]);
    let running = overlay.start(public, ops);
    assert_eq!(running.stop(), Some(0));
    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&data).unwrap();
    overlay.run(&["dpkg", "-P", "pixelgate"]);
    assert!(!data.exists(), "an empty directory goes");
}
