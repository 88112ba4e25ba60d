"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _server_and_operators()
    _vouchers()
    _revisions_and_pools()
    _devices()
    _leases()
    _journals()
    _answers()
    _redemptions()


def downgrade() -> None:
    for table in (
        "customer_uses",
        "redemption_uses",
        "redemptions",
        "syncs",
        "flags",
        "events",
        "demand",
        "leases",
        "devices",
        "enrolment_tokens",
        "pools",
        "scope_vouchers",
        "voucher_revisions",
        "vouchers",
        "campaigns",
        "scopes",
        "blobs",
        "operator_keys",
        "server",
    ):
        op.drop_table(table)


def _server_and_operators() -> None:
    op.create_table(
        "server",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("server_id", sa.String(length=36), nullable=False),
        sa.Column("server_epoch", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("suspected_by", sa.String(length=36), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('normal', 'restore_suspected')", name=op.f("ck_server_state")),
        sa.CheckConstraint("id = 1", name=op.f("ck_server_one_row")),
        sa.PrimaryKeyConstraint("id", name="pk_server"),
    )
    op.create_table(
        "operator_keys",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_operator_keys"),
    )
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_blobs"),
    )


def _vouchers() -> None:
    op.create_table(
        "scopes",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("vouchers", sa.Integer(), nullable=False),
        sa.Column("state_digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=True),
        sa.Column("manifest_version", sa.BigInteger(), nullable=True),
        sa.Column("manifest_signed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("snapshot_version", sa.BigInteger(), nullable=True),
        sa.Column("snapshot_sha256", sa.String(length=64), nullable=True),
        sa.Column("snapshot_bytes", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("version >= 1", name=op.f("ck_scopes_version")),
        sa.PrimaryKeyConstraint("name", name="pk_scopes"),
    )
    op.create_table(
        "campaigns",
        sa.Column("id", sa.String(length=256), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_campaigns"),
    )
    op.create_table(
        "vouchers",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("code", sa.String(length=128), nullable=False),
        sa.Column("folded", sa.String(length=512), nullable=False),
        sa.Column("campaign_id", sa.String(length=256), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("revised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("policy", sa.String(length=16), nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=True),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("largest_minor", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deactivated_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_vouchers"),
        sa.UniqueConstraint("folded", name="uq_vouchers_folded"),
    )


def _revisions_and_pools() -> None:
    op.create_table(
        "voucher_revisions",
        sa.Column("voucher_id", sa.String(length=36), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("json", sa.LargeBinary(), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["voucher_id"], ["vouchers.id"], name="fk_voucher_revisions_voucher_id"),
        sa.PrimaryKeyConstraint("voucher_id", "revision", name="pk_voucher_revisions"),
    )
    op.create_table(
        "scope_vouchers",
        sa.Column("scope", sa.String(length=128), nullable=False),
        sa.Column("voucher_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(["scope"], ["scopes.name"], name="fk_scope_vouchers_scope"),
        sa.ForeignKeyConstraint(["voucher_id"], ["vouchers.id"], name="fk_scope_vouchers_voucher_id"),
        sa.PrimaryKeyConstraint("scope", "voucher_id", name="pk_scope_vouchers"),
    )
    op.create_index("ix_scope_vouchers_voucher_id", "scope_vouchers", ["voucher_id"], unique=False)
    op.create_table(
        "pools",
        sa.Column("voucher_id", sa.String(length=36), nullable=False),
        sa.Column("measure", sa.String(length=8), nullable=False),
        sa.Column("limit", sa.BigInteger(), nullable=False),
        sa.Column("free", sa.BigInteger(), nullable=False),
        sa.Column("online", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("uncovered", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("voided", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("held", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("closed_used", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("released_known", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("measure IN ('units', 'minor')", name=op.f("ck_pools_measure")),
        sa.CheckConstraint(
            'free + online + uncovered + held + closed_used + released_known - voided = "limit"',
            name=op.f("ck_pools_adds_up"),
        ),
        sa.CheckConstraint(
            "online >= 0 AND uncovered >= 0 AND voided >= 0 AND held >= 0 AND closed_used >= 0 AND released_known >= 0",
            name=op.f("ck_pools_not_negative"),
        ),
        sa.ForeignKeyConstraint(["voucher_id"], ["vouchers.id"], name="fk_pools_voucher_id"),
        sa.PrimaryKeyConstraint("voucher_id", "measure", name="pk_pools"),
    )


def _devices() -> None:
    op.create_table(
        "enrolment_tokens",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("store_id", sa.String(length=128), nullable=False),
        sa.Column("scope", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("device_id", sa.String(length=36), nullable=True),
        sa.ForeignKeyConstraint(["scope"], ["scopes.name"], name="fk_enrolment_tokens_scope"),
        sa.PrimaryKeyConstraint("sha256", name="pk_enrolment_tokens"),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kid", sa.String(length=64), nullable=False),
        sa.Column("public_x", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("store_id", sa.String(length=128), nullable=False),
        sa.Column("scope", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_sync_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("branches", sa.Integer(), nullable=False),
        sa.Column("last_event_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_number", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('pending', 'active', 'suspended', 'revoked', 'lost')", name=op.f("ck_devices_state")
        ),
        sa.ForeignKeyConstraint(["scope"], ["scopes.name"], name="fk_devices_scope"),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
        sa.UniqueConstraint("kid", name="uq_devices_kid"),
    )
    op.create_index("ix_devices_scope", "devices", ["scope"], unique=False)


def _leases() -> None:
    op.create_table(
        "leases",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("device_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("voucher_id", sa.String(length=36), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=True),
        sa.Column("minor", sa.BigInteger(), nullable=True),
        sa.Column("known_units", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("known_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("granted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("recalled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("burned_by", sa.String(length=8), nullable=True),
        sa.Column("close_seq", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("burned_by IN ('lost', 'forked')", name=op.f("ck_leases_burned_by")),
        sa.CheckConstraint("state IN ('open', 'closed', 'burned', 'released')", name=op.f("ck_leases_state")),
        sa.CheckConstraint(
            "known_minor >= 0 AND (minor IS NULL OR known_minor <= minor)", name=op.f("ck_leases_known_minor")
        ),
        sa.CheckConstraint(
            "known_units >= 0 AND (units IS NULL OR known_units <= units)", name=op.f("ck_leases_known_units")
        ),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_leases_device_id"),
        sa.ForeignKeyConstraint(["voucher_id"], ["vouchers.id"], name="fk_leases_voucher_id"),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
        sa.UniqueConstraint("device_id", "number", name="uq_leases_device_id_number"),
    )
    op.create_index(
        "ix_leases_one_open",
        "leases",
        ["device_id", "voucher_id"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index(
        "ix_leases_open_voucher",
        "leases",
        ["voucher_id"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "demand",
        sa.Column("device_id", sa.String(length=36), nullable=False),
        sa.Column("voucher_id", sa.String(length=36), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_demand_device_id"),
        sa.ForeignKeyConstraint(["voucher_id"], ["vouchers.id"], name="fk_demand_voucher_id"),
        sa.PrimaryKeyConstraint("device_id", "voucher_id", name="pk_demand"),
    )


def _journals() -> None:
    op.create_table(
        "events",
        sa.Column("device_id", sa.String(length=36), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.String(length=36), nullable=True),
        sa.Column("type", sa.String(length=16), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_events_device_id"),
        sa.PrimaryKeyConstraint("device_id", "branch", "seq", name="pk_events"),
    )
    op.create_index(
        "ix_events_quarantined",
        "events",
        ["device_id"],
        unique=False,
        sqlite_where=sa.text("outcome = 'quarantined'"),
        postgresql_where=sa.text("outcome = 'quarantined'"),
    )


def _answers() -> None:
    op.create_table(
        "flags",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device_id", sa.String(length=36), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("note", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('open', 'resolved')", name=op.f("ck_flags_state")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_flags_device_id"),
        sa.PrimaryKeyConstraint("id", name="pk_flags"),
        sa.UniqueConstraint("device_id", "branch", "seq", "reason", name="uq_flags_device_id_branch_seq_reason"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_flags_open",
        "flags",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "syncs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device_id", sa.String(length=36), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_syncs_device_id"),
        sa.PrimaryKeyConstraint("id", name="pk_syncs"),
        sa.UniqueConstraint("request_sha256", name="uq_syncs_request_sha256"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_syncs_device_id_id", "syncs", ["device_id", "id"], unique=False)


def _redemptions() -> None:
    op.create_table(
        "redemptions",
        sa.Column("issuer", sa.String(length=36), nullable=False),
        sa.Column("redemption_id", sa.String(length=36), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("device_id", sa.String(length=36), nullable=True),
        sa.Column("store_id", sa.String(length=256), nullable=True),
        sa.Column("customer_id", sa.String(length=256), nullable=True),
        sa.Column("online", sa.Integer(), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=True),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_redemptions_device_id"),
        sa.PrimaryKeyConstraint("issuer", "redemption_id", name="pk_redemptions"),
    )
    op.create_index("ix_redemptions_at", "redemptions", ["at"], unique=False)
    op.create_table(
        "redemption_uses",
        sa.Column("issuer", sa.String(length=36), nullable=False),
        sa.Column("redemption_id", sa.String(length=36), nullable=False),
        sa.Column("voucher_id", sa.String(length=36), nullable=False),
        sa.Column("revision_sha256", sa.String(length=64), nullable=True),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("minor", sa.BigInteger(), nullable=False),
        sa.Column("settled_minor", sa.BigInteger(), nullable=True),
        sa.Column("lease_id", sa.String(length=36), nullable=True),
        sa.Column("cover", sa.String(length=8), nullable=False),
        sa.Column("voided_units", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("voided_minor", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint("cover IN ('lease', 'online', 'open', 'none')", name=op.f("ck_redemption_uses_cover")),
        sa.CheckConstraint("voided_minor >= 0 AND voided_minor <= minor", name=op.f("ck_redemption_uses_voided_minor")),
        sa.CheckConstraint("voided_units >= 0 AND voided_units <= units", name=op.f("ck_redemption_uses_voided_units")),
        sa.ForeignKeyConstraint(
            ["issuer", "redemption_id"],
            ["redemptions.issuer", "redemptions.redemption_id"],
            name="fk_redemption_uses_issuer_redemption_id",
        ),
        sa.PrimaryKeyConstraint("issuer", "redemption_id", "voucher_id", name="pk_redemption_uses"),
    )
    op.create_index("ix_redemption_uses_voucher_id", "redemption_uses", ["voucher_id"], unique=False)
    op.create_table(
        "customer_uses",
        sa.Column("voucher_id", sa.String(length=36), nullable=False),
        sa.Column("customer_id", sa.String(length=256), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("units >= 0", name=op.f("ck_customer_uses_units")),
        sa.PrimaryKeyConstraint("voucher_id", "customer_id", name="pk_customer_uses"),
    )
