//! The schema registry (`kafka.schema_registry.*`), by the interface that Confluent's, Apicurio's, Karapace and
//! Redpanda's have in common: a schema goes in under a subject, an id comes back
//! (<https://docs.confluent.io/platform/current/schema-registry/develop/api.html>).
//!
//! It is asked once a run and topic, before anything is sent. Without an answer nothing is sent, and nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::Format;
use super::fault::{Doubt, Fault};
use super::wait::WATCHDOG_GRACE;
use super::within::CALLS;
use crate::secret::Secret;
use crate::time::SystemClock;
use crate::upstream::{Base, Call, Client, Connector, Error, Gate, HeaderMap, HeaderValue, Method, Observer, header};

/// Longest wait for a connection, for an answer, and between two pieces of it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read: an id, or a message.
const ANSWER_MAX_BYTES: usize = 64 << 10;
/// Longest message of the registry's that is passed on.
const MESSAGE_MAX_CHARS: usize = 300;

/// `kafka.schema_registry.*`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SchemaRegistry {
    /// `url`.
    pub base: Base,
    /// `username` and `password`.
    pub credentials: Option<(String, Secret)>,
    /// `auto_register`: a schema that isn't there is registered.
    pub auto_register: bool,
}

/// The id of a schema under the subject of a topic's values (`TopicNameStrategy`).
pub(super) fn id_of(registry: &SchemaRegistry, topic: &str, format: Format, schema: &str) -> Result<u32, Doubt> {
    let doubt = |why: String| Doubt::text(Fault::SchemaRegistry, format!("kafka.schema_registry.url: {why}"));
    let (registry, subject) = (registry.clone(), format!("{topic}-value"));
    let question = match format {
        Format::Protobuf => json!({"schemaType": "PROTOBUF", "schema": schema}),
        Format::Avro => json!({"schema": schema}),
    };
    let ask = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, ask(&registry, &subject, question.to_string()))
    };
    // Names are looked up by calls that have no limit of their own.
    CALLS.within(4 * TIMEOUT + WATCHDOG_GRACE, ask).unwrap_or_else(|| Err("no answer in time".into())).map_err(doubt)
}

async fn ask(registry: &SchemaRegistry, subject: &str, question: String) -> Result<u32, String> {
    let options = crate::upstream::Options { base: registry.base.clone(), timeout: TIMEOUT };
    let connector = Connector::new(&registry.base).map_err(|error| error.to_string())?;
    let client = Client::new(options, connector, Gate::new(1, Arc::new(SystemClock), Arc::new(Unobserved)));
    let versions = if registry.auto_register { "/versions" } else { "" };
    // Topics are made of letters that need no escape.
    let target = format!("/subjects/{subject}{versions}").parse().map_err(|_| "the topic's name fits no URL")?;
    let call = Call { method: Method::POST, target, headers: headers(registry)?, body: Bytes::from(question) };
    let mut answer = client.call(&call).await.map_err(told)?;
    let mut text = Vec::new();
    while let Some(bytes) = answer.body.chunk().await.map_err(told)? {
        if text.len() + bytes.len() > ANSWER_MAX_BYTES {
            return Err("the answer is too long for a schema registry's".into());
        }
        text.extend_from_slice(&bytes);
    }
    judge(answer.status, &text, subject)
}

fn headers(registry: &SchemaRegistry) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let media = HeaderValue::from_static("application/vnd.schemaregistry.v1+json");
    headers.insert(header::CONTENT_TYPE, media.clone());
    headers.insert(header::ACCEPT, media);
    if let Some((user, password)) = &registry.credentials {
        let basic = openssl::base64::encode_block(format!("{user}:{}", password.expose()).as_bytes());
        let mut value = HeaderValue::try_from(format!("Basic {basic}")).map_err(|_| "credentials fit no header")?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(headers)
}

/// The id of a good answer; else why there is none, and what to do.
fn judge(status: u16, text: &[u8], subject: &str) -> Result<u32, String> {
    #[derive(Deserialize)]
    struct Id {
        id: u32,
    }
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    if status == 200 {
        let answer: Result<Id, _> = serde_json::from_slice(text);
        return answer.map(|answer| answer.id).map_err(|_| "the answer has no id: is this a schema registry?".into());
    }
    let advice = match status {
        401 | 403 => "; set kafka.schema_registry.username and password, with the right to read and write the subject",
        404 => "; register the schema of docs/schema, or set kafka.schema_registry.auto_register = true",
        409 => "; the subject has another kind of records: allowed is a topic of its own",
        _ => "",
    };
    let said = serde_json::from_slice(text).map_or(String::new(), |Message { message }| {
        let short: String = message.chars().take(MESSAGE_MAX_CHARS).collect();
        format!(": {}", short.escape_debug())
    });
    Err(format!("status {status} for subject {subject}{said}{advice}"))
}

fn told(error: Error) -> String {
    match error {
        Error::Unreachable(why) => format!("can't be reached: {why}"),
        Error::Broken(why) => format!("broke off or does not speak HTTP: {why}"),
        Error::Slow | Error::Busy | Error::Resting => "no answer in time".into(),
    }
}

struct Unobserved;

impl Observer for Unobserved {
    fn called(&self, _: u16, _: Duration) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_an_id_or_says_why_not_and_what_to_do() {
        assert_eq!(judge(200, br#"{"id":7,"more":1}"#, "t-value"), Ok(7));
        let check = |status, text: &str, parts: &[&str]| {
            let why = judge(status, text.as_bytes(), "t-value").unwrap_err();
            assert!(parts.iter().all(|part| why.contains(part)), "{why}");
            assert!(!why.contains('\n'), "{why}");
        };
        check(200, "<html>", &["no id", "schema registry"]);
        check(200, r#"{"id":-1}"#, &["no id"]);
        check(401, "", &["401", "username"]);
        check(404, r#"{"error_code":40401,"message":"a\nb"}"#, &["t-value", "a\\nb", "auto_register"]);
        check(409, r#"{"message":"incompatible"}"#, &["incompatible", "a topic of its own"]);
        check(500, &format!(r#"{{"message":"{}"}}"#, "x".repeat(9999)), &["500"]);
        assert!(
            judge(500, format!(r#"{{"message":"{}"}}"#, "x".repeat(9999)).as_bytes(), "t").unwrap_err().len() < 400
        );
    }

    #[test]
    fn a_password_is_in_the_header_and_in_no_text() {
        let base = Base::parse("http://127.0.0.1:1").unwrap();
        let credentials = Some(("user".to_owned(), Secret::new("hush".into())));
        let registry = SchemaRegistry { base, credentials, auto_register: true };
        let headers = headers(&registry).unwrap();
        assert_eq!(headers[header::AUTHORIZATION], "Basic dXNlcjpodXNo");
        for text in [format!("{registry:?}"), format!("{headers:?}")] {
            assert!(!text.contains("hush") && !text.contains("dXNlcjpodXNo"), "{text}");
        }
        let doubt = id_of(&registry, "t", Format::Avro, "{}").unwrap_err();
        assert_eq!(doubt.fault, Fault::SchemaRegistry);
        assert!(!doubt.to_string().contains("hush"), "{doubt}");
    }
}
