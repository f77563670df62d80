"""A policy that bears a paper's name keeps what the paper keeps, computed from transformers' own attention and cache.

A prompt is read whole and compressed once, as the papers' codes do: in the engine that is a budget one below the prompt
and an interval of all that goes.  Token by token the same policies are compared with published.py in test_ranked.py.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from analysis.engine.stream import open_lanes
from analysis.policies import POLICIES, parse
from analysis.policies.ranked import tolerance

from .families import shared
from .published import lot

PROMPT, KEPT = 48, 20


class Prompt:
    """A prompt as transformers reads it: attention [heads, queries, keys], keys and values of every layer."""

    def __init__(self, groups):
        self.model = shared("llama", num_key_value_heads=4 // groups)
        self.ids = np.random.default_rng(1).permutation(90)[: PROMPT + 1]
        seen = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}
        out = self.model(torch.as_tensor(self.ids[None, :PROMPT]), **seen)
        self.attention = [a[0].double() for a in out.attentions]
        self.keys = [layer.keys[0].double() for layer in out.past_key_values.layers]
        self.unrotated, self.queries = [], []
        for layer, hidden, keys in zip(self.model.model.layers, out.hidden_states, self.keys, strict=False):
            given = layer.input_layernorm(hidden)
            for into, projection in ((self.unrotated, layer.self_attn.k_proj), (self.queries, layer.self_attn.q_proj)):
                heads = projection(given)[0].unflatten(-1, (-1, keys.shape[-1]))
                into.append(heads.transpose(0, 1).double())
        self.values = [layer.values[0].double() for layer in out.past_key_values.layers]
        self.groups, self.layers = groups, len(self.keys)

    def of_groups(self, x):
        """The mean over the query heads of each KV head."""
        return x.unflatten(0, (-1, self.groups)).mean(1)

    def kept(self, written):
        """What the engine keeps of it: for each layer, the positions of each KV head."""
        lane = open_lanes(self.model, self.ids, [parse(written)])[0]
        while not lane.done:
            lane.read(64)
        heads = range(lane.context.model.kv_heads)
        return [[layer.of_head(head)[0].tolist() for head in heads] for layer in lane.store.layers]


def once(kept=KEPT):
    return f"budget={PROMPT - 1},interval={PROMPT - kept}"


def best(scores, count, more=()):
    """For each row, the positions that score highest and those that stay anyway, in order."""
    return [sorted({*row.topk(count).indices.tolist(), *more}) for row in scores]


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda g: f"{g} query heads per KV head")
def prompt(request):
    return Prompt(request.param)


def test_h2o_keeps_what_got_the_most_attention(prompt):
    newest = range(PROMPT - 10, PROMPT)
    for layer, kept in enumerate(prompt.kept(f"h2o:recent=10,{once()}")):
        total = prompt.of_groups(prompt.attention[layer].sum(1))
        assert kept == best(total[:, :-10], KEPT - 10, newest)


def test_tova_keeps_the_same_tokens_in_all_heads_of_a_layer(prompt):
    for layer, kept in enumerate(prompt.kept(f"tova:{once()}")):
        last = prompt.attention[layer][:, -1].mean(0, keepdim=True)
        assert kept == best(last, KEPT) * len(kept)
    for layer, kept in enumerate(prompt.kept(f"tova:agree=head,{once()}")):
        assert kept == best(prompt.of_groups(prompt.attention[layer][:, -1]), KEPT)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_snapkv_keeps_what_the_observation_window_votes_for(prompt, pooling):
    window, kernel = 8, 5
    for layer, kept in enumerate(prompt.kept(f"snapkv:recent={window},pooling={pooling},kernel={kernel},{once()}")):
        votes = prompt.of_groups(prompt.attention[layer][:, -window:, :-window].sum(1))
        pool = {"mean": F.avg_pool1d, "max": F.max_pool1d}[pooling]
        scores = pool(votes[None], kernel, stride=1, padding=kernel // 2)[0]
        for head, (row, got) in enumerate(zip(scores, kept, strict=True)):
            assert set(range(PROMPT - window, PROMPT)) <= set(got) and len(got) == KEPT, head
            # Neighbours of a maximum have equal scores, of which topk takes any.
            chosen = row[[j for j in got if j < PROMPT - window]].sort().values
            torch.testing.assert_close(chosen, row.topk(KEPT - window).values.sort().values, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("floor", [0, 20, 50, 100])
def test_adakv_gives_heads_as_many_slots_as_they_have_of_the_best(prompt, floor):
    window, kernel, even = 8, 5, KEPT - 8
    settings = f"recent={window},kernel={kernel},pooling=mean,floor={floor},{once()}"
    for layer, kept in enumerate(prompt.kept(f"adakv:{settings}")):
        votes = prompt.of_groups(prompt.attention[layer][:, -window:, :-window].sum(1))
        scores = F.avg_pool1d(votes[None], kernel, stride=1, padding=kernel // 2)[0]
        heads, before = scores.shape
        wins = torch.bincount(scores.flatten().topk(even * heads).indices // before, minlength=heads)
        given = torch.round(wins * (1 - floor / 100) + even * floor // 100).long()
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        for head, count in enumerate(given.tolist()):
            chosen[head, scores[head].topk(count).indices] = True
        # Rounding leaves some of the budget, or takes more: the best of all heads get it, and the worst pay for it.
        final = (scores + chosen * 2 * scores.max()).flatten().topk(even * heads).indices
        wanted = [[j.item() % before for j in final if j // before == head] for head in range(heads)]
        assert kept == [sorted([*row, *range(before, PROMPT)]) for row in wanted]
        # With all of it shared out by the scores the test has something to see.
        assert floor or heads == 1 or len({len(row) for row in kept}) > 1


def test_a_budget_that_is_shared_out_evenly_is_that_of_snapkv(prompt):
    settings = f"recent=8,kernel=7,pooling=max,{once()}"
    assert prompt.kept(f"adakv:floor=100,{settings}") == prompt.kept(f"snapkv:{settings}")


def test_pyramid_shares_out_what_is_not_the_window(prompt):
    window, beta, layers = 4, 20, prompt.layers
    policy = parse(f"pyramid:budget=24,recent={window}")
    low = (24 - window) / beta
    high = 2 * (24 - window) - low
    for layer in range(layers):
        paper = window + high - layer * (high - low) / (layers - 1)
        assert abs(policy.budget_of(layer, layers) - paper) < 1
    kept = prompt.kept(str(policy))
    assert [len(heads[0]) for heads in kept] == [policy.budget_of(i, layers) for i in range(layers)]
    assert sum(len(heads[0]) for heads in kept) == 24 * layers


def test_knorm_keeps_short_keys_and_the_first_two_layers(prompt):
    for layer, kept in enumerate(prompt.kept(f"knorm:{once()}")):
        norms = prompt.keys[layer].norm(dim=-1)
        assert kept == ([list(range(PROMPT))] * len(norms) if layer < 2 else best(-norms, KEPT))


@pytest.mark.parametrize("compared", ["rotated", "unrotated"])
def test_keydiff_keeps_keys_that_point_elsewhere(prompt, compared):
    own = {"rotated": prompt.keys, "unrotated": prompt.unrotated}[compared]
    for layer, kept in enumerate(prompt.kept(f"keydiff:keys={compared},{once()}")):
        keys = own[layer]
        anchor = F.normalize(keys, dim=-1).mean(1, keepdim=True)
        assert kept == best(-F.cosine_similarity(keys, anchor, dim=-1), KEPT)


def test_lagkv_measures_a_stretch_by_the_next(prompt):
    sinks, lag = 4, (PROMPT - 4) // 2
    for layer, kept in enumerate(prompt.kept(f"lagkv:sinks={sinks},recent={lag},{once(sinks + lag + 7)}")):
        scores = 0
        for x in (prompt.keys[layer], prompt.values[layer]):
            this, later = x[:, sinks : sinks + lag], x[:, sinks + lag :]
            low, high = later.amin(1, keepdim=True), later.amax(1, keepdim=True)
            scores = scores + ((this - low) / (high - low)).std(-1).softmax(-1)
        wanted = [[j + sinks for j in row] for row in best(scores, 7)]
        assert kept == [[*range(sinks), *row, *range(sinks + lag, PROMPT)] for row in wanted]


def test_expected_attention_is_the_mean_over_queries_that_are_drawn(prompt):
    """The closed form against the definition: many queries from the same normal distribution, each asked."""
    sinks, future = 4, 64
    rotary = prompt.model.model.rotary_emb
    cos, sin = (x[0].double() for x in rotary(torch.zeros(1), torch.arange(PROMPT, PROMPT + future)[None]))
    for layer, kept in enumerate(prompt.kept(f"expected-attention:future={future},{once()}")):
        queries, keys = prompt.queries[layer][:, sinks:], prompt.keys[layer][:, sinks:]
        dim, total = keys.shape[-1], []
        half = torch.zeros(dim, dim, dtype=torch.float64)
        half[dim // 2 :, : dim // 2], half[: dim // 2, dim // 2 :] = torch.eye(dim // 2), -torch.eye(dim // 2)
        rotation = (torch.diag_embed(cos) + sin[..., None] * half).mean(0)
        draw = torch.Generator().manual_seed(layer)
        for head, asked in enumerate(queries):
            root = torch.linalg.cholesky(torch.cov(asked.T, correction=0) + 1e-12 * torch.eye(dim))
            half_drawn = torch.randn(100_000, dim, generator=draw, dtype=torch.float64) @ root.T
            drawn = asked.mean(0) + torch.cat((half_drawn, -half_drawn))
            scores = drawn @ rotation.T @ keys[head // prompt.groups].T * dim**-0.5
            expected = scores.exp().mean(0)
            total.append(expected / expected.sum())
        worth = prompt.of_groups(torch.stack(total)) * prompt.values[layer][:, sinks:].norm(dim=-1)
        for row, got in zip(worth, kept, strict=True):
            assert got[:sinks] == list(range(sinks)) and len(got) == KEPT
            chosen = row[[j - sinks for j in got[sinks:]]].sort().values
            torch.testing.assert_close(chosen, row.topk(KEPT - sinks).values.sort().values, rtol=5e-3, atol=0.0)


def test_scissorhands_drops_what_got_less_than_an_even_share(prompt):
    history, recent = 30, 10
    for layer, kept in enumerate(prompt.kept(f"scissorhands:recent={recent},history={history},{once()}")):
        given = prompt.of_groups(prompt.attention[layer])
        share = 1 / torch.arange(1, PROMPT + 1)[:, None]
        # A token says nothing of those that come after it.
        low = (given < share) & torch.ones(PROMPT, PROMPT).tril().bool()
        counts = low[:, -history:].sum(1)[:, :-recent]
        for row, got in zip(counts, kept, strict=True):
            # Of equal counts the older goes.
            order = sorted(range(len(row)), key=lambda j: (-int(row[j]), j))
            assert got == sorted({*order[-(KEPT - recent) :], *range(PROMPT - recent, PROMPT)})


def test_cam_adds_what_leaves_to_the_next_values(prompt):
    """As the authors' code does it at every step of a stream: `x[start : start + m] += x[start - 1] * mask / m`."""
    sinks, merge, seed, merged = 4, 6, 3, 0
    lane = open_lanes(prompt.model, prompt.ids, [parse(f"cam:sinks={sinks},merge={merge},seed={seed},{once()}")])[0]
    while not lane.done:
        lane.read(64)
    for layer, held in enumerate(lane.store.layers):
        for head, got in enumerate(prompt.of_groups(prompt.attention[layer].sum(1))):
            x, first = prompt.values[layer][head].clone(), sinks + 1
            while len(x) > KEPT:
                draw = lot(PROMPT - len(x) + sinks, layer, head, seed)
                mask = draw < (got[sinks] / got[first : first + merge].mean()).clamp(0, 1)
                x[first : first + merge] += x[sinks] * mask / merge
                x, got = (torch.cat((of[:sinks], of[first:])) for of in (x, got))
                merged += int(mask)
            positions, _, values = held.of_head(head)
            assert positions.tolist() == [*range(sinks), *range(PROMPT - KEPT + sinks, PROMPT)]
            torch.testing.assert_close(values.double(), x, atol=1e-4, rtol=1e-4)
    assert merged > 10


PAPERS = {
    "streaming": {"sinks": 4, "positions": "cache"},
    "h2o": {"sinks": 0, "recent": 128, "budget": 256, "positions": "text", "interval": 1},
    "tova": {"sinks": 0, "recent": 0, "agree": "layer", "positions": "text", "interval": 1},
    "snapkv": {"sinks": 0, "recent": 32, "kernel": 5, "pooling": "mean", "positions": "text"},
    "adakv": {"sinks": 0, "recent": 32, "kernel": 7, "pooling": "max", "floor": 20, "positions": "text"},
    "knorm": {"sinks": 0, "recent": 0, "skip": 2, "positions": "text"},
    "keydiff": {"sinks": 0, "recent": 0, "keys": "rotated", "positions": "text"},
    "scissorhands": {"sinks": 0, "recent": 10, "history": 400, "interval": 128, "budget": 256, "positions": "text"},
    "lagkv": {"sinks": 16, "positions": "text"},
    "expected-attention": {"sinks": 4, "recent": 0, "future": 512, "positions": "text"},
    "cam": {"sinks": 4, "merge": 16, "positions": "cache", "interval": 1},
    "pyramid": {"sinks": 0, "recent": 8, "steepness": 20, "kernel": 7, "pooling": "max", "scorer": "snapkv"},
    "duo": {"sinks": 64, "window": 256, "full": 50, "positions": "text"},
}


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_not_said_is_as_the_paper_has_it(name):
    policy = parse(name)
    assert {key: getattr(policy, key) for key in PAPERS[name]} == PAPERS[name]
    assert parse(str(policy)) == policy and POLICIES[name]() == policy


@pytest.mark.parametrize(
    "written",
    [
        "h2o:budget=128,recent=64,interval=16",
        "tova:budget=128,interval=16",
        "tova:budget=16,sinks=0,recent=1,interval=1,positions=cache",
        "snapkv:budget=256,sinks=4,recent=32,interval=1,positions=cache,kernel=5",
        "keydiff:budget=32,sinks=2,recent=8,interval=1",
        "knorm:budget=256,sinks=4,recent=64,interval=1,positions=cache",
        "scissorhands:budget=256,sinks=4,recent=10,interval=1,positions=cache,history=64",
        "lagkv:budget=256,sinks=4,recent=64,interval=1,positions=cache",
        "pyramid:budget=256,sinks=4,recent=16,interval=1,positions=cache,scorer=snapkv,steepness=4",
        "pyramid:budget=64,recent=8,interval=16,steepness=2",
        "duo:full=50,sinks=4,window=252,positions=text,scores=measured",
    ],
)
def test_what_was_written_before_is_still_understood(written):
    assert str(parse(str(parse(written)))) == str(parse(written))


def test_the_docs_name_every_policy_and_settings_that_exist():
    text = (Path(__file__).parents[1] / "docs" / "policies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, flags=re.M)
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert named == set(POLICIES) - {"dense"}
    written = re.findall(r"`(\w+:[\w=,]+)`", text)
    assert written and all(parse(policy) for policy in written)
    known = {f.name for policy in POLICIES.values() for f in (*policy.settings(), *policy.interventions())}
    assert {key for some in re.findall(r"`((?:\w+=\w*,?)+)`", text) for key in re.findall(r"(\w+)=", some)} <= known


def test_the_docs_have_the_tolerance_of_the_code():
    said = {torch.float32: 1.5e-5, torch.bfloat16: 2e-3, torch.float16: 2.4e-4}
    for dtype, share in said.items():
        assert abs(tolerance(dtype) / share - 1) < 0.05
