//! The edges: what speaks HTTP. No decisions are made here but how to say them.

pub mod body;
pub mod client;
pub mod collect;
pub mod door;
mod facts;
mod head;
mod lane;
pub mod leave;
pub mod listen;
pub mod management;
pub mod ops;
pub mod reply;
mod request;
pub mod tag;
mod watch;
