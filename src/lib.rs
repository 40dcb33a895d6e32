//! Pixelgate: a conversion event ingestion gateway.
//!
//! A 2xx means that the event is fdatasync'ed here; Kafka receives each acknowledged request once.

pub mod cli;
pub mod event;
pub mod http;
pub mod journal;
pub mod pixel;
pub mod record;
pub mod registry;
pub mod time;
