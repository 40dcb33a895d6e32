//! Pixelgate: a conversion event ingestion gateway.
//!
//! A 2xx means that the event is fdatasync'ed here. An event's way: `http::collect` takes the request and its client's
//! facts, `ingest` decides in one synchronous step (`event::parse`, `registry`, `event::encode`, `journal::append`),
//! the journal's committer makes a batch durable, and the reply goes out. A pixel's way: `http::management` creates it,
//! `registry` stores it, swaps the snapshot that `ingest` reads, and then answers.

pub mod app;
pub mod cli;
pub mod config;
pub mod dedup;
pub mod diagnostics;
pub mod event;
pub mod feed;
pub mod filesystem;
pub mod http;
pub mod inflight;
pub mod ingest;
pub mod journal;
pub mod limits;
pub mod metrics;
pub mod node;
pub mod pixel;
pub mod policy;
pub mod preflight;
pub mod publish;
pub mod record;
pub mod registry;
pub mod rejects;
pub mod secret;
pub mod telemetry;
pub mod time;
pub mod upstream;
