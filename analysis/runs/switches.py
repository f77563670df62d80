"""Switches that a run was asked for: from a token on, a lane reads under another policy.

They stand in run.json from its beginning, and each that has happened is an event: so a run that goes on knows what is
to come.  This module knows nothing of who reads.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..policies import Policy, parse

if TYPE_CHECKING:
    # Stories are listed before torch is loaded.
    from ..engine.lane import Lane


@dataclass(frozen=True)
class Switch:
    """A lane reads on under another policy from a text position on; `pin`: with its sinks brought back."""

    position: int
    lane: int
    policy: str
    pin: bool = False

    def __post_init__(self) -> None:
        parse(self.policy)


class Plan:
    """Switches that are still to come, which one thread takes out as they happen."""

    def __init__(self, switches: Iterable[Switch] = ()) -> None:
        self.left = sorted(switches, key=lambda s: s.position)

    def due(self, lane: "Lane") -> list[Switch]:
        """Those of a lane whose position it has reached, taken out."""
        due = [s for s in self.left if s.lane == lane.index and s.position <= lane.position]
        self.left = [s for s in self.left if s not in due]
        return due

    def limit(self, lane: "Lane", upto: int | None = None) -> int | None:
        """The position that a lane may read up to, where it may read up to another one already."""
        positions = [s.position for s in self.left if s.lane == lane.index]
        return min([*positions, *([] if upto is None else [upto])], default=None)

    def forget(self, lane: int) -> None:
        """Take out all of a lane: somebody has switched it, and goes on with it."""
        self.left = [s for s in self.left if s.lane != lane]


def to_come(planned: Iterable[Switch], events: Sequence[Mapping[str, Any]], positions: Sequence[int]) -> list[Switch]:
    """Those of the planned switches that have not happened to lanes at these positions, [lanes]: none of lanes that
    somebody has switched, nor those that could not be carried out."""
    switched = [event for event in events if event["what"] == "switch"]
    by_hand = {event.get("lane") for event in switched if not event.get("planned")}
    done = {(event.get("lane"), event.get("position")) for event in switched}
    left = [s for s in planned if s.lane not in by_hand and (s.lane, s.position) not in done]
    return [s for s in left if s.position >= positions[s.lane]]


def carry_out(lane: "Lane", policy: Policy, *, pin: bool) -> dict[str, Any]:
    """Let a lane read on under a policy; what an event of its run says of that.

    Raises ValueError where the model cannot be read under the policy; the lane is then as it was.
    """
    missing = lane.missing_sinks(policy)
    lane.switch(policy, pin=pin)
    how = ("sinks pinned again" if pin else "without sinks") if missing else ""
    return {"lane": lane.index, "position": lane.position, "policy": str(policy), "how": how}
