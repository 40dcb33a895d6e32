//! A PostgreSQL database that several authorities share: where it is, and the one thread that speaks to it.
//!
//! Callers are threads that may block; they hand over work and wait for its answer, for a bounded time. The thread owns
//! the connection, makes it anew when there is any doubt of it, and after a failure answers at once for a moment
//! instead of trying for everybody.

pub(super) mod work;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use openssl::ssl::{SslConnector, SslMethod};
use postgres_openssl::MakeTlsConnector;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config};

use self::work::Fault;
use super::Error;
use crate::time::{Clock, SystemClock};

/// What `registry.database` may be.
pub const ALLOWED: &str = "allowed is a URL such as postgres://user:password@host/name, with sslmode=disable, prefer, \
                           require or verify-full if any";

/// Longest time to a connection that can be used, migrations included.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time for one change or question.
pub(super) const WORK: Duration = Duration::from_secs(5);
/// Longest time for reading many pixels.
pub(super) const READ: Duration = Duration::from_secs(60);
/// After a failure everybody is told so for this long, without another try.
const REST: Duration = Duration::from_millis(500);
/// Work that may wait. Management requests are few, and each waits for its answer before its client sends another.
const QUEUE: usize = 256;

/// Where the database is. Prints without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(Box<Config>);

impl Address {
    /// Reads a URL. Without `sslmode` a database on this machine is spoken to in clear text, any other with TLS.
    pub fn parse(text: &str) -> Option<Address> {
        if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
            return None;
        }
        // What this program does with `require` is what libpq calls so: chain and name are always checked.
        let mut config: Config = text.replace("sslmode=verify-full", "sslmode=require").parse().ok()?;
        if config.get_hosts().is_empty() {
            return None;
        }
        let is_here = |host: &Host| match host {
            Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
            Host::Unix(_) => true,
        };
        if !text.contains("sslmode=") {
            let is_here = config.get_hosts().iter().all(is_here);
            config.ssl_mode(if is_here { SslMode::Disable } else { SslMode::Require });
        }
        if config.get_application_name().is_none() {
            config.application_name("pixelgate");
        }
        config.connect_timeout(CONNECT);
        Some(Address(Box::new(config)))
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Address").field("hosts", &self.0.get_hosts()).finish_non_exhaustive()
    }
}

/// A connection's work, or its refusal because there is none; false if the connection is not to be used again.
type Job = Box<dyn for<'a> FnOnce(Result<&'a mut Client, Error>) -> LocalBoxFuture<'a, bool> + Send>;

/// The thread's handle. Cheap to clone; the thread ends with the last one.
#[derive(Clone)]
pub(super) struct Database {
    jobs: Sender<(Duration, Job)>,
    /// Counts connections.
    connections: Arc<AtomicU64>,
}

impl Database {
    /// Starts the thread. Connects with the first work.
    pub(super) fn start(address: &Address) -> Result<Database, Error> {
        let failed = |source| Error::Io { path: "registry.database".into(), source };
        let tls = tls().map_err(|error| failed(std::io::Error::other(error)))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (jobs, waiting) = channel(QUEUE);
        let connections = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connections);
        let config = Config::clone(&address.0);
        std::thread::Builder::new()
            .name("registry-database".into())
            .spawn(move || {
                runtime.block_on(serve(&config, &tls, waiting, &counted));
                // A question to DNS may still be waiting for its answer; nobody waits for it.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Database { jobs, connections })
    }

    /// How many connections were made. Behind another one the database may be another: restored, or failed over.
    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Has work done and waits for it. Blocks, so not for threads that serve.
    pub(super) fn call<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl AsyncFnOnce(&mut Client) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = sync_channel(1);
        let job: Job = Box::new(move |client| Box::pin(run(client, work, answer)));
        if self.jobs.try_send((limit, job)).is_err() {
            return Err(away("too much waits for it"));
        }
        // The thread keeps to the limits; whoever is in front gets theirs first.
        match answered.recv_timeout(limit + CONNECT + READ) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(away("no answer in time")),
        }
    }
}

async fn run<T>(
    client: Result<&mut Client, Error>,
    work: impl AsyncFnOnce(&mut Client) -> Result<T, Fault>,
    answer: SyncSender<Result<T, Error>>,
) -> bool {
    let (result, is_sound) = match client {
        Err(why) => (Err(why), true),
        Ok(client) => match work(client).await {
            Ok(done) => (Ok(done), true),
            Err(Fault::Refused(error)) => (Err(error), true),
            Err(Fault::Doubt(why)) => (Err(away(&why)), false),
        },
    };
    // Whoever asked may have gone.
    let _ = answer.try_send(result);
    is_sound
}

fn away(why: &str) -> Error {
    Error::Away(Arc::from(why))
}

type Driver = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>>>>;

struct Session {
    client: Client,
    /// Moves the bytes: polled beside whatever uses the client.
    driver: Driver,
}

async fn serve(config: &Config, tls: &MakeTlsConnector, mut waiting: Receiver<(Duration, Job)>, count: &AtomicU64) {
    let mut session: Option<Session> = None;
    let mut failed: Option<(Duration, Error)> = None;
    loop {
        // Idle, but the connection's end is noticed.
        let next = match &mut session {
            None => waiting.recv().await,
            Some(open) => tokio::select! {
                next = waiting.recv() => next,
                _ = &mut open.driver => {
                    session = None;
                    continue;
                }
            },
        };
        let Some((limit, job)) = next else { return };
        let rests = failed.as_ref().is_some_and(|(since, _)| SystemClock.monotonic().saturating_sub(*since) < REST);
        if session.is_none() && !rests {
            match timeout(CONNECT, connect(config, tls)).await {
                Ok(Ok(open)) => {
                    count.fetch_add(1, Relaxed);
                    (session, failed) = (Some(open), None);
                }
                Ok(Err(error)) => failed = Some((SystemClock.monotonic(), error)),
                Err(_) => failed = Some((SystemClock.monotonic(), away("no connection in time"))),
            }
        }
        let Some(open) = &mut session else {
            let why = failed.as_ref().map_or_else(|| away("no connection"), |(_, error)| error.again());
            let _ = job(Err(why)).await;
            continue;
        };
        let is_sound = tokio::select! {
            biased;
            done = timeout(limit, job(Ok(&mut open.client))) => matches!(done, Ok(true)),
            _ = &mut open.driver => false,
        };
        if !is_sound {
            session = None;
        }
    }
}

async fn connect(config: &Config, tls: &MakeTlsConnector) -> Result<Session, Error> {
    let (mut client, driver) = config.connect(tls.clone()).await.map_err(|error| away(&work::words(&error)))?;
    let mut driver: Driver = Box::pin(driver);
    tokio::select! {
        biased;
        prepared = work::prepare(&mut client) => match prepared {
            Ok(()) => {}
            Err(Fault::Refused(error)) => return Err(error),
            Err(Fault::Doubt(why)) => return Err(away(&why)),
        },
        _ = &mut driver => return Err(away("it closed the connection")),
    }
    Ok(Session { client, driver })
}

/// Checks chain and name against the system's authorities, or those that `SSL_CERT_FILE` names.
fn tls() -> Result<MakeTlsConnector, openssl::error::ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    let found = openssl_probe::probe();
    let mut directories = found.cert_dir.iter().filter_map(|directory| directory.to_str());
    if found.cert_file.is_some() || !found.cert_dir.is_empty() {
        builder.load_verify_locations(found.cert_file.as_deref(), directories.next().map(AsRef::as_ref))?;
    }
    Ok(MakeTlsConnector::new(builder.build()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_of_postgresql_are_addresses() {
        for bad in [
            "",
            "postgres://",
            "postgres:///name",
            "mysql://a/b",
            "host=a",
            "postgres://a:port/b",
            "postgres://a/b?colour=red",
            "postgres://a/b?sslmode=sometimes",
        ] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
        for (good, mode) in [
            ("postgres://a/b", SslMode::Require),
            ("postgresql://u:p@a,b/c?target_session_attrs=read-write", SslMode::Require),
            ("postgres://u:p@127.0.0.1:5433/c", SslMode::Disable),
            ("postgres://[::1]/c", SslMode::Disable),
            ("postgres://localhost,a/c", SslMode::Require),
            ("postgres:///c?host=/run/postgresql", SslMode::Disable),
            ("postgres://a/b?sslmode=disable", SslMode::Disable),
            ("postgres://localhost/b?sslmode=verify-full", SslMode::Require),
        ] {
            let address = Address::parse(good).unwrap_or_else(|| panic!("{good}"));
            assert_eq!(address.0.get_ssl_mode(), mode, "{good}");
        }
        let shown = format!("{:?}", Address::parse("postgres://u:hunter2@a/b").unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_database_that_is_away_is_told_of_in_time() {
        // Nobody listens on a port that was just given back.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = Address::parse(&format!("postgres://u:hunter2@127.0.0.1:{port}/b")).unwrap();
        let database = Database::start(&address).unwrap();
        for _ in 0..3 {
            let error = database.call(WORK, async |_| Ok(())).unwrap_err();
            assert!(matches!(error, Error::Away(_)) && !error.to_string().contains("hunter2"), "{error}");
        }
    }
}
