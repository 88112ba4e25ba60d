"""Everything an operator can set, read once from the environment and frozen.

Every field is `TALLYSTICK_` and its name in capitals (`TALLYSTICK_DATABASE_URL`); `.._FILE` names a file that holds the
value instead, as container platforms hand out secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tallystick_shared.errors import CallerError, InvalidInput
from tallystick_shared.money import CURRENCY_EXPONENTS

Seconds = Annotated[int, Meta(ge=1, le=10 * 366 * 86_400)]
Positive = Annotated[int, Meta(ge=1, le=10**15)]
DAY_S = 86_400
PREFIX = "TALLYSTICK_"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The server's settings.

    `data`: directory of the keys and, by default, of the database. `database_url`: empty for SQLite in `data`, or
    `postgresql://USER:PASSWORD@HOST/NAME`; once the settings are made it names the driver too. `default_currency` is
    filled in where a published voucher has none. `backup`: `replicated` says that every committed transaction is on a
    second machine, so that devices may purge.
    """

    data: Path = Path("tallystick-data")
    database_url: str = ""
    default_currency: str | None = None
    backup: Literal["none", "replicated"] = "none"
    lease_ttl_s: Seconds = 14 * DAY_S
    lease_horizon_s: Seconds = 14 * DAY_S
    """How long before a voucher becomes valid its units are handed out: tills have them on the first morning."""
    lease_units_max: Positive = 10_000
    leases_per_device_max: Positive = 5_000
    manifest_ttl_s: Seconds = 7 * DAY_S
    poll_after_s: Seconds = 900
    offline_s: Annotated[int, Meta(ge=0, le=366 * DAY_S)] = DAY_S
    waiting_redemptions_max: Positive | None = 10_000
    waiting_minor_max: Positive | None = None
    clock_ahead_s: Seconds = 300
    """An event this far ahead of the server's clock has an uncertain time."""
    clock_back_s: Seconds = 300
    """So has one this far before the event it follows."""
    token_ttl_s: Seconds = DAY_S
    root_ttl_s: Seconds = 3 * 366 * DAY_S
    body_retention_s: Seconds | None = None
    """How long orders are kept at their events: `tallystick-server erase-bodies` erases older ones. Unset: for ever."""
    body_bytes_max: Annotated[int, Meta(ge=64 * 1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.default_currency is not None and self.default_currency not in CURRENCY_EXPONENTS:
            raise InvalidInput("default_currency", "must be a currency of ISO 4217", repr(self.default_currency))
        # an operator never has to know which driver it is
        scheme, separator, rest = self.database_url.partition("://")
        if not self.database_url:
            url = f"sqlite+aiosqlite:///{self.data / 'tallystick.sqlite3'}"
        elif separator and scheme in ("postgresql", "postgres", "postgresql+asyncpg"):
            url = f"postgresql+asyncpg://{rest}"
        elif separator and scheme in ("sqlite", "sqlite+aiosqlite"):
            url = f"sqlite+aiosqlite://{rest}"
        else:
            raise InvalidInput("database_url", "must be empty or start with postgresql:// or sqlite:///")
        msgspec.structs.force_setattr(self, "database_url", url)

    @property
    def keys(self) -> Path:
        return self.data / "keys"

    @property
    def sqlite_file(self) -> Path | None:
        _, is_sqlite, path = self.database_url.partition("sqlite+aiosqlite:///")
        return Path(path) if is_sqlite else None


def from_environment(environment: Mapping[str, str], *, data: Path | None = None) -> Settings:
    """The settings named in `environment`; `data` (the command line's `--data`) goes before it.

    Raises `InvalidInput` with the variable's name, `CallerError` where a `.._FILE` cannot be read.
    """
    found: dict[str, str] = {}
    for field in Settings.__struct_fields__:
        name = PREFIX + field.upper()
        if (file := environment.get(name + "_FILE")) is not None:
            try:
                found[field] = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise CallerError(f"{name}_FILE: {file} cannot be read", code="NO_FILE") from error
        elif environment.get(name):
            found[field] = environment[name]
    if data is not None:
        found["data"] = str(data)
    try:
        return msgspec.convert(found, Settings, strict=False, dec_hook=_path)
    except InvalidInput as error:
        raise InvalidInput(PREFIX + error.path.upper(), error.expected, error.was) from None
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise InvalidInput(PREFIX + where.rstrip("`").upper(), what[:1].lower() + what[1:]) from error


def _path(wanted: type, value: object) -> object:
    if wanted is Path:
        return Path(str(value))
    raise NotImplementedError(wanted)
