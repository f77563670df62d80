"""Storms of random switches: a state machine that drives a lane and its reference (switching.py) side by side.

A few hundred steps are part of the tests.  For more: `python -m tests.storms --steps 20000 --seed 1`.
"""

import argparse
import json
import sys
import tempfile
import threading
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from analysis.engine.check import adapt
from analysis.engine.context import SharedContext
from analysis.engine.lane import Lane
from analysis.engine.layers.slots import Window
from analysis.engine.state import State
from analysis.engine.tracing import one_token
from analysis.maps.recent import head_map, head_row
from analysis.policies import POLICIES, Ranked, Recomputed, parse

from .families import tiny
from .invariants import Tokens, ahead, stored
from .switching import beside, check_held, follow

HOLD, LONGEST = 64, 140
"""Tokens whose queries are held for maps; tokens of a text, beyond which nothing more is read."""
NAMES = ("llama 1", "llama 2", "llama 4", "gemma2", "gpt_oss")
SIZES = {
    "llama 1": ("llama", {"num_key_value_heads": 4, "num_hidden_layers": 2}),
    "llama 2": ("llama", {"num_key_value_heads": 2, "num_hidden_layers": 2}),
    "llama 4": ("llama", {"num_key_value_heads": 1, "num_hidden_layers": 2}),
    "gemma2": ("gemma2", {"num_hidden_layers": 2, "sliding_window": 10, "attn_logit_softcapping": 20.0}),
    "gpt_oss": ("gpt_oss", {"num_hidden_layers": 2, "sliding_window": 10}),
}
counted = Counter()


class Tokenizer:
    """What a lane asks of a tokenizer: every text is the same few words."""

    bos_token_id = 7

    def __call__(self, content, **_):
        return {"input_ids": [3, 5] if content == "\n" else list(range(40, 60))}


@cache
def loaded(name):
    """A tiny model of few numbers, what tells its tokens apart, and its trace."""
    family, more = SIZES[name]
    model = adapt(tiny(family, **more))
    return model, Tokens(model), one_token(model)


@cache
def scores(name, other):
    """A file that rates the KV heads of a model."""
    model = loaded(name)[0]
    path = Path(tempfile.mkdtemp(prefix="sinkscope-storms-")) / f"{other}.tsv"
    np.savetxt(path, np.random.default_rng(other).random((model.layers, model.kv_heads)))
    return str(path)


@st.composite
def policies(draw, name):
    """Any policy, with caches small enough that a text of a hundred tokens is long."""
    often = "window", "streaming", "streaming", "recompute", "duo", "duo", "adakv", "adakv"
    kind = POLICIES[draw(st.sampled_from([*POLICIES, *often]))]
    more = {}
    ranges = {"window": (1, 14), "stride": (1, 4), "budget": (4, 16), "recent": (1, 6), "interval": (1, 4)}
    if issubclass(kind, Recomputed):
        # Every token is as many tokens to the reference.
        ranges["window"] = 1, 7
    ranges |= {"history": (1, 9), "start": (0, 6), "steepness": (1, 3), "seed": (0, 3), "skip": (0, 2)}
    ranges |= {"future": (1, 20), "floor": (0, 100), "block": (1, 5), "merge": (1, 6)}
    for f in kind.settings():
        if f.name in ranges:
            more[f.name] = draw(st.integers(*ranges[f.name]))
        elif f.name in ("sinks", "keep"):
            # More than have been read, too.
            more[f.name] = draw(st.integers(0, 6) | st.just(30))
        elif f.metadata["choices"]:
            more[f.name] = draw(st.sampled_from(f.metadata["choices"]))
        elif f.name == "kernel":
            more[f.name] = draw(st.sampled_from((1, 3, 5)))
        elif f.name == "full":
            more[f.name] = draw(st.sampled_from((0, 25, 50, 75, 100)))
        elif f.name == "scores":
            more[f.name] = draw(st.sampled_from(("measured", scores(name, 1), scores(name, 2))))
    if draw(st.integers(0, 3)) == 0:
        heads = draw(st.sampled_from(("all", "0.1 1.2", "1.0")))
        changed = draw(st.sampled_from(({"softmax": "off-by-one"}, {"softmax": "logit", "logit": 2.5}, {})))
        more |= {"heads": heads, **changed, "knockout": draw(st.sampled_from(("none", "values", "weights")))}
    if kind.quantizable and draw(st.integers(0, 2)) == 0:
        group = draw(st.integers(1, 4))
        more |= {"cache": draw(st.sampled_from(("int8", "int4", "int2"))), "exact": draw(st.integers(0, 7))}
        more |= {"group": group, "residual": group + draw(st.integers(0, 3))}
    if draw(st.integers(0, 4)) == 0:
        more["first"] = draw(st.sampled_from(("newlines", "bos", "macbeth")))
    try:
        return kind(**more)
    except ValueError:
        # Settings that leave nothing to choose.
        assume(False)


def written(state):
    """A state as it comes back from a file."""
    tensors = {name: (t.tensor if isinstance(t, Window) else t).clone() for name, t in state.tensors.items()}
    return State(json.loads(json.dumps(state.values)), tensors)


class Storm(RuleBasedStateMachine):
    """One lane, switched and read in every way that there is."""

    @initialize(data=st.data(), name=st.sampled_from(NAMES), more=st.integers(0, 2**32 - 1))
    def begin(self, data, name, more):
        self.name, self.random = name, np.random.default_rng(more)
        self.model, self.tokens, trace = loaded(name)
        policy = data.draw(policies(name))
        context = SharedContext(self.model, self._words(2), 4, HOLD, tokenizer=Tokenizer(), tracer=lambda: trace)
        self.lane = Lane(0, policy, context)
        self.reference = beside(self.lane)
        self.kept = []
        """Snapshots of both."""

    def _words(self, count):
        return self.random.integers(0, 97, count).astype(np.int32)

    def _fits(self, most=0):
        return len(self.lane.context.tokens) + most <= LONGEST

    @precondition(lambda self: self._fits(12))
    @rule(count=st.integers(1, 12), chunk=st.integers(1, 12), whole=st.booleans())
    def read(self, count, chunk, whole):
        """The text grows, and is read on in chunks; not always to its end."""
        lane = self.lane
        lane.context.extend(self._words(count))
        stop = len(lane.context.tokens) if whole else lane.position + max(1, count // 2)
        on_the_way = ahead(lane, stop)
        while lane.position < stop:
            self._compare(lane.read(chunk, upto=stop), on_the_way)

    @precondition(lambda self: self._fits(4) and self.lane.position == len(self.lane.context.tokens))
    @rule(count=st.integers(1, 4), kv_chunk=st.sampled_from((None, None, 1, 3, 7)), traced=st.booleans())
    def next(self, count, kv_chunk, traced):
        """Tokens that are chosen, one at a time."""
        if traced and not self.lane.context.traced:
            self.lane.context.trace()
        for token in self._words(count):
            self._compare(self.lane.next(lambda _, token=token: int(token), kv_chunk=kv_chunk))

    @rule(data=st.data())
    def switch(self, data):
        self._switch(data, pin=False)

    @rule(data=st.data())
    def switch_and_pin(self, data):
        self._switch(data, pin=True)

    def _switch(self, data, pin):
        policy = data.draw(policies(self.name))
        self.lane.switch(policy, pin=pin)
        self.reference.switch(policy, pin=pin, stored=stored(self.lane))
        if pin:
            assert self.lane.missing_sinks(policy) == 0

    @rule()
    def snapshot(self):
        self.kept.append((self.lane.snapshot(), self.reference.copy(), self.lane.context.tokens.copy()))

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def restore(self, data):
        """To any moment whose text the context still has, also behind the end of the present one."""
        context, now = self.lane.context, len(self.lane.context.tokens)
        fits = []
        for kept in self.kept:
            context.truncate(len(kept[2]))
            if np.array_equal(context.tokens, kept[2]):
                fits.append(kept)
        context.truncate(now)
        assume(fits)
        lane, reference, _ = fits[data.draw(st.integers(0, len(fits) - 1))]
        ties = self.reference.ties
        self.lane.restore(lane)
        self.reference = reference.copy()
        self.reference.ties = ties

    @rule()
    def go_on_elsewhere(self):
        """From the state of the lane, as another process would, whose maps begin anew."""
        lane, context = self.lane, self.lane.context
        tokens = context.tokens.copy()
        other = SharedContext(self.model, tokens, 4, HOLD, tokenizer=context.tokenizer, tracer=context.tracer)
        self.lane = Lane(0, parse(str(lane.policy)), other)
        self.lane.load_state(written(lane.state()))
        assert (self.lane.position, self.lane.cache_bytes) == (lane.position, lane.cache_bytes)
        self.reference.context, self.kept = other, []
        counted["states"] += 1

    @rule(layer=st.integers(0, 1), head=st.integers(0, 3), tokens=st.integers(1, 40), elsewhere=st.booleans())
    def look(self, layer, head, tokens, elsewhere):
        """Maps show what the reference's queries gave, also to somebody in another thread."""
        found = []
        if elsewhere:
            thread = threading.Thread(target=lambda: found.append(self._look(layer, head, tokens)))
            thread.start()
            thread.join()
            assert found, "looking from another thread failed"
        else:
            self._look(layer, head, tokens)

    def _look(self, layer, head, tokens):
        lane = self.lane
        drawn = head_map(lane, layer, head, tokens)
        if drawn is None:
            assert not [p for p in lane.view.chunks if p.queries]
            return True
        counted["maps"] += 1
        for i, t in enumerate(range(drawn.first, drawn.first + len(drawn.weights))):
            row = {drawn.first + j: w for j, w in enumerate(drawn.weights[i].tolist()) if not np.isnan(w)}
            row |= {j: w for j, w in enumerate(drawn.sinks[i].tolist()) if not np.isnan(w)}
            single = head_row(lane, layer, head, t)
            if not row and single is None:
                continue
            counted["rows"] += 1
            expected, learned = self.reference.rows[t, layer, head]
            given = 0.0 if single.learned is None else single.learned
            np.testing.assert_allclose(single.weights.sum() + given, 1, atol=1e-4)
            np.testing.assert_allclose(given, float(learned), atol=1e-4)
            got = dict(zip(single.positions.tolist(), single.weights.tolist(), strict=True))
            for reached in (row, got):
                assert set(reached) <= set(expected)
                np.testing.assert_allclose([expected[p] for p in reached], list(reached.values()), atol=1e-4)
            rest = [w for p, w in expected.items() if p not in got]
            assert not rest or max(rest) == 0, "a key that was met is missing"
        return True

    def _compare(self, step, on_the_way=None):
        follow(self.lane, self.reference, step, on_the_way=on_the_way)
        if not isinstance(self.lane.policy, Recomputed):
            assert head_map(self.lane, 0, 0, 1) is not None
        counted["tokens"] += len(step.nll)

    @invariant()
    def claims_are_what_is_held(self):
        if not hasattr(self, "lane"):
            return
        counted["steps"] += 1
        everyone = self.tokens.check(self.lane, self.reference.rounded)
        check_held(self.lane, self.reference)
        assert everyone == (self.reference.holders() if self.lane.store.layers else [])

    def teardown(self):
        if hasattr(self, "reference"):
            counted["near ties"] += self.reference.ties
            counted["storms"] += 1
            for kind in (Ranked, Recomputed):
                counted[f"ended {kind.__name__.lower()}"] += isinstance(self.lane.policy, kind)
            counted["ended quantized"] += self.lane.policy.cache != "own"


def settled(examples, steps, **more):
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        **more,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    number = wanted.seed
    while counted["steps"] < wanted.steps:
        # Storms of one seed are few enough that a failure is told soon.
        run_state_machine_as_test(seed(number)(type(f"Storm{number}", (Storm,), {})), settings=settled(25, 50))
        print(f"seed {number}: " + ", ".join(f"{n:,} {what}" for what, n in counted.items()), flush=True)
        number += 1
    print(f"{counted['steps']:,} steps, seeds {wanted.seed} to {number - 1}, no failure")


if __name__ == "__main__":
    sys.exit(main())
