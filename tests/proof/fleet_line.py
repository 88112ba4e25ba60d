"""The network of a simulated fleet: what it does to requests and answers between the tills and the server."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tallystick_client.actions import Answer, LineDown, Send
from tests.proof.fleet_server import FleetServer, Gone
from tests.proof.fleet_till import FleetTill, Heard

PORTAL = b"<html><head><title>Free WiFi</title></head><body>Please accept our terms.</body></html>"
HOUR_S, DAY_S = 3600.0, 86_400.0

LINE_FAULTS = {
    "no route": 0.03, "request lost": 0.02, "request late": 0.02, "request repeated": 0.06, "request damaged": 0.02,
    "answer lost": 0.04, "answer late": 0.04, "answer damaged": 0.02, "answer cut off": 0.01, "answer of another": 0.03,
    "portal": 0.02, "server busy": 0.02, "too many requests": 0.01, "too large": 0.01, "bad gateway": 0.01,
    "server killed in a request": 0.01, "server's disk fails": 0.01, "till dies before the answer": 0.03,
}  # fmt: skip
"""By kind, how often a message meets it."""


class Asked(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Line:
    """`hits` says whether a fault of this kind comes now, at this rate, and counts it."""

    def __init__(
        self,
        server: FleetServer,
        chance: random.Random,
        hits: Callable[..., bool],
        later: Callable[[float, Callable[[], None]], None],
        trace: Callable[[str], None],
    ) -> None:
        self._server, self._chance, self._hits, self._later, self._trace = server, chance, hits, later, trace
        self._sent: deque[Asked] = deque(maxlen=400)
        self._answers: deque[Answer] = deque(maxlen=60)
        self.perfect = False
        self.messages = 0

    def send(self, till: FleetTill, send: Send, heard: Heard) -> None:
        self.messages += 1
        asked = Asked(send.method, send.path, send.headers, send.body)
        self._trace(f"send {till.path.name} {send.method} {send.path.split('/')[2]} {len(send.body)}")
        if self.perfect:
            heard(self._cut(self._ask(asked), send))
            return
        self._sent.append(asked)
        timeout_s = send.within_s or send.timeout_s
        if till.is_offline:
            self._hits("no line", 1.0)
            self._later(1, lambda: heard(LineDown("no line", sent=False)))
        elif self._hit("no route"):
            self._later(1, lambda: heard(LineDown("no route", sent=False)))
        elif (instead := self._instead()) is not None:
            self._later(1, lambda: heard(instead))
        elif self._hit("request lost"):
            self._later(timeout_s, lambda: heard(LineDown("no answer in time")))
        elif self._hit("request late"):
            self._later(timeout_s, lambda: heard(LineDown("no answer in time")))
            self._later(timeout_s + self._long_s(), lambda: self._deliver(asked))
        else:
            self._later(self._chance.uniform(0.05, 3), lambda: self._carry(till, asked, send, heard))

    def repeat(self) -> bool:
        """Something that was sent long ago comes once more; whether there was anything."""
        if self._sent:
            self._deliver(self._chance.choice(self._sent))
        return bool(self._sent)

    def _hit(self, kind: str) -> bool:
        return self._hits(kind, LINE_FAULTS[kind])

    def _long_s(self) -> float:
        return self._chance.choice((5.0, HOUR_S, 8 * HOUR_S, 2 * DAY_S)) * self._chance.uniform(0.2, 1)

    def _instead(self) -> Answer | None:
        """What somebody else on the way answers."""
        html = {"content-type": "text/html"}
        if self._hit("portal"):
            return Answer(self._chance.choice((200, 302, 403, 404, 511)), html, PORTAL)
        if self._hit("bad gateway"):
            return Answer(self._chance.choice((502, 503, 504)), html | {"retry-after": "864000"}, b"")
        if self._hit("server busy"):
            return _problem(503, "DATABASE_BUSY", {"retry-after": self._chance.choice(("2", "600", "nonsense"))})
        if self._hit("too many requests"):
            return _problem(429, "TOO_MANY_REQUESTS", {"retry-after": self._chance.choice(("1", "7200"))})
        if self._hit("too large"):
            return _problem(413, "TOO_LARGE", {})
        return None

    def _carry(self, till: FleetTill, asked: Asked, send: Send, heard: Heard) -> None:
        timeout_s = send.within_s or send.timeout_s
        if self._hit("request repeated"):
            self._later(self._long_s(), lambda: self._deliver(asked))
        if self._hit("request damaged"):
            asked = self._damaged(asked)
        if self._hit("server killed in a request"):
            self._server.fuse(self._chance.randint(1, 25), kill=True)
            self._later(60, self._server.start_again)
        elif self._hit("server's disk fails"):
            self._server.fuse(self._chance.randint(1, 25), kill=False)
        answer = self._ask(asked)
        if till.keeper is not None and self._hit("till dies before the answer"):
            till.crash()
            return
        if answer is None or self._hit("answer lost"):
            self._later(timeout_s, lambda: heard(LineDown("no answer in time")))
            return
        if self._hit("answer of another") and self._answers:
            answer = self._chance.choice(self._answers)
        else:
            self._answers.append(answer)
        answer = self._worn(answer)
        wait_s = self._chance.uniform(0.05, 3)
        if self._hit("answer late"):
            wait_s = self._chance.uniform(3, timeout_s)
        self._later(wait_s, lambda: heard(self._cut(answer, send)))

    def _worn(self, answer: Answer) -> Answer:
        if answer.body and self._hit("answer damaged"):
            return Answer(answer.status, answer.headers, self._flipped(answer.body))
        if answer.body and self._hit("answer cut off"):
            return Answer(answer.status, answer.headers, answer.body[: self._chance.randrange(len(answer.body))])
        return answer

    def _flipped(self, raw: bytes) -> bytes:
        where = self._chance.randrange(len(raw))
        return raw[:where] + bytes([raw[where] ^ 1 << self._chance.randrange(8)]) + raw[where + 1 :]

    def _damaged(self, asked: Asked) -> Asked:
        if asked.body and self._chance.random() < 0.3:
            return asked._replace(body=asked.body[: self._chance.randrange(len(asked.body))])
        return asked._replace(body=self._flipped(asked.body)) if asked.body else asked

    def _deliver(self, asked: Asked) -> None:
        """To the server, while nobody waits for the answer any more."""
        if not self.perfect:
            self._ask(asked)

    def _ask(self, asked: Asked) -> Answer | None:
        try:
            answer = Answer(*self._server.ask(*asked))
        except Gone:
            self._trace("gone")
            return None
        self._trace(f"answer {answer.status} {len(answer.body)}")
        return answer

    def _cut(self, answer: Answer | None, send: Send) -> Answer | LineDown:
        if answer is None:
            return LineDown("connection refused", sent=False)
        return Answer(answer.status, answer.headers, answer.body[: send.bytes_max + 1])


def _problem(status: int, code: str, headers: dict[str, str]) -> Answer:
    problem: dict[str, Any] = {"type": "about:blank", "title": code, "status": status, "detail": "later", "code": code}
    return Answer(status, {"content-type": "application/problem+json"} | headers, json.dumps(problem).encode())
