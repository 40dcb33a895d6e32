//! The edges: what speaks HTTP. No decisions are made here but how to say them.

pub mod body;
pub mod client;
pub mod collect;
pub mod door;
mod facts;
mod guard;
mod h2;
mod h2_message;
mod head;
mod lane;
pub mod leave;
pub mod listen;
pub mod management;
pub mod ops;
pub mod reply;
mod request;
pub mod tag;
pub mod tls;
mod watch;
mod ways;
mod wire;
