"""One policy reading a text: its cache, its place, and the three ways in which it reads on.

By place (a band, in some heads or all; hundreds of tokens in one pass), by rank (as many as come before the next
eviction), or afresh (a window encoded anew); and one token at a time, which lets the text go on with a token that is
chosen.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..families.positions import Angles
from ..policies import Banded, Dense, Duo, Policy, Ranked, Recomputed
from .attention.band import Band
from .attention.banded import BandedPass
from .attention.token import Rotations, TokenPass
from .context import QKChunk, RankedChunk, SharedContext, Step
from .interventions import Interventions
from .kv.banded import BandedLayer, Span, as_bands
from .kv.ranked import RankedLayer, RankedPass, Scattered, as_ranked, with_front
from .kv.split import SplitLayer, SplitPass
from .view import View, joined

ROWS = 64
"""Rows of logits that become probabilities at a time: a whole chunk's would not stay in the processor's cache."""
TOGETHER = 32
"""Decoded tokens whose queries and keys are put together for maps."""
PASSES = 32
"""Forward passes that make one chunk at most, so that a lane can be followed."""
TRACED_FROM = 256
"""Tokens to be read one at a time from which it is worth tracing the model."""
TURNED = 4096
"""How far a run may slide away from where its places are counted."""
DENSE_INSIDE = Dense()
"""What a lane that encodes afresh does inside a stride."""


class Lane:
    """One policy reading the text."""

    def __init__(self, index: int, policy: Policy, source: SharedContext) -> None:
        source.allow(policy)
        self.index, self.source = index, source
        self.policy = policy
        self.position = 1
        """The next token to be predicted; all before it have been read."""
        self.seconds = 0.0
        """Compute time so far."""
        self.caches: list[BandedLayer] | list[RankedLayer] | list[SplitLayer] = []
        self.pieces: list[QKChunk] | list[RankedChunk] = []
        """Queries and keys of the newest tokens, oldest first, from which maps are drawn."""
        self._origin = 0
        """Text position from which decoding counts places in the run."""
        self._turns: dict[tuple, Rotations] = {}
        self._turned_for = 1
        """The length of the context for which keys that decoding holds rotated were rotated."""
        self._encoded: tuple[Policy, int] | None = None
        """The policy that encoded afresh what is held, if one did, and the length for which it rotated."""
        self._fresh: list[TokenPass] = []
        """Decoded tokens whose queries and keys are not in `pieces` yet."""
        self._publish()

    @property
    def policy(self) -> Policy:
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        heads = policy.bent_heads or ()
        model = self.source.model
        if wrong := [f"{layer}.{head}" for layer, head in heads if layer >= model.layers or head >= model.heads]:
            raise ValueError(
                f"{policy.label}: there is no head {wrong[0]}: layers are 0 to {model.layers - 1}, heads 0 to "
                f"{model.heads - 1}"
            )
        self._policy, self._what_if = policy, Interventions.of(policy)
        self._split_what_ifs: list[Interventions] | None = None

    @property
    def ids(self) -> Tensor:
        """The token ids that this lane reads, [tokens]: the text's, but for those that a what-if puts first."""
        return self.source.starting(self.policy.first, self._early)

    @property
    def _early(self) -> int:
        """How many of the first tokens a what-if may replace."""
        return getattr(self.policy, "sinks", 0) or self.source.sink_tokens

    def front(self, tokens: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the first tokens as this lane reads them, per layer [kv_heads, tokens, dim]."""
        return self.source.front(tokens, self.policy.first, self._early, self._what_if)

    @property
    def done(self) -> bool:
        return self.position >= len(self.source.tokens)

    @property
    def sinks(self) -> int:
        """First tokens whose keys are held, without a gap, by all heads."""
        return self.view.sinks

    @property
    def protected(self) -> int:
        """First tokens that are held and stay whatever comes, since the policy keeps them: its sinks."""
        return min(self.sinks, self._wanted(self.policy))

    @property
    def first(self) -> int:
        """The text position from which on every token is held by all heads."""
        return self.view.read - min((span.suffix for span in self.view.spans), default=self.view.read)

    @property
    def shares(self) -> NDArray[np.float32] | None:
        """Which share of all KV heads holds each token that was read, [read]; None where all hold the same."""
        view = self.view
        kinds = {(s.prefix, s.suffix) if isinstance(s, Span) else s for s in view.spans}
        if not kinds or (len(kinds) == 1 and isinstance(view.spans[0], Span)):
            return None
        held = np.zeros(view.read, np.float32)
        for span in view.spans:
            span.count(held)
        return held / sum(span.heads for span in view.spans)

    @property
    def ranked(self) -> bool:
        """Whether slots are ranked, so that what is held differs from head to head."""
        return bool(self.caches) and isinstance(self.caches[0], RankedLayer)

    @property
    def split(self) -> bool:
        """Whether some heads hold everything and others a band."""
        return bool(self.caches) and isinstance(self.caches[0], SplitLayer)

    def held(self, layer: int, kv_head: int) -> tuple[BandedLayer, int]:
        """The cache that holds a KV head by place, and which of its heads that is."""
        return self.view.held(layer, kv_head)

    @property
    def cache_bytes(self) -> int:
        return sum(c.nbytes for c in self.caches)

    def read(self, chunk: int, upto: int | None = None) -> Step:
        """Read on by about `chunk` tokens, predicting no token at or after position `upto`.

        That is one forward pass, but for a ranked lane: there it is one for every eviction.  A pass also ends where the
        family takes other frequencies for a longer context (frequencies.py).
        """
        stop = len(self.source.tokens) if upto is None else min(upto, len(self.source.tokens))
        if self.position >= stop:
            raise ValueError(
                f"lane {self.index} has read up to {self.position}: there is nothing to read before {stop}"
            )
        began = time.perf_counter()
        self.settle()
        kinds = ((Recomputed, self._read_afresh), (Ranked, self._read_ranked), (Banded | Duo, self._read_band))
        read = next(way for kind, way in kinds if isinstance(self.policy, kind))
        nll, mass, contexts, start = read(chunk, stop)
        # One transfer each per chunk; everything before this line may still be under way on a GPU.
        nll, mass = nll.cpu().numpy(), mass.cpu().numpy()
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.position = start + len(nll)
        self._publish()
        per_token = self._bytes_per_token
        return Step(
            lane=self.index,
            policy=self.policy,
            start=start,
            token_ids=self.source.tokens[start : self.position].copy(),
            nll=nll,
            cache_tokens=np.ceil(contexts).astype(np.int32),
            cache_bytes=np.rint(contexts * per_token).astype(np.int64),
            seconds=seconds,
            sink_mass=mass,
        )

    @property
    def _bytes_per_token(self) -> int:
        """Of all KV heads of all layers, which may hold differently many."""
        model, slots = self.source.model, sum(c.slots for c in self.caches)
        return self.cache_bytes * model.layers * model.kv_heads // max(1, slots)

    @property
    def _mean_held(self) -> float:
        """Tokens that a KV head holds on average."""
        return sum(c.slots for c in self.caches) / (self.source.model.layers * self.source.model.kv_heads)

    def _read_ranked(self, chunk: int, stop: int) -> tuple[Tensor, Tensor, NDArray[np.float64], int]:
        """One forward pass after another, each up to the next eviction."""
        policy, begin = self.policy, self.position - 1
        assert isinstance(policy, Ranked)
        end = min(begin + min(chunk, PASSES * policy.interval), stop - 1)
        nll, mass, contexts = [], [], []
        while begin < end:
            count = min(end - begin, room := self._room(begin))
            if nll and count < room and end < stop - 1:
                # The chunk ends at an eviction, so that the next one has whole passes.
                break
            logits, observed, held = self._rank(begin, count)
            nll.append(negative_log_likelihood(logits[0], self.source.ids[begin + 1 :][:count].to(logits.device)))
            mass.append(observed)
            contexts.append(held)
            begin += count
        return torch.cat(nll), torch.cat(mass, -1), np.concatenate(contexts), self.position

    def _room(self, begin: int) -> int:
        """Tokens from `begin` up to and with the one after which something goes, or other frequencies are taken."""
        assert isinstance(self.policy, Ranked)
        model = self.source.model
        held = [len(c) for c in self.caches] or [0] * model.layers
        room = 1 + max(0, min(self.policy.budget_of(i, model.layers) - n for i, n in enumerate(held)))
        length = self._ranked_length(begin)
        return min(room, (model.regime_end(length) or length + room) - length + 1)

    def _ranked_length(self, t: int) -> int:
        """The length of the context of token t, when all before it have been read (frequencies.py).

        Layers that hold differently many have one all the same, since a pass has: that of those that hold most.  With
        text positions a head may hold any token, so it is the length of the text.
        """
        if self.policy.positions == "text":
            return t + 1
        return 1 + max((len(c) for c in self.caches), default=0)

    def _rank(self, begin: int, count: int) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
        """Read `count` tokens: logits, sink mass, and how many tokens a head then held on average."""
        policy, source = self.policy, self.source
        assert isinstance(policy, Ranked)
        if not self.caches:
            self.caches = [RankedLayer.empty(source.model, layer) for layer in range(source.model.layers)]
        before = self._mean_held
        length = source.model.regime(self._ranked_length(begin))
        ranking = RankedPass(
            source.model, begin, source.sink_tokens, policy, self.caches, source.hold > 0, self._what_if, length
        )
        if count == 1 and policy.interval == 1 and len(source.tokens) - begin > TRACED_FROM:
            source.trace()
        if count == 1:
            logits = source.decode(self.ids[None, begin : begin + 1], ranking)
        else:
            logits = source.model.forward(self.ids[None, begin : begin + count], ranking, begin=begin)
        if source.hold:
            piece = RankedChunk(begin, begin + count, policy, ranking.queries, ranking.gone, self._what_if, length)
            self.pieces = [p for p in (*self.pieces, piece) if p.stop > piece.stop - source.hold]
        held = before + np.arange(1.0, count + 1)
        held[-1] = self._mean_held
        return logits, stacked(ranking.mass, logits), held

    def _read_band(self, chunk: int, stop: int) -> tuple[Tensor, Tensor, NDArray[np.float64], int]:
        begin, end = self.position - 1, min(self.position - 1 + chunk, stop - 1)
        nll, mass, contexts = [], [], []
        while begin < end and len(nll) < PASSES:
            upto = self._alike(begin, end)
            logits, observed, held = self._forward(begin, upto)
            nll.append(negative_log_likelihood(logits[0], self.source.ids[begin + 1 : upto + 1].to(logits.device)))
            mass.append(observed)
            contexts.append(held)
            begin = upto
        return torch.cat(nll), torch.cat(mass, -1), np.concatenate(contexts), self.position

    def _alike(self, begin: int, end: int) -> int:
        """How far the tokens from `begin` to `end` can be read in one pass, with one choice of frequencies."""
        model = self.source.model
        length = self._length_of(begin, begin)
        upto = model.regime_end(length)
        if upto is None or self._length_of(end - 1, begin) <= upto:
            return end
        # A context grows by one token at most.
        return begin + upto - length + 1

    def _length_of(self, t: int, begin: int) -> int:
        """The length of the context of token t, when those before `begin` have been read (frequencies.py).

        Where some heads keep everything it is the longest of all heads', since a pass has one.
        """
        if isinstance(self.policy, Banded):
            return self._reach(self.policy, self.caches, begin, t + 1).length_of(t)
        if not self.caches:
            self._empty()
        parts = [[c.parts[i] for c in self.caches] for i in (0, 1)]
        asking = [any(len(c.names[i]) for c in self.caches) for i in (0, 1)]
        return max(
            self._reach(policy, caches, begin, t + 1).length_of(t)
            for policy, caches, some in zip(self.policy.parts, parts, asking, strict=True)
            if some
        )

    def _forward(self, begin: int, end: int, last: int = 0) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
        """Read tokens begin … end − 1: logits, sink mass, and how many tokens a head then held on average."""
        policy, source, capture = self.policy, self.source, self.source.hold > 0
        assert isinstance(policy, Banded | Duo)
        if not self.caches:
            self._empty()
        if isinstance(policy, Banded):
            reader = narrow = self._reading(policy, self.caches, begin, end)
            readings, full = [(narrow, 1)], None
        else:
            parts = [[c.parts[i] for c in self.caches] for i in (0, 1)]
            whole, narrow = (self._reading(p, c, begin, end) for p, c in zip(policy.parts, parts, strict=True))
            whole.what_if, narrow.what_if = self._what_ifs_of_parts()
            reader = SplitPass(begin, self.caches, (whole, narrow), capture)
            full = [c.names[0] for c in self.caches]
            readings = [(whole, sum(map(len, full))), (narrow, sum(len(c.names[1]) for c in self.caches))]
        ids = self.ids[None, begin:end]
        if isinstance(reader, SplitPass) and last and end - begin == 1:
            logits = source.decode(ids, reader)
        else:
            logits = source.model.forward(ids, reader, begin=begin, last=last, outputs=narrow.outputs)
        for reading, _ in readings:
            if reading.reach.window is not None:
                for cache in reading.caches:
                    cache.keep_last(reading.reach.window)
        if capture:
            queries, keys = ([x[0] for x in of] for of in (reader.queries, reader.keys))
            sinks = [[c.sink_keys for c in reading.caches] for reading, _ in readings]
            reach = None if full is None else readings[0][0].reach
            length = narrow.length
            self._hold(QKChunk(begin, end, narrow.reach, queries, keys, self._what_if, length, sinks, full, reach))
        if source.watch is not None:
            source.watch(narrow)
        # Whole numbers until the end: a mean that is a little too large would be a token more.
        contexts = sum(heads * reading.reach.held(np.arange(begin, end)) for reading, heads in readings)
        contexts = contexts / sum(heads for _, heads in readings)
        return logits, stacked(reader.mass, logits), contexts

    def _reading(self, policy: Banded, caches: list[BandedLayer], begin: int, end: int) -> BandedPass:
        """A pass of tokens begin … end − 1 over caches that a band keeps."""
        reach = self._reach(policy, caches, begin, end)
        source, watched = self.source, self.source.watch is not None
        capture = source.hold > 0 or watched
        length = source.model.regime(self._length_of(begin, begin))
        reading = BandedPass(
            source.model, begin, source.sink_tokens, reach, caches, None, capture, self._what_if, length
        )
        reading.outputs = {} if watched else None
        return reading

    @staticmethod
    def _reach(policy: Banded, caches: list[BandedLayer], begin: int, end: int) -> Band:
        """What tokens begin … end − 1 reach in caches that a band keeps."""
        held, run = (caches[0].sink_keys.shape[1], len(caches[0].keys)) if caches else (0, 0)
        # While all that was read are sinks, the next tokens may be some too.
        sinks = max(held, min(policy.sinks, end)) if held == begin and run == 0 else held
        first = caches[0].first if caches else 0
        return Band(sinks, max(first, sinks), policy.window, policy.positions)

    def _what_ifs_of_parts(self) -> list[Interventions | None]:
        """The what-if as each part of a split cache has it, whose heads are only some."""
        if self._what_if is None:
            return [None, None]
        if self._split_what_ifs is None:
            groups = self.source.model.heads // self.source.model.kv_heads
            owns = [
                [[h * groups + i for h in c.names[part] for i in range(groups)] for c in self.caches] for part in (0, 1)
            ]
            self._split_what_ifs = [replace(self._what_if, own=own, _made={}) for own in owns]
        return self._split_what_ifs

    def _empty(self, first: int = 0) -> None:
        model = self.source.model
        self.caches = [BandedLayer.empty(model, layer, first) for layer in range(model.layers)]
        if isinstance(self.policy, Duo):
            full = self.source.full_heads(self.policy)
            self.caches = [SplitLayer(*of_layer) for of_layer in zip(self.caches, full, strict=True)]

    def _read_afresh(self, chunk: int, stop: int) -> tuple[Tensor, Tensor, NDArray[np.float64], int]:
        policy, source, p = self.policy, self.source, self.position
        assert isinstance(policy, Recomputed)
        window, stride = policy.window, policy.stride
        length = self._afresh_length
        if p <= window:
            alike = source.model.regime_end(length) or window
            starts, tokens, last = [0], min(window, p + chunk - 1, stop - 1, alike), 0
            last = tokens + 1 - p
        else:
            into = (p - window - 1) % stride
            starts = [p - into - window]
            last = min(stride - into, stop - p)
            tokens = window + into + last - 1
            if into == 0 and last == stride:
                count = max(1, min(chunk // tokens, (stop - p) // stride))
                starts = [starts[0] + i * stride for i in range(count)]
        begins = torch.tensor(starts, device=source.ids.device)
        ids = self.ids[begins[:, None] + torch.arange(tokens, device=source.ids.device)]
        reach = Band(0, starts[-1], None, "text")
        length = source.model.regime(length)
        reading = BandedPass(
            source.model, starts[0], source.sink_tokens, reach, None, begins, True, self._what_if, length
        )
        logits = source.model.forward(ids, reading, last=last)
        predicted = last * len(starts)
        nll = negative_log_likelihood(logits.flatten(0, 1), source.ids[p : p + predicted].to(logits.device))
        mass = stacked(reading.mass, logits).unflatten(-1, (len(starts), tokens))[..., -last:].flatten(-2)
        self._encoded = policy, length
        # The newest window stays: it is what this lane has, until it reads on or another policy takes over.
        self.caches = [BandedLayer(k[-1], starts[-1]) for k in reading.keys]
        for cache, k, v in zip(self.caches, reading.keys, reading.values, strict=True):
            cache.append(k[-1], v[-1])
        if source.hold:
            queries, keys = [q[-1].clone() for q in reading.queries], [k[-1].clone() for k in reading.keys]
            self.pieces = [QKChunk(starts[-1], starts[-1] + tokens, reach, queries, keys, self._what_if, length)]
        contexts = np.tile(np.arange(tokens - last + 1.0, tokens + 1), len(starts))
        return nll, mass, contexts, p

    @property
    def _afresh_length(self) -> int:
        """The length of the text that is encoded for the next token (frequencies.py); all of a stride have one."""
        policy = self.policy
        return self.position if self.position <= policy.window else policy.window + policy.stride - 1

    def next(self, choose: Callable[[Tensor], int], *, kv_chunk: int | None = None) -> Step:
        """Read the newest token alone, and let the text go on with the one that is chosen.

        `choose` gets the logits [vocabulary], float32, on the CPU.  `kv_chunk`: keys of a long run that are read at a
        time; changes no number.  Everything but the newest token must have been read.
        """
        source, policy = self.source, self.policy
        if self.position != len(source.tokens):
            raise ValueError(
                f"lane {self.index} has read up to {self.position} of {len(source.tokens)} tokens: read the rest first"
            )
        began = time.perf_counter()
        logits, mass, context = self._next_logits(kv_chunk)
        logits = logits.float().cpu()
        token = choose(logits)
        nll = (torch.logsumexp(logits, -1) - logits[token]).numpy()
        mass = mass.cpu().numpy()
        source.extend(np.array([token], np.int32))
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.position += 1
        self._publish()
        per_token = self._bytes_per_token
        return Step(
            lane=self.index,
            policy=policy,
            start=self.position - 1,
            token_ids=np.array([token], np.int32),
            nll=nll[None],
            cache_tokens=np.array([np.ceil(context)], np.int32),
            cache_bytes=np.array([round(context * per_token)], np.int64),
            seconds=seconds,
            sink_mass=mass[..., None],
        )

    def _next_logits(self, kv_chunk: int | None) -> tuple[Tensor, Tensor, float]:
        """Logits [vocabulary] and sink mass [layers, heads] of the newest token, and how many tokens a head then holds
        on average."""
        policy, t = self.policy, self.position - 1
        if isinstance(policy, Ranked):
            logits, mass, contexts = self._rank(t, 1)
            return logits[0, -1], mass[..., -1], contexts[-1]
        if isinstance(policy, Recomputed):
            beyond = self.position - policy.window - 1
            into = beyond % policy.stride if beyond >= 0 else 0
            length = self.source.model.regime(self._afresh_length)
            if self._encoded != (policy, length) or (beyond >= 0 and into == 0):
                logits, mass = self._encode(max(0, self.position - policy.window - into))
                return logits[0, -1], mass[..., -1], len(self.caches[0])
            # A window is a text of its own, whose every token is kept.
            policy = DENSE_INSIDE
        if isinstance(policy, Duo):
            return self._next_by_place(t)
        held, run = (self.caches[0].sink_keys.shape[1], len(self.caches[0].keys)) if self.caches else (0, 0)
        if not run and held == t and (not held or held < policy.sinks):
            # The sinks are still being gathered.
            return self._next_by_place(t)
        reach, source = Band(held, t - run, policy.window, policy.positions), self.source
        length = self._encoded[1] if policy is DENSE_INSIDE else source.model.regime(reach.length_of(t))
        if self._fresh and self._fresh[0].length != length:
            self.settle()
        self._turn(reach, length)
        capture = source.hold > 0
        decoding = TokenPass(
            source.model,
            t,
            source.sink_tokens,
            reach,
            self.caches,
            self._origin,
            self._turns,
            kv_chunk,
            capture,
            self._what_if,
            length,
        )
        logits = source.decode(self.ids[None, t : t + 1], decoding)
        if policy.window is not None:
            for cache in self.caches:
                cache.keep_last(policy.window)
        if capture:
            self._fresh.append(decoding)
            if len(self._fresh) >= TOGETHER:
                self.settle()
        return logits[0, -1], stacked(decoding.mass, logits), len(self.caches[0])

    def _next_by_place(self, token: int) -> tuple[Tensor, Tensor, float]:
        """The same, by the way in which texts are read."""
        logits, mass, contexts = self._forward(token, token + 1, 1)
        return logits[0, -1], mass[..., -1], contexts[-1]

    def _encode(self, start: int) -> tuple[Tensor, Tensor]:
        """Encode the tokens from `start` to the newest afresh; logits of the newest, sink mass of all."""
        source, end = self.source, self.position
        self._empty(start)
        length = source.model.regime(self._afresh_length)
        self._encoded = self.policy, length
        reach = Band(0, start, None, "text")
        reading = BandedPass(
            source.model, start, source.sink_tokens, reach, self.caches, None, source.hold > 0, self._what_if, length
        )
        logits = source.model.forward(self.ids[None, start:end], reading, last=1)
        if source.hold:
            self._fresh = []
            queries, keys = ([x[0] for x in of] for of in (reading.queries, reading.keys))
            self.pieces = [QKChunk(start, end, reach, queries, keys, self._what_if, length)]
        return logits, stacked(reading.mass, logits)

    def _turn(self, reach: Band, length: int) -> None:
        """Let every layer hold the keys of its run rotated for a context of that length, as far as it does not."""
        model, first, run = self.source.model, reach.first, len(self.caches[0].keys)
        if length != self._turned_for:
            self._turned_for, self._turns = length, {}
            for cache in self.caches:
                cache.forget_rotations()
        if first < self._origin or (reach.window is not None and first - self._origin > TURNED):
            # Far from the origin angles lose digits.
            self._origin = first
            for cache in self.caches:
                cache.turned.keep_last(0)
        turned = len(self.caches[0].turned)
        if turned == run:
            return
        places = reach.in_run(torch.arange(first + turned, first + run, device=model.device), self._origin)
        angles: dict[tuple, Angles | None] = {}
        for layer, cache in enumerate(self.caches):
            attention = model.attentions[layer]
            kind = model.kind(attention)
            if kind not in angles:
                angles[kind] = model.angles(attention, places, length)
            with torch.inference_mode():
                cache.turned.append(model.rotate(attention, cache.keys.view()[None, :, turned:], angles[kind])[0])

    def settle(self) -> None:
        """Put the queries and keys of decoded tokens where maps find them."""
        if not self._fresh:
            return
        piece, self._fresh = joined(self._fresh), []
        if isinstance(self.policy, Recomputed):
            self.pieces = [*self.pieces, piece]
        else:
            self._hold(piece)

    def _publish(self) -> None:
        """Let others see what is held from now on."""
        read, caches = self.position - 1, self.caches
        spans = [span for c in caches for span in c.spans(read)]
        if self.ranked:
            caches = [Scattered(c.places, read, c.keys) for c in caches] if self.source.hold else []
        self.view = View(self.source, read, caches, spans, self.pieces, tuple(self._fresh))

    def snapshot(self) -> "Snapshot":
        """All that this lane holds just now, to go on from here another time.  Takes no memory of its own."""
        self.settle()
        caches = [c.copy() for c in self.caches]
        return Snapshot(self.position, len(self.source.tokens), self.policy, self._encoded, caches, self.pieces)

    def restore(self, snapshot: "Snapshot") -> None:
        """Be as when the snapshot was taken; the text that came after it is forgotten."""
        self.position, self.policy, self._encoded = snapshot.position, snapshot.policy, snapshot.encoded
        self.source.truncate(snapshot.tokens)
        self.caches, self._fresh = [c.copy() for c in snapshot.caches], []
        self.pieces = snapshot.pieces
        if not self.ranked and not self.split:
            self._origin = min(self._origin, self.caches[0].first if self.caches else 0)
            for cache in self.caches:
                cache.forget_rotations()
        self._publish()

    def _hold(self, piece: QKChunk) -> None:
        window, oldest = piece.reach.window or 0, piece.stop - self.source.hold
        # Nothing of it is changed in place, since somebody else may be looking at it.
        self.pieces = [
            replace(p, queries=[]) if p.queries and p.stop <= oldest else p
            for p in (*self.pieces, piece)
            if p.stop > oldest - window
        ]

    def _wanted(self, policy: Policy) -> int:
        """How many of the first tokens that were read the policy keeps whatever comes."""
        read = self.position - 1
        if isinstance(policy, Ranked):
            # Not all of them protect the first ones.
            return int(policy.protected(torch.arange(min(policy.sinks, read))[None]).long().cumprod(1).sum())
        return min(policy.sinks, read) if isinstance(policy, Banded | Duo) else 0

    def missing_sinks(self, policy: Policy) -> int:
        """How many of the first tokens the policy would keep, but this lane no longer holds."""
        return max(0, self._wanted(policy) - self.sinks)

    def switch(self, policy: Policy, *, pin: bool = False) -> None:
        """Read on under another policy, which keeps what it keeps of what the lane still has.

        Where the new policy has sinks that not all heads hold, `pin` brings them back in every head, as the new policy
        reads them.  Otherwise a band goes on without any; heads that keep everything and ranked slots keep what they
        have.  Where heads hold different tokens and the new policy has no use for that, what stays is the first and the
        newest tokens that all of them hold.
        """
        self.source.allow(policy)
        if isinstance(policy, Duo) and len(self.source.tokens):
            # Of a conversation in which nothing was said there is nothing to measure yet.
            self.source.full_heads(policy)
        self.settle()
        before, first, early = self.policy, self.policy.first, self._early
        caches, pieces, encoded = self.caches, self.pieces, self._encoded
        self.policy, self._encoded = policy, None
        # What is changed is a copy: others may be looking, and where the memory does not suffice all is as it was.
        self.caches = [c.copy() for c in caches]
        try:
            self._take_over(policy, pin)
            if self.caches and (first, early) != (policy.first, self._early) and {first, policy.first} != {"own"}:
                # Maps do not reach back to where the first tokens were others.
                self.pieces = []
                front = self.front(min(self.position - 1, max(early, self._early)))
                for cache, of_layer in zip(self.caches, front, strict=True):
                    cache.put_first(*of_layer)
        except BaseException:
            self.policy, self.caches, self.pieces, self._encoded = before, caches, pieces, encoded
            raise
        self._publish()

    def _take_over(self, policy: Policy, pin: bool) -> None:
        """Keep of what is held what this policy would; where first tokens are missing, `pin` brings them back."""
        if isinstance(policy, Ranked) != self.ranked or (pin and self.ranked):
            # Maps do not reach back to where slots were kept in another way.
            self.pieces = []
        if not self.caches:
            return
        read, missing = self.position - 1, self.missing_sinks(policy) > 0
        front = self.front(self._wanted(policy)) if missing and pin else None
        full = self.source.full_heads(policy) if isinstance(policy, Duo) else None
        if self.split and full != [c.names[0] for c in self.caches]:
            self.caches = as_bands(self.caches, read)
        if isinstance(policy, Ranked):
            self.caches = [as_ranked(c, read) for c in self.caches]
            if front is not None:
                self.caches = with_front(self.caches, front)
            return
        if self.ranked:
            self.caches = as_bands(self.caches, read)
        if isinstance(policy, Recomputed):
            return
        if full is not None and not self.split:
            self.caches = [SplitLayer(*of_layer) for of_layer in zip(self.caches, full, strict=True)]
        for layer, cache in enumerate(self.caches):
            first = None if front is None else front[layer]
            if full is None:
                cache.become(policy.sinks, policy.window, front=first)
                continue
            for part, kept, own in zip(cache.parts, policy.parts, cache.heads, strict=True):
                part.become(policy.sinks, kept.window, front=None if first is None else tuple(x[own] for x in first))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a lane held at some moment."""

    position: int
    tokens: int
    policy: Policy
    encoded: tuple[Policy, int] | None
    caches: list[BandedLayer] | list[RankedLayer] | list[SplitLayer]
    pieces: list[QKChunk] | list[RankedChunk]


def stacked(of_layers: list[Tensor], like: Tensor) -> Tensor:
    """What every layer said, [layers, *], on the device of another tensor."""
    return torch.stack([t.to(like.device, non_blocking=True) for t in of_layers])


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """−ln p of each target: logits [tokens, vocabulary], targets [tokens] → [tokens] in nats, float32."""
    parts = []
    for rows, wanted in zip(logits.split(ROWS), targets.split(ROWS), strict=True):
        rows = rows.float()
        parts.append(torch.logsumexp(rows, -1) - rows.gather(-1, wanted[:, None])[:, 0])
    return torch.cat(parts)
