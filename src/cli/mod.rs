//! The commands.

pub mod token;
