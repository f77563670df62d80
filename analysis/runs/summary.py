"""A run in a few numbers for each lane, as tables show it.  Knows nothing of screens or paper."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..palette import briefs
from ..policies import Policy, parse
from .run import Run, Track

NAMED = 3
"""Switches of a lane that its name tells one by one, at most."""


@dataclass(frozen=True)
class LaneSummary:
    """What one lane has read, how well it predicted it, and what that took."""

    policy: Policy
    """The one that the lane began with."""
    label: str
    """What the lane is called: the policies that it has read with, in their order."""
    tokens: int
    """Tokens read, the first one among them; 0 where nothing is predicted yet.  The numbers below are then NaN or 0."""
    perplexity: float
    excess: float
    """Mean NLL above that of the reference lane, nats/token, over the tokens from the beginning that both have read;
    NaN where there are none."""
    error: float
    """Its standard error over blocks; NaN where there are fewer than two."""
    is_reference: bool
    cache_tokens: int
    """Cached now."""
    cache_slots: int
    """Slots that an engine hands out for them; 0 where it does not hand them out in blocks."""
    cache_bytes: int
    rate: float
    """Tokens predicted in a second of the lane's own compute time; NaN for a run that was read from a folder."""
    kl: float
    """Mean KL divergence from the first lane, nats/token, over the tokens of which it was measured; NaN where it was
    not."""
    kl_error: float
    """Its standard error over blocks; NaN where there are fewer than two."""
    agree: float
    """Of these tokens, the share of those where both lanes have the same most probable token; NaN where there are
    none."""

    @property
    def excess_text(self) -> str:
        """The excess NLL and its error as a table shows them."""
        if self.is_reference:
            return "reference"
        if math.isnan(self.excess):
            return "–"
        return f"{self.excess:+z.4f}" + ("" if math.isnan(self.error) else f" ± {self.error:.4f}")

    @property
    def cached_text(self) -> str:
        """How many tokens are cached as a table shows it; in blocks with their slots, and the share that is empty."""
        tokens, slots = f"{self.cache_tokens:,}", self.cache_slots
        return f"{tokens} in {slots:,} slots, {100 * (1 - self.cache_tokens / slots):.0f} % empty" if slots else tokens

    @property
    def kl_text(self) -> str:
        """The KL divergence and its error as a table shows them."""
        if math.isnan(self.kl):
            return "–"
        return f"{self.kl:.4f}" + ("" if math.isnan(self.kl_error) else f" ± {self.kl_error:.4f}")

    @property
    def agree_text(self) -> str:
        """The share of tokens with the same most probable one, as a table shows it."""
        return "–" if math.isnan(self.agree) else f"{100 * self.agree:.2f} %"


def switched_to(track: Track) -> str:
    """An arrow and a name for each policy that a lane was switched to while it read; of many, the last one."""
    names = [parse(policy).label for _, policy in track.policies[1:]]
    if len(names) > NAMED:
        names = ["…", names[-1]]
    return "".join(f" → {name}" for name in names)


def label_of(run: Run, lane: int) -> str:
    """What a lane is called where numbers are over all that it has read: the policies that it has read with."""
    return _begun(run)[lane].label + switched_to(run.tracks[lane])


def briefs_of(run: Run) -> list[str]:
    """The same of all lanes, the first policy of each in few letters."""
    return [brief + switched_to(track) for brief, track in zip(briefs(_begun(run)), run.tracks, strict=True)]


def _begun(run: Run) -> list[Policy]:
    """What each lane began to read with: one that was switched before it had read, with what it was switched to."""
    return [
        parse(track.policies[0][1] if track.policies else policy)
        for policy, track in zip(run.spec.policies, run.tracks, strict=True)
    ]


def summarize(run: Run) -> list[LaneSummary]:
    """Of each lane of a run; the first is the one that the others are compared with."""
    summaries = []
    against = run.tracks[0].nll.view()
    for lane, (policy, track) in enumerate(zip(run.spec.policies, run.tracks, strict=True)):
        nll = track.nll.view()
        count = len(nll)
        # Lanes of a conversation go on with what each of them has said.
        shared = shared_tokens(run, 0, run, lane)
        mean, error = metrics.excess(nll[:shared], against[:shared])
        kl, kl_error = metrics.mean(track.kl.view())
        summaries.append(
            LaneSummary(
                policy=parse(policy),
                label=label_of(run, lane),
                tokens=count + 1 if count else 0,
                perplexity=metrics.perplexity(nll),
                excess=mean,
                error=error,
                is_reference=lane == 0,
                cache_tokens=int(track.cache_tokens.view()[count - 1]) if count else 0,
                cache_slots=int(track.allocated(count - 1)[0]) if count else 0,
                cache_bytes=int(track.cache_bytes.view()[count - 1]) if count else 0,
                rate=count / max(float(track.compute.view()[count - 1]), 1e-9) if len(track.compute) else math.nan,
                kl=kl,
                kl_error=kl_error,
                agree=metrics.mean(track.agree.view())[0],
            )
        )
    return summaries


def shared_tokens(run: Run, lane: int, other: Run, other_lane: int) -> int:
    """Predicted tokens from the beginning that two lanes both have read, and that are the same."""
    if run.first_token != other.first_token:
        # Whatever comes then was read after something else.
        return 0
    first, second = (r.tracks[i] for r, i in ((run, lane), (other, other_lane)))
    count = min(len(first.nll), len(second.nll))
    differ = np.flatnonzero(first.token_ids.view()[:count] != second.token_ids.view()[:count])
    return int(differ[0]) if len(differ) else count


def mean_sink_mass(run: Run, lane: int) -> NDArray[np.floating]:
    """Mean sink mass of a lane over its tokens, [layers, heads].

    Raises ValueError where there is no such lane, or it has read nothing.
    """
    if not 0 <= lane < len(run.tracks):
        raise ValueError(f"the run has lanes 0 to {len(run.tracks) - 1}, and not {lane}: choose one of these")
    track = run.tracks[lane]
    if not track.spans:
        who = f"lane {lane}" if any(other.spans for other in run.tracks) else "the run"
        raise ValueError(f"{who} has read nothing yet, so there is nothing to draw")
    return metrics.mean_of_chunks(track.sink_mass, [stop - start for start, stop in track.spans])
