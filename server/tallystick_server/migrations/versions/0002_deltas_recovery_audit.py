"""Deltas of a scope, recovery from a backup, hidden codes, and the audit."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATES = "state IN ('normal', 'restore_suspected')"
_STATES_NOW = "state IN ('normal', 'restore_suspected', 'recovering')"


def upgrade() -> None:
    _server()
    _scopes()
    op.add_column("vouchers", sa.Column("hidden", sa.Integer, nullable=False, server_default="0"))
    op.add_column("devices", sa.Column("durable_seq", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("devices", sa.Column("durable_hash", sa.String(64)))
    for name in ("reported_epoch", "adopted_epoch"):
        op.add_column("devices", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    _audit()


def downgrade() -> None:
    op.drop_table("audit")
    for column in ("adopted_epoch", "reported_epoch", "durable_hash", "durable_seq"):
        op.drop_column("devices", column)
    op.drop_column("vouchers", "hidden")
    op.drop_index(op.f("ix_blobs_kept_until"), "blobs")
    op.drop_column("blobs", "kept_until")
    op.drop_table("scope_changes")
    for column in ("deltas", "snapshot_vouchers", "code_salt"):
        op.drop_column("scopes", column)
    op.execute("UPDATE server SET state = 'restore_suspected' WHERE state = 'recovering'")
    with op.batch_alter_table("server") as batch:
        _check_states(batch, _STATES)
        batch.drop_column("recovery_ends")
        batch.alter_column("server_epoch", existing_type=sa.BigInteger, type_=sa.Integer, existing_nullable=False)


def _server() -> None:
    with op.batch_alter_table("server") as batch:
        _check_states(batch, _STATES_NOW)
        batch.add_column(sa.Column("recovery_ends", sa.Integer, nullable=False, server_default="0"))
        batch.alter_column("server_epoch", existing_type=sa.Integer, type_=sa.BigInteger, existing_nullable=False)


def _check_states(batch: BatchOperations, allowed: str) -> None:
    # the naming convention of the tables is not the migrations', so the whole name stands here
    batch.drop_constraint(op.f("ck_server_state"), type_="check")
    batch.create_check_constraint(op.f("ck_server_state"), sa.text(allowed))


def _scopes() -> None:
    op.add_column("scopes", sa.Column("code_salt", sa.String(32)))
    op.add_column("scopes", sa.Column("snapshot_vouchers", sa.Integer))
    op.add_column("scopes", sa.Column("deltas", sa.Text, nullable=False, server_default="[]"))
    scopes = sa.table("scopes", sa.column("name"), sa.column("code_salt"), sa.column("manifest"))
    for (name,) in op.get_bind().execute(sa.select(scopes.c.name)).all():
        # manifests of the older form have no salt, so they are made anew
        salted = sa.update(scopes).where(scopes.c.name == name).values(code_salt=secrets.token_hex(16), manifest=None)
        op.execute(salted)
    op.execute("UPDATE scopes SET snapshot_version = NULL")
    op.create_table(
        "scope_changes",
        sa.Column("scope", sa.String(128), sa.ForeignKey("scopes.name"), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("voucher_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("scope", "version", "voucher_id", name=op.f("pk_scope_changes")),
    )
    op.add_column("blobs", sa.Column("kept_until", sa.DateTime(timezone=True)))
    op.create_index(op.f("ix_blobs_kept_until"), "blobs", ["kept_until"])
    # older releases kept every snapshot; those that a manifest still names are found out before they are deleted
    op.execute("UPDATE blobs SET kept_until = created_at")


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("object", sa.String(256), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_object"), "audit", ["object"])
