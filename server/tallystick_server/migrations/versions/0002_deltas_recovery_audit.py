"""Deltas of a scope, recovery from a backup, hidden codes, and the audit."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATES = "state IN ('normal', 'restore_suspected')"
_STATES_NOW = "state IN ('normal', 'restore_suspected', 'recovering')"


def upgrade() -> None:
    _check_states(_STATES_NOW)
    _scopes()
    op.add_column("vouchers", sa.Column("hidden", sa.Integer, nullable=False, server_default="0"))
    op.add_column("devices", sa.Column("durable_seq", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("devices", sa.Column("durable_hash", sa.String(64)))
    op.add_column("devices", sa.Column("reported_epoch", sa.Integer, nullable=False, server_default="0"))
    _audit()


def downgrade() -> None:
    op.drop_table("audit")
    for column in ("reported_epoch", "durable_hash", "durable_seq"):
        op.drop_column("devices", column)
    op.drop_column("vouchers", "hidden")
    op.drop_index(op.f("ix_blobs_kept_until"), "blobs")
    op.drop_column("blobs", "kept_until")
    op.drop_table("scope_changes")
    for column in ("deltas", "snapshot_vouchers", "code_salt"):
        op.drop_column("scopes", column)
    op.execute("UPDATE server SET state = 'restore_suspected' WHERE state = 'recovering'")
    _check_states(_STATES)


def _check_states(allowed: str) -> None:
    # the naming convention of the tables is not the migrations', so the whole name stands here
    with op.batch_alter_table("server") as batch:
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
