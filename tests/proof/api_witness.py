"""Sees every request of the API row from outside of the application: what it answered, and what it left behind."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import msgspec

from tallystick_shared.wire import Problem
from tests.proof.api_signing import Signer

Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
LEAKS = re.compile(
    r"Traceback|File \"|SELECT |INSERT |UPDATE |sqlalchemy|sqlite3|asyncpg|msgspec|litestar|tallyop_|PRIVATE|/dev/shm",
    re.IGNORECASE,
)
_PROBLEM = msgspec.json.Decoder(Problem)
_CODE = re.compile(r"[A-Z][A-Z_]+")


class Answer(msgspec.Struct):
    """One request as it was answered. `route`: of the document, or empty. `left`: tables it changed."""

    method: str
    path: str
    route: str = ""
    status: int = 0
    headers: dict[str, str] = {}
    body: bytes = b""
    left: list[str] = []


def wrong_with(answer: Answer) -> str:
    """What a refusal must be and is not (RFC 9457); empty where nothing is wrong, and for what is no refusal."""
    if "x-request-id" not in answer.headers:
        return "an answer without x-request-id"
    if answer.left and 400 <= answer.status < 500:
        return f"a request refused with {answer.status} left something behind: {', '.join(answer.left)}"
    if answer.status >= 500 and not (answer.status == 503 and b'"code":"RECOVERING"' in answer.body):
        return f"a fault of the server: {answer.status}"
    if answer.status < 400 or answer.method == "HEAD":
        return ""
    if answer.headers.get("content-type") != "application/problem+json":
        return f"a {answer.status} that is no problem details: {answer.headers.get('content-type')}"
    try:
        problem = _PROBLEM.decode(answer.body)
    except msgspec.DecodeError as error:
        return f"problem details that cannot be read: {error}"
    told = problem.detail + "".join(one.expected for one in problem.errors)
    rules = {
        "another status inside": problem.status == answer.status,
        "another request id inside": problem.request_id == answer.headers["x-request-id"],
        "a type that is not its code": problem.type
        == f"urn:tallystick:problem:{problem.code.lower().replace('_', '-')}",
        "a code that is not stable": _CODE.fullmatch(problem.code) is not None,
        "no title": bool(problem.title),
        "no single sentence": bool(problem.detail) and "\n" not in problem.detail and len(problem.detail) < 1_000,
        "the inside of the program": LEAKS.search(told) is None,
    }
    return "; ".join(f"problem details with {rule}" for rule, kept in rules.items() if not kept)


class Witness:
    """An ASGI application around the real one. `answers`: by request id, those of the last thousand requests."""

    def __init__(self, app: App, database: Path) -> None:
        self.app = app
        self.requests = 0
        self.seen: Counter[tuple[str, int]] = Counter()
        """By operation (`GET /v1/status`) and status."""
        self.answers: dict[str, Answer] = {}
        self.wrong: list[tuple[Answer, str]] = []
        self.signer: Signer
        self.spoiled: set[bytes] = set()
        """Bodies whose signature is none."""
        self._database = sqlite3.connect(f"file:{database}?mode=ro", uri=True, check_same_thread=False)
        self._tables = [
            str(row[0]) for row in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        self._version, self._rows = self._data_version(), self._count()

    def close(self) -> None:
        self._database.close()

    def _data_version(self) -> int:
        """Another number once any other connection has committed a change."""
        return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def _count(self) -> dict[str, int]:
        query = " UNION ALL ".join(f"SELECT '{name}', count(*) FROM {name}" for name in self._tables)
        return {str(name): int(count) for name, count in self._database.execute(query)}

    def _left(self) -> list[str]:
        version = self._data_version()
        if version == self._version:
            return []
        rows, before = self._count(), self._rows
        self._version, self._rows = version, rows
        return [name for name in rows if rows[name] != before[name]] or ["rows that were there already"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer, sent = Answer(scope["method"], scope["path"]), b""

        async def receiving() -> Message:
            nonlocal sent
            message: Message = await receive()
            sent += message.get("body", b"")
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
            else:
                answer.body += message.get("body", b"")
            await send(message)

        await self.app(scope, receiving, sending)
        answer.route = scope.get("path_template") or ""
        answer.left = self._left()
        self._note(answer, sent)

    def _note(self, answer: Answer, sent: bytes) -> None:
        self.requests += 1
        self.seen[f"{answer.method} {answer.route}", answer.status] += 1
        wrong = wrong_with(answer)
        if not wrong and answer.status < 300 and sent in self.spoiled:
            wrong = "a signature that is none was accepted"
        if wrong:
            self.wrong.append((answer, wrong))
        self.answers[answer.headers.get("x-request-id", "")] = answer
        if len(self.answers) > 1_000:
            self.answers.pop(next(iter(self.answers)))
