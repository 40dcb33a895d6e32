//! The servers under test: the gateway's own binary, and this bench's binary run again as the baseline.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use actix_web::http::header;
use actix_web::{App, HttpResponse, HttpServer, web};
use rustix::thread::{CpuSet, sched_setaffinity};

const ROLE: &str = "PIXELGATE_BENCH_BASELINE";
const PIXEL: &str = "6010000000001";
const PATIENCE: Duration = Duration::from_secs(20);

/// What a browser sends from a shop's page: 11 headers.
const HEADERS: &str = "Host: pixel.shop.example\r\n\
    Connection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"142\", \"Google Chrome\";v=\"142\", \"Not_A Brand\";v=\"99\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/142.0.0.0 Safari/537.36\r\n\
    Accept: image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-site\r\n\
    Sec-Fetch-Mode: no-cors\r\n\
    Referer: https://www.shop.example/checkout/thanks?utm_source=news&order=81723\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n";

/// A server that runs.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
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

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Server {
    /// actix-web, one worker, a constant reply of the gateway's bytes.
    pub(crate) fn baseline() -> Server {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let address = free_address();
        command.env(ROLE, address.to_string());
        Server::start("actix-web, constant GIF".into(), address, command, scratch())
    }

    /// The gateway without Kafka, one worker.
    pub(crate) fn gateway(acknowledge: &str) -> Server {
        let (command, address, directory) = gateway(acknowledge);
        Server::start(format!("pixelgate, {acknowledge}"), address, command, directory)
    }

    fn start(name: String, address: SocketAddr, command: Command, directory: tempfile::TempDir) -> Server {
        pin(0);
        let child = quiet(command).spawn();
        pin(1);
        let server = Server { name, address, child: child.unwrap(), _directory: directory };
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "{} doesn't answer", server.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// How long a gateway takes from its start in an empty directory to the end of its first accepted request.
    pub(crate) fn time_to_first_event() -> Duration {
        let (command, address, directory) = gateway("synced");
        let begun = Instant::now();
        let mut server =
            Server { name: "start".into(), address, child: quiet(command).spawn().unwrap(), _directory: directory };
        loop {
            assert!(server.child.try_wait().unwrap().is_none(), "the gateway ended");
            if first_event(address, &server.request()).is_ok() {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < PATIENCE, "the gateway doesn't answer");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A conversion as a browser reports it.
    pub(crate) fn request(&self) -> Vec<u8> {
        let target = format!("/offsite_event.php?id={PIXEL}&value=24.99&currency=EUR&order=81723");
        format!("GET {target} HTTP/1.1\r\n{HEADERS}\r\n").into_bytes()
    }
}

fn gateway(acknowledge: &str) -> (Command, SocketAddr, tempfile::TempDir) {
    let (directory, address, ops) = (scratch(), free_address(), free_address());
    let data: PathBuf = directory.path().join("data");
    let file = directory.path().join("pixelgate.toml");
    let config = format!(
        "data_dir = {data:?}\n[server]\nlisten = \"{address}\"\nworkers = 1\n[ops]\nlisten = \"{ops}\"\n\
         [journal]\nacknowledge = \"{acknowledge}\"\nmax_bytes = \"2GiB\"\n[limits]\nmode = \"observe\"\n[registry]\n\
         pixels = [{{ id = \"{PIXEL}\", name = \"Checkout\", tag = \"checkout\", fb_ad_account_id = \"8\" }}]\n\
         [log]\nlevel = \"warn\"\n"
    );
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixelgate"));
    command.arg("--config").arg(&file);
    // The bench's own settings are none of the gateway's.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PIXELGATE_")) {
        command.env_remove(name);
    }
    (command, address, directory)
}

fn quiet(mut command: Command) -> Command {
    command.stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// Sends a request on a connection of its own; succeeds when it is answered with 200.
fn first_event(address: SocketAddr, request: &[u8]) -> std::io::Result<()> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    if &status == b"HTTP/1.1 200" { Ok(()) } else { Err(std::io::ErrorKind::Other.into()) }
}

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bench-").tempdir_in(directory()).unwrap()
}

/// Whether this process is to be the baseline.
pub(crate) fn is_baseline() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// Serves the constant reply until killed.
pub(crate) fn run_baseline() {
    let address: SocketAddr = std::env::var(ROLE).unwrap().parse().unwrap();
    let serve = || App::new().route("/offsite_event.php", web::get().to(constant));
    let server = HttpServer::new(serve).workers(1).bind(address).unwrap();
    actix_web::rt::System::new().block_on(server.run()).unwrap();
}

async fn constant() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, header::HeaderValue::from_static("no-store")))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff")))
        .insert_header(("cross-origin-resource-policy", header::HeaderValue::from_static("cross-origin")))
        .insert_header(("timing-allow-origin", header::HeaderValue::from_static("*")))
        .insert_header((header::VARY, header::HeaderValue::from_static("Origin")))
        .insert_header(("x-pixelgate-record-id", "019ab3c4-d5e6-7f80-9123-456789abcdef"))
        .insert_header((header::CONTENT_TYPE, header::HeaderValue::from_static("image/gif")))
        .body(&pixelgate::http::reply::GIF[..])
}
