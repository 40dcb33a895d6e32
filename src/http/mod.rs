//! The edges: what speaks HTTP.

pub mod management;
