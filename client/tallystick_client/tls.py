"""Whom a till talks to: trusted CAs, pinned keys, and a proxy. What is *believed* is signed (protocol.md, section 3);
TLS keeps orders and customers private, and the enrolment token, which is a secret as good as a till.

A **pin** is the SHA-256 of a public key as a certificate holds it (`SubjectPublicKeyInfo`; RFC 7469, section 2.4), of
any certificate in the chain that was verified: the server's own or a CA's. It is checked when the handshake is done,
before a byte of a request is sent. At least two are demanded, as there (section 4.3): one is of a spare key, kept
elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from tallystick_client.directory import Directory, LineConfig
from tallystick_client.errors import InvalidInput, StorageError, Untrusted

if TYPE_CHECKING:
    import ssl

SYSTEM, NO_PINS, ENVIRONMENT, DIRECT = "system", "none", "environment", "direct"
"""Words in place of a CA's file, a pin and a proxy's address."""
CA_BYTES_MAX = 1024 * 1024
PINS_MIN, PINS_MAX = 2, 16
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_CLOCK_CODES = (9, 10)  # of OpenSSL: not yet valid, expired
_ISSUER_CODES = (18, 19, 20, 21)  # and: nobody that is trusted stands behind it


class Tls(msgspec.Struct, frozen=True):
    """What a till demands of its server's certificate. By default the CAs of this machine, and no pin.

    `ca_file`: trust these CAs (PEM, or one as DER) and no others; their bytes are kept, the file may go. `pins`: none,
    or two and more, as `sha256:` and base64 or hex. `required=False` allows `http://` to another machine, where
    something else protects the line, as a VPN does.
    """

    ca_file: str | Path | None = None
    pins: tuple[str, ...] = ()
    required: bool = True


# ---- what is asked for --------------------------------------------------------------------------------------------


def checked_url(url: str) -> str:
    """`http://` or `https://` and a host; raises `InvalidInput`, which never shows a password."""
    if not _is_address(url):
        raise InvalidInput("server_url", "must be the address of a server, as in https://vouchers.example.org")
    if "@" in urlsplit(url).netloc:
        raise InvalidInput("server_url", "must hold no user and no password: a till signs what it asks for")
    return url.rstrip("/")


def demand_tls(url: str, tls: Tls, line: LineConfig) -> None:
    """Raises `InvalidInput` where a secret would cross a network in clear, or what was asked for could not be kept."""
    if not url.startswith("http://"):
        return
    if line.ca_pem is not None or line.pins:
        raise InvalidInput("server_url", "must begin with https:// where a CA or pins are given")
    if tls.required and not _is_loopback(urlsplit(url).hostname or ""):
        message = (
            "must begin with https://, or others on the way read orders and enrolment tokens; --allow-http allows it"
        )
        raise InvalidInput("server_url", message)


def line_config(
    before: LineConfig, *, ca: str | Path | None = None, pins: Sequence[str] | None = None, proxy: str | None = None
) -> LineConfig:
    """`before`, with what is given in its place. Raises `InvalidInput`, which never shows a proxy's password.

    The words of `SYSTEM`, `NO_PINS`, `ENVIRONMENT` and `DIRECT` stand for what they say.
    """
    changed: dict[str, Any] = {}
    if ca is not None:
        changed["ca_pem"] = None if str(ca) == SYSTEM else read_ca(Path(ca))
    if pins is not None:
        changed["pins"] = _checked_pins(pins)
    if proxy is not None:
        changed["proxy"] = None if proxy == ENVIRONMENT else _checked_proxy(proxy)
    return msgspec.structs.replace(before, **changed)


def configure(
    directory: str | Path,
    *,
    server_url: str | None = None,
    ca: str | Path | None = None,
    pins: Sequence[str] | None = None,
    proxy: str | None = None,
    required: bool = True,
) -> LineConfig:
    """Changes how an enrolled till reaches its server; None leaves a thing as it is. See `line_config`.

    A program that runs takes it up with its next request, but for `server_url`, with its next start. Raises
    `InvalidInput`, `StorageError`; then nothing was changed.
    """
    kept = Directory(Path(directory))
    config, before = kept.config(), kept.line()
    line = line_config(before, ca=ca, pins=pins, proxy=proxy)
    url = config.server_url if server_url is None else checked_url(server_url)
    demand_tls(url, Tls(required=required and server_url is not None), line)
    if line != before:
        kept.keep_line(line)
    if url != config.server_url:
        kept.keep_config(msgspec.structs.replace(config, server_url=url))
    return line


def read_ca(path: Path) -> str:
    """The certificates in a file, and nothing else that may be in it. Raises `InvalidInput`."""
    import ssl  # a hundredth of a second, which no offline command should pay

    try:
        with path.open("rb") as file:
            raw = file.read(CA_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidInput("ca", f"{path} cannot be read: {error.strerror}") from None
    found = [one.decode("ascii") for one in _CERTIFICATE.findall(raw)]
    text = "\n".join(found or [ssl.DER_cert_to_PEM_cert(raw).strip()]) + "\n"
    try:
        if len(raw) > CA_BYTES_MAX:
            raise ValueError
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        message = f"{path} must hold certificates of CAs, as PEM or DER, in at most {CA_BYTES_MAX} bytes"
        raise InvalidInput("ca", message) from None
    return text


def parse_pin(text: str) -> str:
    """`sha256:` and base64, of `sha256:` or `sha256//` and 64 hexadecimal digits or base64. Raises `InvalidInput`."""
    digest = b""
    found = re.fullmatch("sha256(?::|//)([A-Za-z0-9+/=]+)", text)
    if found is not None:
        try:
            digest = bytes.fromhex(found[1]) if len(found[1]) == 64 else base64.b64decode(found[1], validate=True)
        except ValueError:
            digest = b""
    if len(digest) != 32:
        expected = (
            "must be sha256: and 44 characters of base64 or 64 hexadecimal digits, of a key and not a certificate"
        )
        raise InvalidInput("pins", expected, text[:80])
    return _shown(digest)


def _checked_pins(texts: Sequence[str]) -> tuple[str, ...]:
    if not texts or list(texts) == [NO_PINS]:
        return ()
    pins = tuple(dict.fromkeys(parse_pin(text) for text in texts))
    if not PINS_MIN <= len(pins) <= PINS_MAX:
        message = f"must be {PINS_MIN} to {PINS_MAX} different ones, one of them of a spare key that is kept elsewhere"
        raise InvalidInput("pins", f"{message}: with one alone, the loss of its key would cut off every till")
    return pins


def _checked_proxy(url: str) -> str:
    if url != DIRECT and not _is_address(url):
        raise InvalidInput("proxy", "must be the address of an HTTP proxy, as in http://proxy.example.org:3128")
    return url


def without_password(proxy: str) -> str:
    """The address of a proxy, for messages."""
    return re.sub(r"//[^/]*@", "//", proxy)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        spaced = any(one.isspace() for one in url)  # `urlsplit` drops some, and keeps others in the host
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0 and not spaced
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---- the handshake ------------------------------------------------------------------------------------------------


def context_of(line: LineConfig, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """What verifies the server; `default` makes the one that trusts this machine's CAs. Raises `StorageError`."""
    import ssl

    try:
        context = default() if line.ca_pem is None else ssl.create_default_context(cadata=line.ca_pem)
    except ssl.SSLError as error:
        raise StorageError(f"the CAs that this till keeps are damaged: {error.reason}", code="NOT_A_TILL") from error
    if line.pins:
        if type(context) is not ssl.SSLContext:
            context = ssl.create_default_context()  # one that leaves it to the system would not ask the classes below
        _pin(context, line.pins)
    return context


def _pin(context: ssl.SSLContext, pins: Sequence[str]) -> None:
    """By the documented way to add to what a connection does; sockets are what `Till` uses, objects `AsyncTill`."""
    import ssl

    class PinnedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            _demand_pin(self, pins)

    class PinnedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            _demand_pin(self, pins)

    context.sslsocket_class, context.sslobject_class = PinnedSocket, PinnedObject


def _demand_pin(connection: ssl.SSLSocket | ssl.SSLObject, pins: Sequence[str]) -> None:
    """Raises `SSLCertVerificationError` with a second argument `_NoPin`."""
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    seen = []
    for raw in _verified_chain(connection):
        certificate = x509.load_der_x509_certificate(raw)
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        pin = _shown(hashlib.sha256(key).digest())
        if pin in pins:
            return
        seen.append(f"{pin} ({certificate.subject.rfc4514_string()[:64]})")
    raise ssl.SSLCertVerificationError(1, _NoPin(", ".join(seen)))


class _NoPin(str):
    """The keys that were seen, the server's own first."""


def _verified_chain(connection: Any) -> list[bytes]:
    """Each certificate as DER. Public since Python 3.13; before that it is where `truststore` finds it too."""
    import ssl

    public = getattr(connection, "get_verified_chain", None)
    if public is not None:
        return list(public())
    return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in connection._sslobj.get_verified_chain() or ()]


def distrust(error: BaseException, where: str) -> Untrusted | None:
    """What became of a handshake, where it was the certificate that ended it: `TLS_PIN` or `TLS_UNTRUSTED`."""
    import ssl

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    seen = cause.args[1] if len(cause.args) > 1 else ""
    if isinstance(seen, _NoPin):
        return Untrusted(
            f"{where} shows no key that is pinned here; its keys, its own first, are {seen}", code="TLS_PIN"
        )
    hint = ""
    if cause.verify_code in _CLOCK_CODES:
        hint = "; or the clock of this machine is wrong"
    elif cause.verify_code in _ISSUER_CODES:
        hint = "; a CA of your own is made known with --ca FILE, by enroll or configure"
    said = cause.verify_message.rstrip(".")
    return Untrusted(f"the certificate of {where} is not trusted: {said}{hint}", code="TLS_UNTRUSTED")


def _shown(digest: bytes) -> str:
    return f"sha256:{base64.b64encode(digest).decode('ascii')}"
