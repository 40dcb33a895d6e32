//! Tests from outside, in one binary: each module speaks to the program as its users do.
#![expect(clippy::unwrap_used, reason = "a helper that fails ends its test, as the test itself would")]
#![expect(clippy::print_stderr, reason = "seeds and offenders belong in the output of a failed test")]

mod audit;
mod client;
mod exposition;
mod gateway;
mod load;
mod random;

mod cli;
mod crash;
mod metrics;
mod ops;
mod schema;
mod shutdown;

#[cfg(feature = "e2e")]
mod broker;
#[cfg(feature = "e2e")]
mod consumer;
#[cfg(feature = "e2e")]
mod kill_loop;
