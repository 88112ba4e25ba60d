"""The tables of journal version 1, as the first release made them. Never changed: tills in shops have them."""

from __future__ import annotations

TABLES = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    server_id TEXT NOT NULL, device_id TEXT NOT NULL, store_id TEXT NOT NULL, scope TEXT NOT NULL,
    device_state TEXT NOT NULL CHECK (device_state IN ('pending', 'active', 'suspended', 'revoked', 'lost')),
    customer_salt TEXT NOT NULL,
    base_seq INTEGER NOT NULL, base_hash TEXT NOT NULL,
    durable_seq INTEGER NOT NULL,
    acknowledged_seq INTEGER NOT NULL, acknowledged_hash TEXT NOT NULL,
    acknowledged_redemptions INTEGER NOT NULL, acknowledged_minor INTEGER NOT NULL,
    head_seq INTEGER NOT NULL, head_hash TEXT NOT NULL,
    head_redemptions INTEGER NOT NULL, head_minor INTEGER NOT NULL,
    server_epoch INTEGER NOT NULL, ledger_mark INTEGER NOT NULL, lease_number INTEGER NOT NULL,
    bundle_version INTEGER NOT NULL, bundle_serial INTEGER NOT NULL,
    mark_at TEXT NOT NULL, mark_boot_id TEXT NOT NULL, mark_monotonic_s INTEGER NOT NULL,
    mark_gained_s INTEGER NOT NULL, mark_signed_at TEXT NOT NULL, mark_signed_boot_id TEXT NOT NULL,
    anomaly TEXT NOT NULL,
    batch_events_max INTEGER NOT NULL CHECK (batch_events_max BETWEEN 1 AND 500),
    failures INTEGER NOT NULL, next_attempt_at TEXT, not_before_at TEXT, last_sync_at TEXT,
    CHECK (0 <= base_seq AND base_seq <= durable_seq AND durable_seq <= acknowledged_seq
           AND acknowledged_seq <= head_seq),
    CHECK (acknowledged_redemptions <= head_redemptions AND acknowledged_minor <= head_minor)
) STRICT;

CREATE TRIGGER head_never_goes_back BEFORE UPDATE ON state
WHEN NEW.head_seq < OLD.head_seq OR NEW.base_seq < OLD.base_seq OR NEW.lease_number < OLD.lease_number
BEGIN SELECT RAISE(ABORT, 'head, base and lease number never go back'); END;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY CHECK (seq >= 1),
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL CHECK (type IN ('redeem', 'void', 'lease_close', 'clock_anomaly')),
    at TEXT NOT NULL,
    ref TEXT,
    hash TEXT NOT NULL CHECK (length(hash) = 64),
    envelope BLOB NOT NULL,
    body BLOB NOT NULL,
    redemptions_so_far INTEGER NOT NULL,
    minor_so_far INTEGER NOT NULL,
    outcome TEXT CHECK (outcome IN ('applied', 'duplicate', 'flagged', 'quarantined')),
    reasons TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX events_of_bad_clocks ON events (seq) WHERE type = 'clock_anomaly';
CREATE INDEX events_to_look_at ON events (seq) WHERE outcome IN ('flagged', 'quarantined');

CREATE TRIGGER events_never_change BEFORE UPDATE OF seq, id, hash, envelope ON events
BEGIN SELECT RAISE(ABORT, 'an event never changes'); END;

CREATE TABLE leases (
    id TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE CHECK (number >= 1),
    voucher_id TEXT NOT NULL,
    units INTEGER CHECK (units >= 0),
    minor INTEGER CHECK (minor >= 0),
    used_units INTEGER NOT NULL DEFAULT 0 CHECK (used_units >= 0),
    used_minor INTEGER NOT NULL DEFAULT 0 CHECK (used_minor >= 0),
    expires_at TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'closing', 'closed')),
    reason TEXT NOT NULL DEFAULT '',
    close_seq INTEGER,
    CHECK (units IS NULL OR used_units <= units),
    CHECK (minor IS NULL OR used_minor <= minor),
    CHECK ((state = 'active') = (close_seq IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_open_lease_a_voucher ON leases (voucher_id) WHERE state <> 'closed';
CREATE INDEX leases_closing ON leases (close_seq) WHERE close_seq IS NOT NULL;

CREATE TRIGGER used_never_goes_down BEFORE UPDATE ON leases
WHEN NEW.used_units < OLD.used_units OR NEW.used_minor < OLD.used_minor
     OR (OLD.state <> 'active' AND (NEW.used_units <> OLD.used_units OR NEW.used_minor <> OLD.used_minor))
     OR (OLD.state <> 'active' AND NEW.state = 'active')
BEGIN SELECT RAISE(ABORT, 'use of a lease never goes down, and ends with its close'); END;

CREATE TABLE voucher_uses (
    voucher_id TEXT PRIMARY KEY, units INTEGER NOT NULL CHECK (units >= 0), minor INTEGER NOT NULL CHECK (minor >= 0)
) STRICT, WITHOUT ROWID;
CREATE TABLE customer_uses (
    voucher_id TEXT NOT NULL, customer TEXT NOT NULL, units INTEGER NOT NULL CHECK (units >= 0), ends_at TEXT,
    PRIMARY KEY (voucher_id, customer)
) STRICT, WITHOUT ROWID;
CREATE TABLE wants (
    voucher_id TEXT PRIMARY KEY, units INTEGER NOT NULL CHECK (units >= 1)
) STRICT, WITHOUT ROWID;

CREATE TABLE voids (redemption_id TEXT PRIMARY KEY, void_id TEXT NOT NULL UNIQUE) STRICT, WITHOUT ROWID;
CREATE TABLE returns (
    redemption_id TEXT NOT NULL, line_id TEXT NOT NULL, units INTEGER NOT NULL CHECK (units >= 1),
    PRIMARY KEY (redemption_id, line_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempts (
    id TEXT PRIMARY KEY, at TEXT NOT NULL, fingerprint TEXT NOT NULL, request BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'redeemed', 'refused', 'offline')), answer BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX attempts_without_answer ON attempts (fingerprint) WHERE state = 'pending';

CREATE TABLE roots (version INTEGER PRIMARY KEY CHECK (version >= 1), raw BLOB NOT NULL) STRICT;
CREATE TABLE floors (
    scope TEXT PRIMARY KEY, server_epoch INTEGER NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TRIGGER floors_never_go_down BEFORE UPDATE ON floors
WHEN (NEW.server_epoch, NEW.version) < (OLD.server_epoch, OLD.version)
BEGIN SELECT RAISE(ABORT, 'a floor never goes down'); END;
"""
