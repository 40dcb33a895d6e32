//! `GET /offsitepixels/{id}/diagnostics`: what became of a pixel's requests at this node, for who asks why nothing
//! arrives.
//!
//! Answered here in both modes, for tokens of this gateway; never passed on. Of unknown ids only tokens for all ad
//! accounts hear, as they belong to none.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::local::check_scope;
use super::{Failure, State, authorise, unknown_pixel};
use crate::diagnostics::{Counts, History};
use crate::event::encode::id_text;
use crate::pixel::PixelId;
use crate::registry::Entry;
use crate::time::Timestamp;

/// Members of a rejected request's record that say nothing here.
const OF_THE_RECORD: [&str; 4] = ["schema", "record_id", "pixel_id", "node_id"];

/// Answers with a body, or says why not.
pub(super) async fn answer(state: &State, request: &HttpRequest, id: Option<&str>) -> Result<Vec<u8>, Failure> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "This resource doesn't have this method";
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text));
    }
    let grant = authorise(state, request).await?;
    let id = id.and_then(|id| PixelId::parse(id.as_bytes())).ok_or_else(unknown_pixel)?;
    let entry = state.registry.find(id);
    if let Some(entry) = &entry {
        check_scope(&grant, entry.pixel.ad_account_id.as_deref())?;
    }
    let history = state.diagnostics.of(id);
    if entry.is_none() && (history.is_none() || !grant.allows(None)) {
        return Err(unknown_pixel());
    }
    Ok(for_html(&show(state, id, entry.as_ref(), history.as_ref()).to_string()))
}

fn show(state: &State, id: PixelId, entry: Option<&Arc<Entry>>, history: Option<&History>) -> Value {
    let now = state.diagnostics.now();
    let mut shown = json!({ "id": id.to_string(), "node_id": state.diagnostics.node_id, "known": entry.is_some() });
    let mut put = |name: &str, value: Value| shown[name] = value;
    if let Some(entry) = entry {
        put("archived", entry.pixel.archived.into());
        put("status_here", entry.status(state.registry.now()).as_str().into());
    }
    put("since", time(history.map_or_else(|| state.diagnostics.since(), |history| history.since)));
    if let Some((at, record)) = history.and_then(|history| history.last_accepted) {
        let record = String::from_utf8_lossy(&id_text(record)).into_owned();
        put("last_accepted", json!({ "received_at": time(at), "record_id": record }));
    }
    if let Some((at, reason)) = history.and_then(|history| history.last_rejected) {
        put("last_rejected", json!({ "received_at": time(at), "reason": reason.reason() }));
    }
    let nothing = History::none(now);
    let history = history.unwrap_or(&nothing);
    put("last_24h", counts(&history.total(now)));
    let hours = history.hours(now).into_iter().map(|(begin, of_hour)| {
        let mut hour = json!({ "begin": time(begin) });
        if let (Some(hour), Value::Object(of_hour)) = (hour.as_object_mut(), counts(&of_hour)) {
            hour.extend(of_hour);
        }
        hour
    });
    put("hours", hours.collect());
    put("last_rejects", history.rejects.iter().rev().filter_map(|record| reject(record)).collect());
    shown
}

fn counts(counts: &Counts) -> Value {
    let by = |counts: &mut dyn Iterator<Item = (&'static str, u64)>| -> Map<String, Value> {
        counts.map(|(word, count)| (word.to_owned(), count.into())).collect()
    };
    json!({
        "accepted": counts.accepted(),
        "trials": counts.trials(),
        "ignored": by(&mut counts.declined()),
        "rejected": by(&mut counts.rejected()),
        "warnings": by(&mut counts.warnings()),
    })
}

/// A rejected request, as far as its record tells of it.
fn reject(record: &[u8]) -> Option<Value> {
    let mut record: Map<String, Value> = serde_json::from_slice(record).ok()?;
    record.retain(|name, _| !OF_THE_RECORD.contains(&name.as_str()));
    Some(record.into())
}

fn time(time: Timestamp) -> Value {
    time.to_rfc3339().into()
}

/// JSON that is safe inside HTML, as all answers of this API: these letters stand in texts only.
fn for_html(json: &str) -> Vec<u8> {
    let mut out = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '<' => out.push_str("\\u003C"),
            '>' => out.push_str("\\u003E"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            letter => out.push(letter),
        }
    }
    out.into_bytes()
}
