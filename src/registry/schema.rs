//! The registry's tables, step by step. A store has all of them up to its version; steps are only ever appended.

/// Step `n` brings the version from `n` to `n + 1`.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE pixels (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        ad_account_id TEXT,
        name TEXT,
        tag TEXT,
        creator TEXT NOT NULL,
        archived INTEGER NOT NULL,
        origin TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        last_event_ms INTEGER
    ) STRICT;
    CREATE UNIQUE INDEX pixels_name ON pixels (ad_account_id, name) WHERE origin = 'local';
    CREATE TABLE tokens (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        hash BLOB NOT NULL UNIQUE,
        ad_accounts TEXT NOT NULL,
        read_only INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        revoked_ms INTEGER
    ) STRICT;
    CREATE UNIQUE INDEX tokens_name ON tokens (name) WHERE revoked_ms IS NULL;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    ",
    // An archived pixel leaves its name to others. Changes are numbered, for who follows them.
    "
    DROP INDEX pixels_name;
    CREATE UNIQUE INDEX pixels_name ON pixels (ad_account_id, name) WHERE origin = 'local' AND archived = 0;
    ALTER TABLE pixels ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        pixel_id TEXT,
        ad_account_id TEXT,
        token TEXT,
        before_json TEXT,
        after_json TEXT,
        request_id TEXT
    ) STRICT;
    ",
];
