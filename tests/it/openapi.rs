//! docs/openapi.json is true: it is whole, it has each route of the program, and each answer that it names is given.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use pixelgate::event::rejection::Rejection;
use regex::Regex;
use serde_json::Value;

use super::client::{Client, Reply};
use super::gateway::{PIXEL, Site, until};

const METHODS: [&str; 8] = ["get", "head", "post", "put", "delete", "options", "patch", "trace"];

/// Answers that need a disk, a clock, an upstream or a flood: provoked in other modules.
const ELSEWHERE: [&str; 7] = ["408", "414", "429", "431", "502", "503", "504"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn document() -> Value {
    serde_json::from_str(&fs::read_to_string(root().join("docs/openapi.json")).unwrap()).unwrap()
}

/// What a `$ref` stands for, or the value itself.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(name) => document.pointer(name.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{name} is nowhere")),
        None => value,
    }
}

/// Path, method and operation of all.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let item = resolved(document, item).as_object().unwrap();
        let methods = item.iter().filter(|(name, _)| METHODS.contains(&name.as_str()));
        all.extend(methods.map(|(method, operation)| (path.clone(), method.to_uppercase(), operation)));
    }
    all
}

fn walk<'a>(value: &'a Value, see: &mut impl FnMut(&'a Value)) {
    see(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, see)),
        Value::Object(members) => members.values().for_each(|member| walk(member, see)),
        _ => {}
    }
}

#[test]
fn the_document_is_whole() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let mut used = BTreeSet::new();
    walk(&document, &mut |value| {
        if let Some(name) = value.get("$ref").and_then(Value::as_str) {
            resolved(&document, value);
            used.insert(name.to_owned());
        }
    });
    for (kind, components) in document["components"].as_object().unwrap() {
        for name in components.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
            assert!(used.contains(&format!("#/components/{kind}/{name}")), "nothing uses {kind} {name}");
        }
    }
    let tags: BTreeSet<&str> =
        document["tags"].as_array().unwrap().iter().filter_map(|tag| tag["name"].as_str()).collect();
    let placeholder = Regex::new(r"\{([a-z_]+)\}").unwrap();
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let id = format!("{path} {}", operation["operationId"].as_str().unwrap());
        assert!(ids.insert(id), "{method} {path}: its operationId is taken");
        assert!(operation["tags"].as_array().unwrap().iter().all(|tag| tags.contains(tag.as_str().unwrap())));
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(status.parse::<u16>().is_ok() && response["description"].is_string(), "{method} {path} {status}");
        }
        // Each `{name}` of the path is a parameter.
        let item = resolved(&document, &document["paths"][&path]);
        let given = item["parameters"].as_array().into_iter().flatten().map(|given| resolved(&document, given));
        let given: BTreeSet<&str> =
            given.filter(|given| given["in"] == "path").filter_map(|given| given["name"].as_str()).collect();
        let named: BTreeSet<&str> =
            placeholder.captures_iter(&path).filter_map(|found| found.get(1)).map(|found| found.as_str()).collect();
        assert_eq!(given, named, "{method} {path}");
    }
}

#[test]
fn every_reason_is_named_with_its_status_and_no_other() {
    let document = document();
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, _, operation) in operations(&document) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            let reasons = response["x-reasons"].as_array().into_iter().flatten();
            named.entry(status.clone()).or_default().extend(reasons.map(|word| word.as_str().unwrap().to_owned()));
        }
    }
    named.retain(|_, reasons| !reasons.is_empty());
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    // Of methods that the document doesn't have.
    for rejection in Rejection::ALL.into_iter().filter(|rejection| *rejection != Rejection::MethodNotAllowed) {
        known.entry(rejection.status().to_string()).or_default().insert(rejection.reason().to_owned());
    }
    assert_eq!(named, known);
}

#[test]
fn every_route_of_the_program_is_in_the_document() {
    let document = document();
    let paths: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let literal = Regex::new("\"(/[a-z_./{}]*)\"").unwrap();
    let mut seen = 0;
    let files =
        ["http/collect.rs", "http/management/mod.rs", "http/ops/mod.rs", "http/ops/console.rs", "http/tag/mod.rs"];
    for file in files {
        let text = fs::read_to_string(root().join("src").join(file)).unwrap();
        let program = text.split("#[cfg(test)]").next().unwrap();
        let places = ["resource(", "route(", "const PATHS", "Source::Tr, [", "const FP: ", "const FBDS: "];
        for line in program.lines().filter(|line| places.iter().any(|place| line.contains(place))) {
            for found in literal.captures_iter(line) {
                seen += 1;
                // A trailing slash of the collection is tolerated, and not promised.
                let path = match &found[1] {
                    "/offsitepixels/" => "/offsitepixels",
                    "/pixels" => "/api/pixels",
                    "/trial" => "/api/trial",
                    path => path,
                };
                assert!(paths.contains(path), "{file}: {path} is not in docs/openapi.json");
            }
        }
    }
    assert!(seen > 14, "the scan sees {seen} routes");
}

/// A gateway with what the requests below need.
struct Stage<'a> {
    site: &'a Site,
    /// Header lines with tokens: for everything, for reading, for another ad account.
    all: String,
    reader: String,
    other: String,
    /// Created through the API.
    pixel: String,
    archived: String,
}

impl Stage<'_> {
    fn ask(&self, method: &str, target: &str, lines: &[&str], body: &str) -> Reply {
        let of_ops = ["/livez", "/readyz", "/metrics", "/events", "/", "/console.js", "/console.css"];
        let path = target.split('?').next().unwrap();
        let ops = of_ops.contains(&path) || path.starts_with("/api/");
        let mut client = Client::connect(if ops { self.site.ops } else { self.site.public }).unwrap();
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        for line in lines {
            head.push_str(&format!("{line}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        client.send(format!("{head}\r\n{body}").as_bytes()).unwrap();
        // A HEAD has no body, and a stream no end.
        if method == "HEAD" || target.starts_with("/events") {
            let (status, headers) = client.head().unwrap();
            return Reply { status, headers, body: Vec::new() };
        }
        client.reply().unwrap()
    }

    /// Requests that provoke the answers of an operation.
    fn requests(&self, path: &str, method: &str) -> Vec<Request> {
        let bare = path.replace("{locale}", "en_US").replace("{id}", &self.pixel);
        match (path, method) {
            ("/offsite_event.php" | "/offsite_event" | "/tr" | "/tr/", "GET" | "HEAD" | "POST") => {
                self.events(&bare, method)
            }
            ("/" | "/api/pixels", _) => vec![to(&bare, &[], ""), to(&bare, &["X-Forwarded-For: 192.0.2.1"], "")],
            ("/api/trial", _) => vec![
                to(&format!("{bare}?id={}", self.pixel), &[], ""),
                to(&format!("{bare}?id=x"), &[], ""),
                to(&format!("{bare}?id={}", self.pixel), &["X-Forwarded-For: 192.0.2.1"], ""),
                to(&format!("{bare}?id={}", self.pixel), &[&self.reader], ""),
            ],
            ("/console.js", _) => vec![to(&bare, &[], "")],
            (_, "POST" | "PUT" | "DELETE") => self.writes(path, method, &bare),
            ("/offsitepixels", "GET" | "HEAD") => self
                .reads(&format!("{bare}?fb_ad_account_id=9"))
                .into_iter()
                .chain([to(&bare, &[&self.all], "")])
                .collect(),
            ("/offsitepixels/{id}" | "/offsitepixels/{id}/diagnostics", "GET" | "HEAD") => {
                let unknown = to(&path.replace("{id}", "43"), &[&self.all], "");
                self.reads(&bare).into_iter().chain([unknown]).collect()
            }
            ("/events", _) => vec![
                to(&bare, &[], ""),
                to(&format!("{bare}?pixel_id=x"), &[], ""),
                to(&bare, &["X-Forwarded-For: 192.0.2.1"], ""),
                to(&format!("{bare}?pixel_id={}", self.pixel), &[&self.other], ""),
            ],
            _ if path.ends_with(".js") => vec![to(&bare, &[], ""), to(&bare, &[&self.etag(&bare, &[])], "")],
            _ => vec![to(&bare, &[], "")],
        }
    }

    fn etag(&self, target: &str, lines: &[&str]) -> String {
        let reply = self.ask("GET", target, lines, "");
        format!("If-None-Match: {}", reply.header("etag").unwrap_or_else(|| panic!("{target}: {reply:?}")))
    }

    fn events(&self, bare: &str, method: &str) -> Vec<Request> {
        let good = format!("{bare}?id={PIXEL}");
        let mut requests = vec![
            to(&good, &[], ""),
            to(bare, &[], ""),
            to(&format!("{bare}?id=42"), &[], ""),
            to(&format!("{bare}?id={}", self.archived), &[], ""),
            to(&good, &["Origin: https://evil.example"], ""),
        ];
        if method == "POST" {
            requests.extend([to(&good, &[STRANGE], "x"), to(&good, &[JSON], &long())]);
        }
        requests
    }

    fn reads(&self, good: &str) -> Vec<Request> {
        let tag = self.etag(good, &[&self.all]);
        [&[&*self.all][..], &[&self.all, &tag], &[], &[&self.other]].map(|lines| to(good, lines, "")).into()
    }

    fn writes(&self, path: &str, method: &str, bare: &str) -> Vec<Request> {
        let (all, reader) = (&*self.all, &*self.reader);
        let unknown = path.replace("{id}", "43");
        let number: u32 = rand::random();
        match (path, method) {
            ("/offsitepixels/last_events", _) => {
                let good = format!("{{\"last_event_ages_ms\":{{\"{}\":5}}}}", self.pixel);
                vec![
                    to(bare, &[all, JSON], &good),
                    to(bare, &[all, JSON], "{}"),
                    to(bare, &[JSON], &good),
                    to(bare, &[reader, JSON], &good),
                    to(bare, &[all, FORM], &good),
                    to(bare, &[all, JSON], &long()),
                ]
            }
            (_, "DELETE") => {
                let given = [&[][..], &[&*self.other], &[all]].map(|lines| to(bare, lines, ""));
                [to(&unknown, &[all], "")].into_iter().chain(given).collect()
            }
            _ => {
                let (good, bad, taken) = match method {
                    "POST" => {
                        let good = format!("fb_ad_account_id=9&name=New+{number}&tag=LEAD");
                        (good, "name=x", "fb_ad_account_id=9&name=Taken&tag=LEAD")
                    }
                    _ => (format!("name=Renamed+{number}"), "tag=wrong", "name=Taken"),
                };
                let mut requests = vec![
                    to(bare, &[all, FORM], &good),
                    to(bare, &[all, FORM], bad),
                    to(bare, &[FORM], &good),
                    to(bare, &[reader, FORM], &good),
                    to(bare, &[all, FORM], taken),
                    to(bare, &[all, STRANGE], "x"),
                    to(bare, &[all, FORM], &long()),
                ];
                if method == "PUT" {
                    requests.push(to(&unknown, &[all, FORM], &good));
                }
                requests
            }
        }
    }
}

/// Target, header lines, body.
type Request = (String, Vec<String>, String);

const FORM: &str = "Content-Type: application/x-www-form-urlencoded";
const JSON: &str = "Content-Type: application/json";
const STRANGE: &str = "Content-Type: image/png";

/// Longer than any body may be.
fn long() -> String {
    "x".repeat(70_000)
}

fn to(target: &str, lines: &[&str], body: &str) -> Request {
    (target.to_owned(), lines.iter().map(|line| (*line).to_owned()).collect(), body.to_owned())
}

/// What an answer has that the document doesn't say of it.
fn check(document: &Value, path: &str, method: &str, operation: &Value, reply: &Reply) {
    let what = format!("{method} {path} {}", reply.status);
    let response = &operation["responses"][reply.status.to_string()];
    assert!(response.is_object(), "{what} is not in docs/openapi.json: {}", String::from_utf8_lossy(&reply.body));
    let reason = reply.header("x-pixelgate-reason");
    let reasons = response["x-reasons"].as_array();
    assert_eq!(reason.is_some(), reasons.is_some(), "{what}: {reason:?}");
    assert!(reasons.is_none_or(|reasons| reasons.iter().any(|word| word.as_str() == reason)), "{what}: {reason:?}");
    for name in response["headers"].as_object().into_iter().flatten().map(|(name, _)| name.to_lowercase()) {
        // Said only where there is something to say.
        let optional = matches!(name.as_str(), "x-pixelgate-warning" | "x-pixelgate-record-id" | "retry-after");
        assert!(optional || reply.header(&name).is_some(), "{what} has no {name}");
    }
    let Some(content) = response["content"].as_object() else {
        assert!(reply.body.is_empty(), "{what} has a body");
        return;
    };
    let kind = reply.header("content-type").unwrap_or_default().split(';').next().unwrap();
    let Some(media) = content.get(kind) else { panic!("{what}: {kind} is not in docs/openapi.json") };
    if let (true, false) = (kind.ends_with("json"), reply.body.is_empty()) {
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        fits(document, &media["schema"], &body, &what);
    }
}

/// Types, required members, enumerations: what the schemas say of structure.
fn fits(document: &Value, schema: &Value, value: &Value, what: &str) {
    let schema = resolved(document, schema);
    let fine = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    assert!(fine, "{what}: {value} is no {schema}");
    assert!(schema["enum"].as_array().is_none_or(|words| words.contains(value)), "{what}: {value} is none of {schema}");
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{what}: {value} lacks {name}");
    }
    for (name, member) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            fits(document, member, value, what);
        }
    }
    for item in value.as_array().into_iter().flatten() {
        fits(document, &schema["items"], item, what);
    }
}

#[test]
fn every_answer_is_given_as_it_is_described() {
    let overlay = format!("[pixels.\"{PIXEL}\"]\norigins = [\"shop.example\", \"none\"]\n");
    let site = Site::new(&overlay);
    let gateway = site.start();
    let all = fs::read_to_string(site.data().join("management-token")).unwrap().trim().to_owned();
    let token = |arguments: &[&str]| {
        let output = site.run(&[&["token", "create", "--name"], arguments].concat());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let (reader, other) = (token(&["reader", "--read-only"]), token(&["other", "--ad-account", "5"]));
    let [all, reader, other] = [all, reader, other].map(|token| format!("Authorization: OAuth {token}"));
    let authorization = all.clone();
    let mut stage = Stage { site: &site, all, reader, other, pixel: String::new(), archived: String::new() };
    let [pixel, archived, _] = ["One", "Two", "Taken"].map(|name| {
        let target = format!("/offsitepixels?fb_ad_account_id=9&name={name}&tag=LEAD");
        let reply = stage.ask("POST", &target, &[&authorization, "Content-Length: 0"], "");
        serde_json::from_slice::<Value>(&reply.body).unwrap()["id"].as_str().unwrap().to_owned()
    });
    assert_eq!(stage.ask("DELETE", &format!("/offsitepixels/{archived}"), &[&authorization], "").status, 204);
    (stage.pixel, stage.archived) = (pixel, archived);
    let document = document();
    for (path, method, operation) in operations(&document) {
        let mut missing: BTreeSet<&str> =
            operation["responses"].as_object().unwrap().keys().map(String::as_str).collect();
        missing.retain(|status| !ELSEWHERE.contains(status));
        for (target, lines, body) in stage.requests(&path, &method) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let reply = stage.ask(&method, &target, &lines, &body);
            check(&document, &path, &method, operation, &reply);
            missing.remove(reply.status.to_string().as_str());
        }
        assert!(missing.is_empty(), "{method} {path}: nothing was answered with {missing:?}");
    }
    until("the gateway still answers", || stage.ask("GET", "/readyz", &[], "").status == 200);
    assert_eq!(gateway.stop(), Some(0));
}
