"""TLS in front of a server, as a reverse proxy has it, and a CONNECT proxy: real sockets, certificates made here."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

DAY = timedelta(days=1)


class Certified:
    """A key and its certificate; of a CA, where it has no issuer."""

    def __init__(
        self,
        name: str,
        issuer: Certified | None = None,
        *,
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
        days: int = 30,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        above, now, public = issuer or self, datetime.now(UTC), self.key.public_key()
        names = [x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=issuer is None, path_length=None), True),
            (x509.SubjectKeyIdentifier.from_public_key(public), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(above.key.public_key()), False),
            (
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=issuer is None,
                    crl_sign=issuer is None,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                True,
            ),
        ]
        if issuer is not None:
            extensions.append((x509.SubjectAlternativeName(names), False))
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(above.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 60 * DAY)
            .not_valid_after(now + days * DAY)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        self.certificate = builder.sign(above.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def pin(self) -> str:
        raw = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return "sha256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode()

    def context(self, work: Path) -> ssl.SSLContext:
        """For a server that shows this certificate."""
        path = work / f"{self.certificate.serial_number}.pem"
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(key + self.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


class Relay:
    """Takes connections on loopback and passes their bytes to and from where `reach` says. `received` is what came."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listening]
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        port: int = self._listening.getsockname()[1]
        return port

    def reach(self, client: socket.socket) -> tuple[socket.socket, socket.socket]:
        """The connection to read from, and the one to write to. Raises `OSError` to end it."""
        raise NotImplementedError

    def close(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(client)
            self._begin(self._serve, client)

    def _begin(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            client, server = self.reach(client)
        except OSError:
            client.close()
            return
        self._open += [client, server]
        self._begin(self._pass_on, server, client, None)
        self._pass_on(client, server, self.received)

    def _pass_on(self, source: socket.socket, target: socket.socket, seen: bytearray | None) -> None:
        with contextlib.suppress(OSError, ValueError):
            while part := source.recv(65536):
                if seen is not None:
                    seen += part
                target.sendall(part)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class TlsFront(Relay):
    """`received` is what came through TLS: empty as long as no byte of a request was sent."""

    def __init__(self, behind_url: str, context: ssl.SSLContext) -> None:
        self.context = context
        parts = urlsplit(behind_url)
        self._behind = (parts.hostname or "", parts.port or 0)
        super().__init__()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def reach(self, client: socket.socket) -> tuple[socket.socket, socket.socket]:
        return self.context.wrap_socket(client, server_side=True), socket.create_connection(self._behind)


class ConnectProxy(Relay):
    """`asked`: the first lines and credentials of its requests. `refuses`: what it answers in place of a tunnel."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses = ""
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://anna:secret@127.0.0.1:{self.port}"

    def reach(self, client: socket.socket) -> tuple[socket.socket, socket.socket]:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65536) or b"\r\n\r\n"
        self.asked.append(head.decode())
        method, target, _ = head.decode().split("\r\n")[0].split()
        assert method == "CONNECT"
        if self.refuses:
            client.sendall(f"HTTP/1.1 {self.refuses}\r\ncontent-length: 0\r\n\r\n".encode())
            raise OSError(self.refuses)
        host, _, port = target.partition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return client, server


@contextmanager
def running(relay: Relay) -> Iterator[None]:
    try:
        yield
    finally:
        relay.close()
