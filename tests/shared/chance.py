"""One source of choices for generators: a seeded one for speed, and hypothesis' own, which shrinks by itself.

Generators put the simplest option first: it is what a failure is shrunk to.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Chance(Protocol):
    def integer(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        ...

    def choice(self, options: Sequence[T]) -> T: ...

    def maybe(self, percent: int) -> bool: ...

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """So many different ones, in any order."""
        ...


class Seeded:
    """The same seed makes the same choices on any machine."""

    def __init__(self, seed: int) -> None:
        self._next = random.Random(seed).random

    def integer(self, low: int, high: int) -> int:
        return low + int(self._next() * (high - low + 1))

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self._next() * len(options))]

    def maybe(self, percent: int) -> bool:
        return self._next() * 100 < percent

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        return _sample(self, options, count)


@lru_cache(1024)
def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


class Drawn:
    """Choices that hypothesis draws: `draw` of `st.composite` or of `st.data`."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        number: int = self._draw(_integers(low, high))
        return number

    def choice(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def maybe(self, percent: int) -> bool:
        return self.integer(0, 99) >= 100 - percent

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        return _sample(self, options, count)


def _sample(chance: Chance, options: Sequence[T], count: int) -> list[T]:
    rest = list(options)
    return [rest.pop(chance.integer(0, len(rest) - 1)) for _ in range(count)]
