"""A map of recall: answers at the same length and depth under one policy, put together as one place of the map."""

from collections.abc import Iterable
from dataclasses import dataclass

from .cells import Row

FAILS = 0.5
"""Where dense gives the answer less often than this, what another policy does at that place says nothing of it."""


@dataclass(frozen=True)
class Spot:
    """What a policy answered at one length and depth."""

    policy: str
    length: int
    depth: float
    rows: tuple[Row, ...]

    @property
    def place(self) -> tuple[int, float]:
        """Length in tokens and depth in %."""
        return self.length, self.depth

    @property
    def recalled(self) -> float:
        """The share of the answers that were given."""
        return sum(row.hit for row in self.rows) / len(self.rows)

    @property
    def nll(self) -> float:
        """Mean over the answers, in nats per token."""
        return sum(row.nll for row in self.rows) / len(self.rows)


def spots(rows: Iterable[Row]) -> list[Spot]:
    """All places of a map: dense first, then policies as they come, by length and depth.  Answers that nothing in
    their text says have no place."""
    found: dict[tuple[str, int, float], list[Row]] = {}
    for row in rows:
        if row.depth is not None and row.distance is not None:
            found.setdefault((row.policy, row.length, round(row.depth, 1)), []).append(row)
    order = sorted(dict.fromkeys(policy for policy, *_ in found), key=lambda policy: policy != "dense")
    keys = sorted(found, key=lambda key: (order.index(key[0]), *key[1:]))
    return [Spot(*key, tuple(found[key])) for key in keys]


def failing(found: Iterable[Spot]) -> set[tuple[int, float]]:
    """Lengths and depths at which dense itself fails."""
    return {spot.place for spot in found if spot.policy == "dense" and spot.recalled < FAILS}
