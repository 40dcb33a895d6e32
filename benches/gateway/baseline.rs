//! What the gateway is compared with. All send the gateway's own reply headers and body bytes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use actix_web::http::{Method, header};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord};

use crate::secured::{self, Security};

const ADDRESS: &str = "PIXELGATE_BENCH_BASELINE";
const WORKERS: &str = "PIXELGATE_BENCH_BASELINE_WORKERS";
const BROKERS: &str = "PIXELGATE_BENCH_BASELINE_BROKERS";
const RECORD_ID: &str = "019ab3c4-d5e6-7f80-9123-456789abcdef";

/// This program again, as a baseline: with brokers the one that parses and sends.
pub(crate) fn command(address: SocketAddr, workers: usize, brokers: Option<&str>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ADDRESS, address.to_string()).env(WORKERS, workers.to_string());
    if let Some(brokers) = brokers {
        command.env(BROKERS, brokers);
    }
    command
}

/// nginx with `empty_gif`, or nothing if there is no nginx.
pub(crate) fn nginx(directory: &Path, address: SocketAddr, workers: usize, security: Security) -> Option<Command> {
    let found = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
    let program = found.into_iter().find(|path| Path::new(path).exists())?;
    let headers: String = [
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Cross-Origin-Resource-Policy", "cross-origin"),
        ("Timing-Allow-Origin", "*"),
        ("Vary", "Origin"),
        ("X-Pixelgate-Record-Id", RECORD_ID),
    ]
    .iter()
    .map(|(name, value)| format!("add_header {name} \"{value}\";\n"))
    .collect();
    let file = directory.join("nginx.conf");
    // One process if one worker is asked for, so that nothing but it is counted.
    let master = if workers == 1 { "master_process off;" } else { "" };
    let at = directory.display();
    let (word, pair) = match security {
        Security::Plain => ("", String::new()),
        Security::Tls => {
            let (certificate, key) = secured::install(directory);
            let (certificate, key) = (certificate.display(), key.display());
            (
                " ssl",
                format!("ssl_protocols TLSv1.2 TLSv1.3;\nssl_certificate {certificate};\nssl_certificate_key {key};\n"),
            )
        }
    };
    let config = format!(
        "daemon off;\n{master}\nworker_processes {workers};\nerror_log stderr crit;\npid {at}/nginx.pid;\n\
         events {{ worker_connections 16000; }}\nhttp {{\naccess_log off;\nkeepalive_requests 1000000000;\n\
         keepalive_timeout 75;\nclient_body_temp_path {at}/body;\nproxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi;\nuwsgi_temp_path {at}/uwsgi;\nscgi_temp_path {at}/scgi;\n\
         server {{ listen {address}{word} backlog=4096;\n{pair}location = /offsite_event.php \
         {{\n{headers}empty_gif; }} }} }}\n"
    );
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command.arg("-p").arg(directory).arg("-c").arg(&file);
    Some(command)
}

/// Whether this process is to be a baseline.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(ADDRESS).is_some()
}

/// Serves until it is killed.
pub(crate) fn run() {
    let given = |name: &str| std::env::var(name).ok();
    let address: SocketAddr = given(ADDRESS).unwrap().parse().unwrap();
    let workers = given(WORKERS).unwrap().parse().unwrap();
    let producer = given(BROKERS).map(|brokers| {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("acks", "all").set("linger.ms", "5");
        config.set("compression.type", "lz4").set("queue.buffering.max.kbytes", "65536");
        let producer: Arc<BaseProducer> = Arc::new(config.create().unwrap());
        let polled = producer.clone();
        std::thread::spawn(move || {
            loop {
                polled.poll(std::time::Duration::from_millis(100));
            }
        });
        producer
    });
    let serve = move || {
        let producer = producer.clone();
        App::new().default_service(web::to(move |request: HttpRequest, body: web::Bytes| {
            if let Some(producer) = &producer {
                forward(producer, &request, &body);
            }
            std::future::ready(constant(request.method()))
        }))
    };
    let server = HttpServer::new(serve).workers(workers).bind(address).unwrap();
    actix_web::rt::System::new().block_on(server.run()).unwrap();
}

/// What one would write first: parse, make JSON, hand it to the library, and hope.
fn forward(producer: &BaseProducer, request: &HttpRequest, body: &[u8]) {
    let text = if body.is_empty() { request.query_string().as_bytes() } else { body };
    let mut record = serde_json::Map::new();
    for (name, value) in form_urlencoded::parse(text) {
        record.insert(name.into_owned(), value.into_owned().into());
    }
    for (field, name) in [("user_agent", header::USER_AGENT), ("referrer", header::REFERER)] {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        record.insert(field.into(), value.into());
    }
    record.insert("ip".into(), request.peer_addr().map(|peer| peer.ip().to_string()).into());
    let key = record.get("id").and_then(|id| id.as_str()).unwrap_or_default().to_owned();
    let value = serde_json::to_vec(&record).unwrap();
    // A full queue loses the event, as such handlers do.
    let _ = producer.send(BaseRecord::to("bench-naive").key(&key).payload(&value));
}

/// The gateway's reply.
fn constant(method: &Method) -> HttpResponse {
    let is_image = method == Method::GET;
    let mut reply = if is_image { HttpResponse::Ok() } else { HttpResponse::NoContent() };
    reply
        .insert_header((header::CACHE_CONTROL, header::HeaderValue::from_static("no-store")))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff")))
        .insert_header(("cross-origin-resource-policy", header::HeaderValue::from_static("cross-origin")))
        .insert_header(("timing-allow-origin", header::HeaderValue::from_static("*")))
        .insert_header((header::VARY, header::HeaderValue::from_static("Origin")))
        .insert_header(("x-pixelgate-record-id", RECORD_ID));
    match is_image {
        true => reply
            .insert_header((header::CONTENT_TYPE, header::HeaderValue::from_static("image/gif")))
            .body(&pixelgate::http::reply::GIF[..]),
        false => reply.finish(),
    }
}
