"""What there is to see of one lane of a conversation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.chat.conversation import Conversation, Switch
from analysis.policies import Policy
from analysis.runs.screen import CUT, FIRST_TOKENS, TAIL

from .base import HISTORY
from .token_costs import TokenCosts


@dataclass(frozen=True)
class ChatLaneSnapshot:
    """What there is to see of a lane: its newest tokens from `start` on, its first ones, and which of them are cached.

    Cached are the first `sinks` tokens and all from `first` on; `shares`: the share of heads that cache each token of
    the conversation, where not all cache the same ones; `protected`: how many first tokens are never evicted;
    `cached_tokens`, `cached_bytes`: what is cached just now, also where nothing was read since a switch;
    `cut`: where answers were cut, and why; `switches`: where the lane was switched, and to what.
    `busy`: whether a prompt is read or an answer given.
    """

    lane: int
    policy: Policy
    start: int
    pieces: list[str]
    roles: NDArray[np.int8]
    first_tokens: list[str]
    sinks: int
    first: int
    shares: NDArray[np.float32] | None
    read: int
    state: str
    cut: list[tuple[int, str]]
    protected: int
    cached_tokens: int
    cached_bytes: int
    switches: tuple[Switch, ...]
    busy: bool
    costs: TokenCosts


def snapshot_of(lane: Conversation, costs: TokenCosts) -> ChatLaneSnapshot:
    """What there is to see of a lane just now."""
    pieces = lane.pieces()
    start = max(0, len(pieces) - TAIL)
    sinks, first = lane.kept
    waiting = f"reading, {lane.unread:,} tokens to go" if lane.unread > 64 else "answering"
    return ChatLaneSnapshot(
        lane=lane.lane.index,
        policy=lane.policy,
        start=start,
        pieces=pieces[start:],
        roles=lane.roles.view()[start:],
        first_tokens=pieces[:FIRST_TOKENS],
        sinks=sinks,
        first=first,
        shares=lane.lane.shares,
        read=lane.lane.position,
        state=waiting if lane.busy else "",
        cut=[(t.stop, t.why) for t in lane.turns[-64:] if t.why in CUT and t.stop],
        protected=lane.lane.protected,
        cached_tokens=lane.lane.cache_tokens,
        cached_bytes=lane.lane.cache_bytes,
        switches=tuple(lane.switches),
        busy=lane.busy,
        costs=costs.snapshot(),
    )


def without_row(lane: Conversation, token: int) -> str:
    """Why it is not known what a token of a lane attended to, as a sentence."""
    if token >= len(lane.tokens):
        return f"Nothing has been said at token {token:,} yet."
    if token >= lane.position - 1:
        return "That token has only just been said: it looks back when the conversation goes on."
    return f"What that token attended to is no longer held: only the last {HISTORY:,} tokens' queries are."
