"""All tables. The rules of the protocol that a database can hold are constraints here (protocol.md, section 1).

Ids are UUIDs in their usual spelling, digests 64 hexadecimal digits, amounts minor units, times UTC.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from tallystick_server.columns import DIGEST, ID, NAME, SERIAL, UtcTime, amount, metadata

SCHEMA_REVISION = "0002"
"""The newest migration, which these tables are."""

server = Table(
    "server",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("server_id", ID, nullable=False),
    # the unix time at which it began, except the first, which is 1
    Column("server_epoch", BigInteger, nullable=False),
    Column("state", String(32), nullable=False),
    # 1: an operator says that no device enrolled since the backup, so the recovery ends with the last known device
    Column("recovery_ends", Integer, nullable=False, server_default="0"),
    # the device that has seen later answers than this database holds
    Column("suspected_by", ID),
    Column("created_at", UtcTime, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    CheckConstraint("state IN ('normal', 'restore_suspected', 'recovering')", name="state"),
)

operator_keys = Table(
    "operator_keys",
    metadata,
    Column("sha256", DIGEST, primary_key=True),
    Column("name", NAME, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

scopes = Table(
    "scopes",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("vouchers", Integer, nullable=False),
    # the sum of `voucher_digest` of the scope's vouchers, modulo 2**256, in hexadecimal
    Column("state_digest", DIGEST, nullable=False),
    # always there; null only to SQLite, which cannot add a column without a default to a table with rows
    Column("code_salt", String(32)),
    Column("created_at", UtcTime, nullable=False),
    # the newest signed manifest, and the version and snapshot it names
    Column("manifest", LargeBinary),
    Column("manifest_version", BigInteger),
    Column("manifest_signed_at", UtcTime),
    Column("snapshot_version", BigInteger),
    Column("snapshot_sha256", DIGEST),
    Column("snapshot_bytes", BigInteger),
    Column("snapshot_vouchers", Integer),
    # the deltas that the manifest names, as JSON
    Column("deltas", Text, nullable=False, server_default="[]"),
    CheckConstraint("version >= 1", name="version"),
)

campaigns = Table(
    "campaigns",
    metadata,
    Column("id", String(256), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

vouchers = Table(
    "vouchers",
    metadata,
    Column("id", ID, primary_key=True),
    Column("code", String(128), nullable=False),
    Column("folded", String(512), nullable=False),
    Column("campaign_id", String(256), nullable=False),
    # of the current revision, so that no query has to read its JSON
    Column("revision", Integer, nullable=False),
    Column("revised_at", UtcTime, nullable=False),
    Column("sha256", DIGEST, nullable=False),
    Column("status", String(16), nullable=False),
    Column("policy", String(16), nullable=False),
    Column("valid_from", UtcTime),
    Column("valid_until", UtcTime),
    amount("largest_minor", nullable=True),
    # 1: the code travels as its digest (`hidden_code`), and is nowhere in a revision
    Column("hidden", Integer, nullable=False, server_default="0"),
    Column("created_at", UtcTime, nullable=False),
    Column("deactivated_at", UtcTime),
    UniqueConstraint("folded"),
)

voucher_revisions = Table(
    "voucher_revisions",
    metadata,
    Column("voucher_id", ID, ForeignKey(vouchers.c.id), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("sha256", DIGEST, nullable=False),
    Column("json", LargeBinary, nullable=False),
    Column("published_at", UtcTime, nullable=False),
    PrimaryKeyConstraint("voucher_id", "revision"),
)

scope_vouchers = Table(
    "scope_vouchers",
    metadata,
    Column("scope", NAME, ForeignKey(scopes.c.name), nullable=False),
    Column("voucher_id", ID, ForeignKey(vouchers.c.id), nullable=False),
    PrimaryKeyConstraint("scope", "voucher_id"),
    Index(None, "voucher_id"),
)

# which vouchers of a scope a version put, revised or dropped: what deltas are made of
scope_changes = Table(
    "scope_changes",
    metadata,
    Column("scope", NAME, ForeignKey(scopes.c.name), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("voucher_id", ID, nullable=False),
    PrimaryKeyConstraint("scope", "version", "voucher_id"),
)

# I1, per voucher and measure: units (limits.total) or minor (limits.budget_minor). `held` is q of open and burned
# leases, `closed_used` u of closed ones, `released_known` k of released ones.
pools = Table(
    "pools",
    metadata,
    Column("voucher_id", ID, ForeignKey(vouchers.c.id), nullable=False),
    Column("measure", String(8), nullable=False),
    amount("limit"),
    amount("free"),
    amount("online", default=0),
    amount("uncovered", default=0),
    amount("voided", default=0),
    amount("held", default=0),
    amount("closed_used", default=0),
    amount("released_known", default=0),
    PrimaryKeyConstraint("voucher_id", "measure"),
    CheckConstraint("measure IN ('units', 'minor')", name="measure"),
    CheckConstraint(
        'free + online + uncovered + held + closed_used + released_known - voided = "limit"', name="adds_up"
    ),
    CheckConstraint(
        "online >= 0 AND uncovered >= 0 AND voided >= 0 AND held >= 0 AND closed_used >= 0 AND released_known >= 0",
        name="not_negative",
    ),
)

enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    Column("sha256", DIGEST, primary_key=True),
    Column("store_id", NAME, nullable=False),
    Column("scope", NAME, ForeignKey(scopes.c.name), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("device_id", ID),
)

devices = Table(
    "devices",
    metadata,
    Column("id", ID, primary_key=True),
    Column("kid", DIGEST, nullable=False),
    Column("public_x", String(64), nullable=False),
    Column("name", NAME, nullable=False),
    Column("store_id", NAME, nullable=False),
    Column("scope", NAME, ForeignKey(scopes.c.name), nullable=False),
    Column("state", String(16), nullable=False),
    Column("enrolled_at", UtcTime, nullable=False),
    Column("last_sync_at", UtcTime),
    # the end of branch 0, the journal as it is known, and how many branches there are
    Column("seq", BigInteger, nullable=False),
    Column("hash", DIGEST, nullable=False),
    Column("branches", Integer, nullable=False),
    Column("last_event_at", UtcTime),
    Column("lease_number", BigInteger, nullable=False),
    # how far the journal is in every backup that may be restored; no hash: not even its start
    Column("durable_seq", BigInteger, nullable=False, server_default="0"),
    Column("durable_hash", DIGEST),
    # the epoch in which the device has sent all of its journal; in a recovery, whether it has reported
    Column("reported_epoch", BigInteger, nullable=False, server_default="0"),
    # the epoch in which it told which leases it holds: a second list of that epoch adds nothing
    Column("adopted_epoch", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("kid"),
    CheckConstraint("state IN ('pending', 'active', 'suspended', 'revoked', 'lost')", name="state"),
    Index(None, "scope"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", ID, primary_key=True),
    Column("device_id", ID, ForeignKey(devices.c.id), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("voucher_id", ID, ForeignKey(vouchers.c.id), nullable=False),
    amount("units", nullable=True),
    amount("minor", nullable=True),
    amount("known_units", default=0),
    amount("known_minor", default=0),
    Column("state", String(16), nullable=False),
    Column("granted_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("recalled_at", UtcTime),
    # why it is burned: a lost device's late close still returns the rest, a forked one's does not
    Column("burned_by", String(8)),
    # the device has closed it, but unreadable events lie before that close: held until a person decides
    Column("close_seq", BigInteger),
    UniqueConstraint("device_id", "number"),
    CheckConstraint("state IN ('open', 'closed', 'burned', 'released')", name="state"),
    CheckConstraint("burned_by IN ('lost', 'forked')", name="burned_by"),
    CheckConstraint("known_units >= 0 AND (units IS NULL OR known_units <= units)", name="known_units"),
    CheckConstraint("known_minor >= 0 AND (minor IS NULL OR known_minor <= minor)", name="known_minor"),
    Index(
        "ix_leases_one_open",
        "device_id",
        "voucher_id",
        unique=True,
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
    Index(
        "ix_leases_open_voucher",
        "voucher_id",
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
)

events = Table(
    "events",
    metadata,
    Column("device_id", ID, ForeignKey(devices.c.id), nullable=False),
    Column("branch", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    # null where the envelope cannot be read
    Column("event_id", ID),
    Column("type", String(16)),
    Column("at", UtcTime),
    Column("envelope", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("hash", DIGEST, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reasons", Text, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    PrimaryKeyConstraint("device_id", "branch", "seq"),
    Index(
        "ix_events_quarantined",
        "device_id",
        sqlite_where=text("outcome = 'quarantined'"),
        postgresql_where=text("outcome = 'quarantined'"),
    ),
)

# I8: one effect for each id of an issuer (a device's id, or "operator"), for ever
redemptions = Table(
    "redemptions",
    metadata,
    Column("issuer", ID, nullable=False),
    Column("redemption_id", ID, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("device_id", ID, ForeignKey(devices.c.id)),
    Column("store_id", String(256)),
    Column("customer_id", String(256)),
    Column("online", Integer, nullable=False),
    # what was asked: the order and the codes; empty where the body of an event cannot be read, and of an online attempt
    # that was voided before it came
    Column("content_sha256", DIGEST, nullable=False),
    Column("body_sha256", DIGEST),
    Column("result", LargeBinary, nullable=False),
    PrimaryKeyConstraint("issuer", "redemption_id"),
    Index(None, "at"),
)

redemption_uses = Table(
    "redemption_uses",
    metadata,
    Column("issuer", ID, nullable=False),
    Column("redemption_id", ID, nullable=False),
    Column("voucher_id", ID, nullable=False),
    Column("revision_sha256", DIGEST),
    amount("units"),
    amount("minor"),
    amount("settled_minor", nullable=True),
    Column("lease_id", ID),
    Column("cover", String(8), nullable=False),
    amount("voided_units", default=0),
    amount("voided_minor", default=0),
    PrimaryKeyConstraint("issuer", "redemption_id", "voucher_id"),
    ForeignKeyConstraint(["issuer", "redemption_id"], ["redemptions.issuer", "redemptions.redemption_id"]),
    CheckConstraint("cover IN ('lease', 'online', 'open', 'none')", name="cover"),
    CheckConstraint("voided_units >= 0 AND voided_units <= units", name="voided_units"),
    CheckConstraint("voided_minor >= 0 AND voided_minor <= minor", name="voided_minor"),
    Index(None, "voucher_id"),
)

customer_uses = Table(
    "customer_uses",
    metadata,
    Column("voucher_id", ID, nullable=False),
    Column("customer_id", String(256), nullable=False),
    amount("units"),
    PrimaryKeyConstraint("voucher_id", "customer_id"),
    CheckConstraint("units >= 0", name="units"),
)

# what each device sold or could not sell of each voucher: what leases are allocated by
demand = Table(
    "demand",
    metadata,
    Column("device_id", ID, ForeignKey(devices.c.id), nullable=False),
    Column("voucher_id", ID, ForeignKey(vouchers.c.id), nullable=False),
    amount("units"),
    Column("at", UtcTime, nullable=False),
    PrimaryKeyConstraint("device_id", "voucher_id"),
)

flags = Table(
    "flags",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("device_id", ID, ForeignKey(devices.c.id), nullable=False),
    Column("branch", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("raised_at", UtcTime, nullable=False),
    Column("resolved_at", UtcTime),
    Column("note", Text, nullable=False, default=""),
    UniqueConstraint("device_id", "branch", "seq", "reason"),
    CheckConstraint("state IN ('open', 'resolved')", name="state"),
    Index("ix_flags_open", "id", sqlite_where=text("state = 'open'"), postgresql_where=text("state = 'open'")),
    sqlite_autoincrement=True,
)

# the id is the ledger mark: it only rises
syncs = Table(
    "syncs",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("device_id", ID, ForeignKey(devices.c.id), nullable=False),
    Column("request_sha256", DIGEST, nullable=False),
    Column("at", UtcTime, nullable=False),
    # only a device's last two answers are kept
    Column("answer", LargeBinary),
    UniqueConstraint("request_sha256"),
    Index(None, "device_id", "id"),
    sqlite_autoincrement=True,
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", DIGEST, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    # until when devices may ask for what no manifest names any more
    Column("kept_until", UtcTime),
    Index(None, "kept_until"),
)

# what an operator or a rule decided; rows are only ever added
audit = Table(
    "audit",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("who", NAME, nullable=False),
    Column("action", String(64), nullable=False),
    Column("object", String(256), nullable=False),
    # JSON
    Column("detail", Text, nullable=False),
    Index(None, "object"),
    sqlite_autoincrement=True,
)
