//! Tests from outside, in one binary: each module speaks to the program as its users do.
#![expect(clippy::unwrap_used, reason = "a helper that fails ends its test, as the test itself would")]
#![expect(clippy::print_stderr, reason = "seeds and offenders belong in the output of a failed test")]

mod activator;
mod audit;
mod client;
mod consumer;
mod crowd;
mod desk;
mod exposition;
mod gateway;
mod load;
#[cfg_attr(not(feature = "e2e"), expect(dead_code, reason = "visitors of a real Kafka are made of it"))]
mod oracle;
mod power;
mod random;
mod shim;

mod journal_files;

mod abuse;
mod asyncapi;
mod batch;
mod bounds;
mod cli;
mod clock;
mod cloudevents;
mod config;
mod console;
mod crash;
mod dedup;
mod diagnostics;
mod dirty;
mod disk;
mod encodings;
mod feed;
mod fidelity;
mod filters;
mod fleet;
mod forward;
mod forward_faults;
mod forward_tls;
mod handover;
mod lane;
mod learning;
mod limits;
mod logs;
mod lookups;
mod manage;
mod metrics;
mod openapi;
mod ops;
mod policies;
mod routes;
mod schema;
mod shutdown;
mod stranded;
mod tag;
mod tls;
mod tls_h2;
mod tls_site;
mod tokens;
mod tr;
mod upgrade;
mod upstream;
mod visitor;

#[cfg(feature = "e2e")]
mod admin;
#[cfg(feature = "e2e")]
mod alerts;
#[cfg(feature = "e2e")]
mod authorities;
#[cfg(feature = "e2e")]
mod backlog;
#[cfg(feature = "e2e")]
mod broker;
#[cfg(feature = "e2e")]
mod browser;
#[cfg(feature = "e2e")]
mod browser_calls;
#[cfg(feature = "e2e")]
mod browser_fbq;
#[cfg(feature = "e2e")]
mod browser_firefox;
#[cfg(feature = "e2e")]
mod browser_pages;
#[cfg(feature = "e2e")]
mod browser_privacy;
#[cfg(feature = "e2e")]
mod browser_tls;
#[cfg(feature = "e2e")]
mod browser_visits;
#[cfg(feature = "e2e")]
mod chart;
#[cfg(feature = "e2e")]
mod chart_jobs;
#[cfg(feature = "e2e")]
mod choices;
#[cfg(feature = "e2e")]
mod cluster;
#[cfg(feature = "e2e")]
mod combination;
#[cfg(feature = "e2e")]
mod console_browser;
#[cfg(feature = "e2e")]
mod consumers;
#[cfg(feature = "e2e")]
mod consumers_sql;
#[cfg(feature = "e2e")]
mod dead_node;
#[cfg(feature = "e2e")]
mod delivery;
#[cfg(feature = "e2e")]
mod demo;
#[cfg(feature = "e2e")]
mod directory;
#[cfg(feature = "e2e")]
mod document;
#[cfg(feature = "e2e")]
mod fault_run;
#[cfg(feature = "e2e")]
mod faults;
#[cfg(feature = "e2e")]
mod kill_loop;
#[cfg(feature = "e2e")]
mod maven;
#[cfg(feature = "e2e")]
mod monitoring;
#[cfg(feature = "e2e")]
mod nginx;
#[cfg(feature = "upgrade")]
mod older;
#[cfg(feature = "e2e")]
mod outage;
#[cfg(feature = "e2e")]
mod packages;
#[cfg(feature = "e2e")]
mod parking;
#[cfg(feature = "e2e")]
mod postgres;
#[cfg(feature = "e2e")]
mod precheck;
#[cfg(feature = "e2e")]
mod progress;
#[cfg(feature = "e2e")]
mod proxy;
#[cfg(feature = "e2e")]
mod python;
#[cfg(feature = "e2e")]
mod refusal;
#[cfg(feature = "e2e")]
mod running;
#[cfg(feature = "e2e")]
mod scene;
#[cfg(feature = "e2e")]
mod schemas;
#[cfg(feature = "e2e")]
mod secure;
#[cfg(feature = "e2e")]
mod stage;
#[cfg(feature = "e2e")]
mod systemd;
#[cfg(feature = "e2e")]
mod tools;
#[cfg(feature = "e2e")]
mod trio;
