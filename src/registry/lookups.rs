//! Asks the upstream for single pixels that are seen often and not known, with the gateway's own token.
//!
//! Bounded whatever websites send: one question at a time, at most one a [`PACE`], and none about an id that was asked
//! about lately. Events never wait for it; a pixel that is found is learnt through the one door.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::{Registry, lessons, own};
use crate::pixel::PixelId;
use crate::upstream::{Client, Method};

/// Of all questions together. Also how long an id that is seen often waits at least.
const PACE: Duration = Duration::from_secs(1);
/// How long an id that the upstream doesn't know is not asked about again. With [`PACE`] it bounds what is remembered.
const UNKNOWN_FOR: Duration = Duration::from_secs(600);
/// The same for a question that got no answer.
const UNANSWERED_FOR: Duration = Duration::from_secs(60);
/// Longest answer: one pixel with its snippet.
const ANSWER_MAX_BYTES: usize = 256 << 10;

/// What became of a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The pixel is known now.
    Found,
    /// The upstream has no such pixel, or doesn't show it to this gateway.
    Unknown,
    /// There was no answer that says either.
    Failed,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 3] = [Outcome::Found, Outcome::Unknown, Outcome::Failed];

    /// The metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Found => "found",
            Outcome::Unknown => "unknown",
            Outcome::Failed => "failed",
        }
    }
}

/// How many questions had which outcome.
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; Outcome::ALL.len()]);

impl Registry {
    /// How many look-ups of unknown ids had this outcome.
    pub fn lookups(&self, outcome: Outcome) -> u64 {
        self.inner.lookups.0[outcome as usize].load(Relaxed)
    }
}

/// Runs until it is dropped; at once over where there is nobody to ask, or no token to ask with.
pub(super) async fn run(registry: &Registry, client: &Client) {
    let Some(often) = registry.inner.unknowns.as_ref().and_then(|unknowns| unknowns.take()) else { return };
    let clock = &registry.inner.clock;
    // Until when an id is not asked about again.
    let mut asked: HashMap<PixelId, Duration> = HashMap::new();
    loop {
        tokio::time::sleep(PACE).await;
        let now = clock.monotonic();
        asked.retain(|_, until| *until > now);
        // The queue is short: what was asked lately, or has become known by a list, is no reason to wait.
        let is_new = |id: &PixelId| !asked.contains_key(id) && registry.find(*id).is_none();
        let Some(id) = often.try_iter().find(is_new) else { continue };
        let outcome = match ask(registry, client, id).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::debug!(%id, error, "an unknown id could not be looked up");
                Outcome::Failed
            }
        };
        registry.inner.lookups.0[outcome as usize].fetch_add(1, Relaxed);
        let quiet = if outcome == Outcome::Failed { UNANSWERED_FOR } else { UNKNOWN_FOR };
        asked.insert(id, clock.monotonic() + quiet);
    }
}

async fn ask(registry: &Registry, client: &Client, id: PixelId) -> Result<Outcome, String> {
    let call = own::call(registry, Method::GET, &format!("/offsitepixels/{id}"))?;
    let answer = client.call(&call).await.map_err(|error| error.to_string())?;
    own::heed(registry, &answer);
    match answer.status {
        200 => {}
        403 | 404 | 410 => return Ok(Outcome::Unknown),
        status => return Err(format!("registry.upstream answered {status}")),
    }
    let body = own::read(answer.body, ANSWER_MAX_BYTES).await?;
    let pixel = lessons::single(&body).filter(|pixel| pixel.id == id).ok_or("its answer is not this pixel")?;
    match registry.learn(vec![pixel]).map_err(|error| error.to_string())? {
        0 => {}
        _ => return Err("it finds no room under registry.max_pixels".to_owned()),
    }
    tracing::info!(%id, "a pixel of no list was seen often, asked for, and is known now");
    Ok(Outcome::Found)
}
