"""TLS on the till: whom it talks to, over real sockets, for both kinds of till, directly and through a proxy."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tallystick_client import (
    AsyncTill,
    CallerError,
    InvalidInput,
    LineError,
    RemoteError,
    StorageError,
    SyncReport,
    Till,
    Tls,
    Untrusted,
    configure,
)
from tallystick_client.directory import CONFIG_NAME, LINE_NAME, Directory, LineConfig
from tallystick_client.entry import exit_code
from tallystick_client.tls import parse_pin
from tests.client.conftest import TEN, Shop, order
from tests.client.tls_front import Certified, ConnectProxy, TlsFront, running
from tests.contract.conftest import Shop as RealShop
from tests.contract.conftest import shop as real_shop

__all__ = ["real_shop"]  # a fixture

SPARE = "sha256:" + "5" * 64


@pytest.fixture(scope="module")
def ca() -> Certified:
    return Certified("Shop CA")


@pytest.fixture(scope="module")
def leaf(ca: Certified) -> Certified:
    return Certified("till server", ca)


@pytest.fixture
def ca_file(tmp_path: Path, ca: Certified) -> Path:
    path = tmp_path / "ca.pem"
    path.write_bytes(b"# our own\n" + ca.pem)
    return path


@pytest.fixture
def front(shop: Shop, leaf: Certified, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsFront]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    shop.server.publish(TEN)
    front = TlsFront(shop.server.url, leaf.context(tmp_path))
    with running(front):
        yield front


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    proxy = ConnectProxy()
    with running(proxy):
        yield proxy


def enrol(shop: Shop, front: TlsFront, **how: Any) -> None:
    Till.enroll(shop.work / "till", front.url, shop.server.token(), clock=shop.clock, **how).close()


def sync_once(shop: Shop) -> SyncReport:
    with Till.open(shop.work / "till", clock=shop.clock) as till:
        return till.sync()


def sync_once_async(shop: Shop) -> SyncReport:
    async def main() -> SyncReport:
        async with AsyncTill.open(shop.work / "till", clock=shop.clock) as till:
            return await till.sync()

    return asyncio.run(main())


BOTH = pytest.mark.parametrize("sync", [sync_once, sync_once_async])
Sync = Callable[[Shop], SyncReport]


# ---- certificates


@BOTH
def test_a_till_trusts_its_own_ca_when_the_file_is_gone(shop: Shop, front: TlsFront, ca_file: Path, sync: Sync) -> None:
    """The CA's bytes are kept with the till; nothing else that was in the file is."""
    enrol(shop, front, tls=Tls(ca_file))
    ca_file.unlink()
    assert sync(shop).bundle_version == 1
    assert "our own" not in (shop.work / "till" / LINE_NAME).read_text()
    assert b"POST /v1/sync" in front.received


@BOTH
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("other ca", "unable to get local issuer certificate|self-signed"),
        ("other host", "not valid for 'localhost'"),
        ("expired", "has expired; or the clock of this machine is wrong"),
    ],
)
def test_a_server_that_is_not_trusted_hears_nothing_and_the_till_goes_on_selling(
    shop: Shop, front: TlsFront, ca: Certified, ca_file: Path, sync: Sync, wrong: str, words: str
) -> None:
    """Exit code 4 and not "no line"; no byte of a request; the next attempt is kept; redeeming online falls back."""
    enrol(shop, front, tls=Tls(ca_file))
    sync_once(shop)
    bad = {
        "other ca": lambda: Certified("till server", Certified("Shop CA")),
        "other host": lambda: Certified("till server", ca, hosts=("other.example",)),
        "expired": lambda: Certified("till server", ca, days=-1),
    }[wrong]()
    front.context = bad.context(shop.work)
    front.received.clear()
    with pytest.raises(Untrusted, match=words) as caught:
        sync(shop)
    assert (caught.value.code, exit_code(caught.value)) == ("TLS_UNTRUSTED", 4)
    with Till.open(shop.work / "till", clock=shop.clock) as till:
        assert till.redeem(order(), ["TEN"]).redeemed
        fallen_back = till.redeem_online(order(2), ["TEN"])
        assert (fallen_back.redeemed, fallen_back.online) == (True, False)
        assert till.status().next_sync_at is not None
    assert front.connections > 0
    assert not front.received


def test_the_cas_of_the_machine_are_the_default(shop: Shop, front: TlsFront) -> None:
    """A private CA that nobody made known is not trusted, at the enrolment already; the token stays good."""
    token = shop.server.token()
    with pytest.raises(Untrusted, match="made known with --ca FILE") as caught:
        Till.enroll(shop.work / "till", front.url, token, clock=shop.clock)
    assert caught.value.code == "TLS_UNTRUSTED"
    assert not front.received
    with pytest.raises(StorageError):
        Till.open(shop.work / "till", clock=shop.clock)


def test_a_ca_file_takes_the_place_of_the_machines_cas(
    shop: Shop, front: TlsFront, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a CA of one's own nobody else's certificate will do, whatever this machine trusts."""
    enrol(shop, front, tls=Tls(ca_file))
    other = shop.work / "other.pem"
    other.write_bytes(Certified("Another CA").pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    configure(shop.work / "till", ca="system")
    assert sync_once(shop).bundle_version == 1
    configure(shop.work / "till", ca=other)
    with pytest.raises(Untrusted):
        sync_once(shop)


def test_no_tls_at_all_is_a_line_that_is_down(shop: Shop, front: TlsFront, ca_file: Path) -> None:
    """A port that speaks no TLS shows no certificate that could be wrong."""
    enrol(shop, front, tls=Tls(ca_file))
    configure(shop.work / "till", server_url=shop.server.url.replace("http:", "https:"))
    with pytest.raises(LineError) as caught:
        sync_once(shop)
    assert caught.value.code == "NO_CONNECTION"
    assert "_ssl.c" not in str(caught.value)


# ---- pins


@BOTH
@pytest.mark.parametrize("pinned", ["leaf", "ca"])
def test_the_servers_own_key_or_a_cas_may_be_pinned(
    shop: Shop, front: TlsFront, ca: Certified, leaf: Certified, ca_file: Path, sync: Sync, pinned: str
) -> None:
    """A pin of any certificate of the verified chain does; it outlives a certificate renewed with the same key."""
    enrol(shop, front, tls=Tls(ca_file, (SPARE, {"leaf": leaf, "ca": ca}[pinned].pin)))
    assert sync(shop).state == "active"
    front.context = Certified("till server", ca, key=leaf.key).context(shop.work)
    assert sync(shop).state == "active"


@BOTH
@pytest.mark.parametrize("through_a_proxy", [False, True])
def test_another_key_is_refused_before_a_byte_is_sent(
    shop: Shop, front: TlsFront, proxy: ConnectProxy, ca: Certified, leaf: Certified, ca_file: Path, sync: Sync,
    through_a_proxy: bool,
) -> None:  # fmt: skip
    """The CA vouches for it, the pins do not: code TLS_PIN, and the keys that were seen, to compare."""
    enrol(shop, front, tls=Tls(ca_file, (leaf.pin, SPARE)), proxy=proxy.url if through_a_proxy else None)
    other = Certified("till server", ca)
    front.context = other.context(shop.work)
    front.received.clear()
    with pytest.raises(Untrusted) as caught:
        sync(shop)
    assert (caught.value.code, exit_code(caught.value)) == ("TLS_PIN", 4)
    assert str(caught.value).index(f"{other.pin} (CN=till server)") < str(caught.value).index(ca.pin)
    assert not front.received
    assert bool(proxy.asked) == through_a_proxy
    configure(shop.work / "till", pins=[other.pin, SPARE])
    assert sync(shop).state == "active"


@BOTH
def test_a_certificate_that_is_shown_but_proves_nothing_is_no_pin(
    shop: Shop, front: TlsFront, ca: Certified, leaf: Certified, ca_file: Path, sync: Sync
) -> None:
    """Only the chain that was verified counts: appending the pinned certificate to another's does not help."""
    enrol(shop, front, tls=Tls(ca_file, (leaf.pin, SPARE)))
    other = Certified("till server", ca)
    context = other.context(shop.work)
    path = shop.work / f"{other.certificate.serial_number}.pem"
    path.write_bytes(path.read_bytes() + leaf.pem)
    context.load_cert_chain(path)
    front.context = context
    with pytest.raises(Untrusted) as caught:
        sync(shop)
    assert caught.value.code == "TLS_PIN"


def test_a_pin_is_what_openssl_makes_of_a_key(leaf: Certified, tmp_path: Path) -> None:
    """By the recipe of RFC 7469, appendix A, in every way of writing it."""
    path = tmp_path / "leaf.pem"
    path.write_bytes(leaf.pem)
    recipe = f"openssl x509 -in {path} -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -r"
    digest = subprocess.run(recipe, shell=True, capture_output=True, text=True, check=True).stdout.split()[0]
    assert parse_pin(f"sha256:{digest}") == leaf.pin
    assert parse_pin(leaf.pin) == parse_pin(leaf.pin.replace(":", "//", 1)) == leaf.pin
    slashes = "sha256:" + 42 * "/" + "8="
    assert parse_pin("sha256:" + 64 * "f") == parse_pin(slashes) == parse_pin(slashes.replace(":", "//")) == slashes


# ---- proxies


@BOTH
def test_a_till_goes_through_its_proxy(
    shop: Shop, front: TlsFront, proxy: ConnectProxy, ca_file: Path, sync: Sync
) -> None:
    """With its credentials; the server is verified through it all the same."""
    enrol(shop, front, tls=Tls(ca_file), proxy=proxy.url)
    before = len(proxy.asked)
    assert sync(shop).state == "active"
    assert len(proxy.asked) > before
    assert all("proxy-authorization: Basic" in head.replace("Proxy-A", "proxy-a") for head in proxy.asked)
    assert b"/v1/sync" not in proxy.received


@BOTH
def test_the_environments_proxy_is_the_default_and_can_be_left_out(
    shop: Shop, front: TlsFront, proxy: ConnectProxy, ca_file: Path, sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HTTPS_PROXY` counts until the till is told to go "direct"."""
    enrol(shop, front, tls=Tls(ca_file))
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    sync(shop)
    asked = len(proxy.asked)
    assert asked > 0
    configure(shop.work / "till", proxy="direct")
    sync(shop)
    assert len(proxy.asked) == asked


@BOTH
def test_a_proxy_that_does_not_serve_is_told_from_a_server_that_does_not(
    shop: Shop, front: TlsFront, proxy: ConnectProxy, ca_file: Path, sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code PROXY, the line's fault; its password is in no message."""
    enrol(shop, front, tls=Tls(ca_file), proxy=proxy.url)
    proxy.refuses = "407 Proxy Authentication Required"
    configure(shop.work / "till", proxy="http://anna:secret@127.0.0.1:9")
    for address, words in (
        (None, r"by the proxy http://127\.0\.0\.1:9: "),
        (proxy.url, "407 Proxy Authentication Required"),
    ):
        configure(shop.work / "till", proxy=address)
        shop.clock.run(hours=1)
        with pytest.raises(LineError, match=words) as caught:
            sync(shop)
        assert (caught.value.code, exit_code(caught.value)) == ("PROXY", 3)
        assert "secret" not in str(caught.value)
    configure(shop.work / "till", proxy="environment")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(LineError, match="must be one for HTTP") as caught:
        sync(shop)
    assert caught.value.code == "PROXY"


# ---- what may be asked for


@pytest.mark.parametrize(
    ("how", "path"),
    [
        ({"tls": Tls(pins=(SPARE,))}, "pins: must be 2 to 16"),
        ({"tls": Tls(pins=(SPARE, SPARE))}, "pins: must be 2 to 16"),
        ({"tls": Tls(pins=("sha256:abc", SPARE))}, "pins: must be sha256:"),
        ({"tls": Tls(pins=("sha1:" + "5" * 40, SPARE))}, "pins: must be sha256:"),
        ({"tls": Tls(ca_file="/not/there.pem")}, "ca: /not/there.pem cannot be read"),
        ({"tls": Tls(ca_file=__file__)}, "ca: .*must hold certificates"),
        ({"proxy": "socks5://user:secret@x:1"}, "proxy: must be the address of an HTTP proxy"),
        ({"proxy": "http://x:y"}, "proxy: must be"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_made(shop: Shop, how: Any, path: str) -> None:
    """One sentence that names the field, without a secret, and no directory."""
    with pytest.raises(InvalidInput, match=path) as caught:
        Till.enroll(shop.work / "till", "https://localhost:9", shop.server.token(), clock=shop.clock, **how)
    assert "secret" not in str(caught.value)
    assert not (shop.work / "till").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://anna:secret@localhost:9", "must hold no user and no password"),
        ("https://secret@localhost:9", "must hold no user and no password"),
        ("https://local host/secret", "must be the address of a server"),
        ("https://localhost/\tsecret", "must be the address of a server"),
    ],
)
def test_an_address_with_a_password_or_a_space_is_refused(shop: Shop, url: str, words: str) -> None:
    """It would be shown in errors and by status; the sentence does not show it either."""
    with pytest.raises(InvalidInput, match=f"server_url: {words}") as caught:
        Till.enroll(shop.work / "till", url, shop.server.token(), clock=shop.clock)
    assert "secret" not in str(caught.value)
    shop.server.publish(TEN)
    shop.enroll()
    with pytest.raises(InvalidInput, match=words):
        configure(shop.work / "till", server_url=url)


def test_a_token_crosses_no_network_in_clear(shop: Shop, ca_file: Path) -> None:
    """http:// to another machine is refused unless it is asked for, and never with a CA or pins, then idle."""
    token = shop.server.token()
    with pytest.raises(InvalidInput, match=r"server_url: must begin with https://.*--allow-http"):
        Till.enroll(shop.work / "till", "http://vouchers.invalid", token, clock=shop.clock)
    with pytest.raises(InvalidInput, match="server_url: must begin with https:// where"):
        Till.enroll(shop.work / "till", shop.server.url, token, clock=shop.clock, tls=Tls(ca_file))
    plain = Tls(required=False)
    with pytest.raises(LineError):
        Till.enroll(shop.work / "till", "http://vouchers.invalid", token, clock=shop.clock, tls=plain, proxy="direct")


def test_a_till_of_an_older_release_has_the_defaults(shop: Shop) -> None:
    """Without the file there is no CA, pin or proxy; a damaged one is no reason to try without."""
    shop.server.publish(TEN)
    till = shop.enroll()
    (shop.work / "till" / LINE_NAME).unlink()
    assert Directory(shop.work / "till").line() == LineConfig()
    assert till.sync().state == "active"
    (shop.work / "till" / LINE_NAME).write_text("{")
    with pytest.raises(StorageError, match=r"line\.json is damaged"):
        till.sync()
    assert till.redeem_online(order(), ["TEN"]).online is False


def test_a_till_that_runs_takes_up_what_is_configured_beside_it(
    shop: Shop, front: TlsFront, ca: Certified, leaf: Certified, ca_file: Path
) -> None:
    """A new CA, and pins, without a restart; what cannot be kept changes nothing."""
    enrol(shop, front, tls=Tls(ca_file, (leaf.pin, SPARE)))
    with Till.open(shop.work / "till", clock=shop.clock) as till:
        till.sync()
        configure(shop.work / "till", pins=[SPARE, "sha256:" + "6" * 64])
        with pytest.raises(RemoteError) as caught:
            till.sync()
        assert caught.value.code == "TLS_PIN"
        with pytest.raises(InvalidInput):
            configure(shop.work / "till", pins=["none"], proxy="nonsense")
        assert Directory(shop.work / "till").line().pins
        der = shop.work / "ca.crt"
        der.write_bytes(ca.certificate.public_bytes(Encoding.DER))
        assert configure(shop.work / "till", pins=["none"], ca=der).pins == ()
        assert till.sync().state == "active"
    assert (shop.work / "till" / LINE_NAME).stat().st_mode & 0o077 == 0
    with pytest.raises(CallerError):
        configure(shop.work / "nowhere", proxy="direct")
    assert "pins" not in (shop.work / "till" / CONFIG_NAME).read_text()


# ---- the commands, at the real server


def test_the_commands_know_ca_pins_and_proxy(
    real_shop: RealShop, leaf: Certified, ca_file: Path, proxy: ConnectProxy, tmp_path: Path
) -> None:
    """Enrol, sync and configure, at the real server behind TLS and a proxy; exit code 4 for another key."""
    shop = real_shop
    front = TlsFront(shop.server.url, leaf.context(tmp_path))
    with running(front):
        options = ["--ca", str(ca_file), "--pin", leaf.pin, "--pin", SPARE, "--proxy", proxy.url]
        enrolled = shop.till("one", "enroll", front.url, shop.token("309"), *options)
        assert enrolled.returncode == 0, enrolled.stderr
        assert shop.till("one", "sync").returncode == 0
        assert "anna" not in (shown := shop.till("one", "configure").stdout)
        assert leaf.pin in shown
        assert shop.till("one", "configure", "--pin", SPARE, "--pin", "sha256:" + "7" * 64).returncode == 0
        refused = shop.till("one", "sync")
        assert refused.returncode == 4
        assert refused.stderr.endswith("(TLS_PIN)\n")
        assert leaf.pin in refused.stderr
        mended = shop.till("one", "configure", "--pin", "none", "--proxy", "direct", "--ca", str(ca_file))
        assert mended.returncode == 0, mended.stderr
        assert shop.till("one", "sync").returncode == 0
        asked = shop.till("two", "enroll", front.url, shop.token("309"), "--pin", SPARE)
        assert (asked.returncode, asked.stderr.startswith("tallystick: pins: must be 2 to 16")) == (2, True)
