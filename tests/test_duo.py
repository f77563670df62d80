"""Heads of two kinds in one layer equal a reference that has all keys and a list of positions for every head."""

import os
import socket
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.engine.head_scores import full_heads, measured_scores
from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_map, head_row
from analysis.policies import Dense, Duo, Streaming, Window, parse
from analysis.policies.duo import rows_of
from analysis.texts import read as text
from analysis.texts import tokenize

from .families import few_layers, our_nll, shared, twin, words
from .naive import kept, standing
from .switching import beside, check_held, read_both, switch_both


class TwoKinds:
    """One query after the other; what it meets depends on its head."""

    def __init__(self, model, policy, full, count):
        self.model, self.policy, self.full = model, policy, full
        self.narrow = [kept(t, policy.sinks, policy.window) for t in range(count)]
        self.rows = {}

    def attend(self, attention, query, key, value, *, scaling=None, s_aux=None, **_):
        model, groups, layer = self.model, query.shape[1] // key.shape[1], attention.layer_idx
        out = torch.zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        rows = np.full((query.shape[1], query.shape[2], query.shape[2]), np.nan)
        angles = standing(model, attention, query.shape[2])
        for head in range(query.shape[1]):
            full, of = head // groups in self.full[layer], slice(head // groups, head // groups + 1)
            for t in range(query.shape[2]):
                positions = list(range(t + 1)) if full else self.narrow[t]
                at = positions if full or self.policy.positions == "text" else list(range(len(positions)))
                k = model.rotate(attention, key[:, of, positions], angles(at))
                q = model.rotate(attention, query[:, head : head + 1, t : t + 1], angles(at[-1:]))
                s = (q @ k.transpose(-1, -2))[0, 0, 0] * (scaling or query.shape[-1] ** -0.5)
                if s_aux is not None:
                    s = torch.cat((s, s_aux[head : head + 1]))
                if self.policy.softmax == "off-by-one" and self._bent(layer, head):
                    s = torch.cat((s, torch.zeros(1)))
                weights, v = torch.softmax(s, -1)[: len(positions)], value[0, of, positions][0].clone()
                if self.policy.knockout == "values" and t >= 4 and self._bent(layer, head):
                    v[[p < 4 for p in positions]] = 0
                rows[head, t, positions] = weights
                out[0, t, head] = weights @ v
        self.rows[layer] = rows
        return out

    def _bent(self, layer, head):
        return self.policy.heads == "all" or f"{layer}.{head}" in self.policy.heads.split()


def reference(model, tokens, policy):
    adapted = twin(model)
    full = full_heads(open_lanes(adapted, tokens, [policy])[0].context, policy)
    book, ids = TwoKinds(adapted, policy, full, len(tokens) - 1), torch.as_tensor(tokens)[None]
    logits = adapted.forward(ids[:, :-1], book)[0]
    return -torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy(), book


def finished(model, tokens, policy, chunk=16, history=0):
    lane = open_lanes(model, tokens, [policy], history=history)[0]
    steps = []
    while not lane.done:
        steps.append(lane.read(chunk))
    return lane, steps


SPLITS = [(25, "cache", 1), (25, "text", 2), (25, "cache", 4), (50, "text", 1), (50, "cache", 2), (50, "text", 4)]
SPLITS += [(75, "cache", 1), (75, "text", 2), (75, "text", 4)]
"""Shares of full heads, positions and sizes of groups: each of these with each of the others."""


@pytest.mark.parametrize(("full", "positions", "groups"), SPLITS)
def test_duo_equals_its_reference_without_a_cache(full, positions, groups):
    # As many layers as there must be for a quarter of the KV heads to be one.
    model, tokens = shared("llama", num_key_value_heads=4 // groups, num_hidden_layers=max(2, groups)), words(48)
    policy = Duo(full, 3, 9, positions)
    wanted, book = reference(model, tokens, policy)
    for chunk in (1, 16):
        lane, steps = finished(model, tokens, policy, chunk)
        np.testing.assert_allclose(np.concatenate([s.nll for s in steps]), wanted, atol=1e-4)
        mass = np.concatenate([s.sink_mass for s in steps], -1)
        expected = np.stack([np.nansum(book.rows[layer][..., :4], -1) for layer in sorted(book.rows)])
        np.testing.assert_allclose(mass, expected, atol=1e-5)
    heads = len(book.full) * 4 // groups
    held = sum(47 if head in own else 12 for own in book.full for head in range(4 // groups))
    assert lane.cache_bytes == steps[-1].cache_bytes[-1] == 2 * 8 * 4 * held
    assert steps[-1].cache_tokens[-1] == np.ceil(held / heads)
    assert sum(map(len, book.full)) == round(full / 100 * heads)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss", "phi", "falcon", "mpt"])
def test_any_family_can_be_split(family):
    model, tokens = few_layers(family), words(48)
    for policy in (Duo(0, 4, 12), Duo(100, 4, 12), Duo(50, 4, 100)):
        same = Streaming(4, 12, "text") if policy.full == 0 else Dense()
        np.testing.assert_allclose(our_nll(model, tokens, 16, policy), our_nll(model, tokens, 16, same), atol=1e-4)
    if family != "falcon":
        # A Falcon has one KV head a layer, and its reference would be of another shape.
        assert np.abs(our_nll(model, tokens, 16, Duo(50, 4, 12)) - our_nll(model, tokens, 16, Dense())).max() > 1e-4


@pytest.mark.parametrize(
    ("family", "heads", "changed"),
    [
        ("llama", "all", {"softmax": "off-by-one"}),
        ("llama", "0.1 1.2 2.3 2.0", {"knockout": "values"}),
        ("gpt_oss", "all", {"knockout": "values"}),
        ("gpt_oss", "0.1 1.2 2.3 2.0", {"softmax": "off-by-one"}),
    ],
)
def test_split_heads_bend_too(family, heads, changed):
    model = shared(family, **({"sliding_window": 512} if family == "gpt_oss" else {}))
    policy = Duo(50, 4, 12, heads=heads, **changed)
    wanted, _ = reference(model, words(50), policy)
    np.testing.assert_allclose(our_nll(model, words(50), 16, policy), wanted, atol=1e-4)


def test_answers_equal_reading(tiny_llama):
    # With scores given: what is measured depends on how much of the text there is when it is first read.
    tokens, policy = words(70), Duo(50, 4, 12, scores="0.1 0.9; 0.8 0.2; 0.3 0.7")
    wanted = our_nll(tiny_llama, tokens, 16, policy)
    lane = open_lanes(tiny_llama, tokens[:30], [policy], history=64)[0]
    lane.context.trace()
    while not lane.done:
        lane.read(16)
    before = lane.snapshot()
    for _ in range(2):
        got = [lane.next(lambda _, token=token: int(token)).nll[0] for token in tokens[30:]]
        np.testing.assert_allclose(got, wanted[29:], atol=1e-4)
        lane.restore(before)


def test_maps_show_what_each_head_reached(tiny_llama):
    tokens, policy = words(70), Duo(50, 4, 12)
    _, book = reference(tiny_llama, tokens, policy)
    lane, _ = finished(tiny_llama, tokens, policy, 7, history=30)
    for layer, head in np.ndindex(3, 4):
        drawn = head_map(lane, layer, head, 24)
        rows = book.rows[layer][head][drawn.first : drawn.first + len(drawn.weights)]
        np.testing.assert_allclose(drawn.weights, rows[:, drawn.first :], atol=1e-5)
        np.testing.assert_allclose(drawn.sinks, rows[:, :4], atol=1e-5)
        assert (
            head_row(lane, layer, head, 60).positions.tolist()
            == np.flatnonzero(~np.isnan(rows[60 - drawn.first])).tolist()
        )


@pytest.mark.parametrize(("count", "first", "last"), [(600, 4, 512), (200, 4, 200), (5, 4, 5), (4, 3, 4), (2, 1, 2)])
def test_heads_are_rated_by_what_later_queries_give_to_the_first_four_tokens(tiny_llama, count, first, last):
    """Over the first 512 tokens at most; where nothing comes later, by the newest query."""
    tokens = np.resize(words(90), count)
    rated = measured_scores(open_lanes(tiny_llama, tokens, [Duo()])[0].context)
    tiny_llama.set_attn_implementation("eager")
    with torch.no_grad():
        out = tiny_llama(torch.as_tensor(tokens)[None], output_attentions=True)
    given = [a[0, :, first:last, :4].sum(-1).mean(-1).view(2, 2).mean(-1) for a in out.attentions]
    np.testing.assert_allclose(rated, torch.stack(given), atol=1e-5)


@pytest.mark.parametrize("full", [0, 1, 37, 50, 99, 100])
def test_of_heads_that_are_rated_alike_the_first_ones_are_full(full):
    """As many as the share of all heads says, to the nearest whole number."""
    scores = np.arange(200).reshape(10, 20) // 50 % 2
    context = SimpleNamespace(once=lambda key, make: scores)
    best = sorted(range(200), key=lambda i: (-scores.flat[i], i))[: 2 * full]
    expected = [[i % 20 for i in sorted(best) if i // 20 == layer] for layer in range(10)]
    assert full_heads(context, Duo(full)) == expected


def test_without_full_heads_the_cache_has_an_end_and_can_be_given_a_budget():
    policy = Duo(full=0, sinks=3, window=9)
    _, steps = finished(shared("llama", num_hidden_layers=2), words(48), policy)
    assert policy.capacity == max(step.cache_tokens.max() for step in steps) == 12
    smaller = policy.at_budget(7)
    assert (smaller.capacity, smaller.sinks, smaller.window) == (7, 3, 4)
    with pytest.raises(ValueError, match="3 tokens leave no room for a window"):
        policy.at_budget(3)
    # One full head is enough for a cache that grows with the text.
    assert replace(policy, full=1).capacity is None
    with pytest.raises(ValueError, match="keeps more the more it reads, so it has no budget"):
        replace(policy, full=1).at_budget(7)


def test_full_heads_are_those_that_look_most_at_the_sinks(embedded):
    tokens = tokenize(text("hamlet"), embedded.tokenizer, limit=700)
    lane, _ = finished(embedded, tokens, Duo(30, 4, 60), 512)
    (step,) = finished(embedded, tokens[:513], Dense(), 512)[1]
    mass = step.sink_mass[..., 4:].mean(-1).reshape(30, 3, 3).mean(-1)
    chosen = np.zeros((30, 3), bool)
    for layer, own in enumerate(full_heads(lane.context, lane.policy)):
        chosen[layer, own] = True
    assert chosen.sum() == 27 and mass[chosen].min() >= mass[~chosen].max() - 1e-3


def test_heads_that_wait_on_the_sink_are_worth_more_than_the_others(embedded, tmp_path):
    tokens = tokenize(text("hamlet"), embedded.tokenizer, limit=700)
    rated = measured_scores(open_lanes(embedded, tokens, [Duo()])[0].context)
    np.savetxt(tmp_path / "reversed", -rated)
    most, least = (
        np.concatenate([s.nll for s in finished(embedded, tokens, Duo(30, 4, 60, scores=scores), 512)[1]]).mean()
        for scores in ("measured", str(tmp_path / "reversed"))
    )
    assert most < least - 0.05


def test_heads_are_given_as_a_file(tiny_llama, tmp_path):
    path = tmp_path / "heads.tsv"
    path.write_text("0.1\t0.9\n0.8\t0.2\n0.3\t0.7\n")
    policy = parse(f"duo:full=50,window=12,scores={path}")
    lane = open_lanes(tiny_llama, words(), [policy])[0]
    assert full_heads(lane.context, policy) == [[1], [0], [1]]
    np.savetxt(path, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="2 rows of 2 numbers, and this model has 3 layers of 2 KV heads"):
        open_lanes(tiny_llama, words(), [policy])
    with pytest.raises(ValueError, match="scores=measured"):
        lane.switch(parse("duo:scores=nowhere"))
    assert lane.policy == policy


def test_heads_are_given_as_numbers(tiny_llama):
    policy = parse("duo:full=50,window=12,scores=0.1 0.9; 0.8 2e-1; .3 0.7")
    assert full_heads(open_lanes(tiny_llama, words(), [policy])[0].context, policy) == [[1], [0], [1]]
    assert not policy.file and parse(str(policy)) == policy
    other = parse("duo:full=50,window=12,scores=0.9 0.1; 0.8 0.2; .3 0.7")
    both = open_lanes(tiny_llama, words(), [policy, other])
    assert [full_heads(lane.context, lane.policy) for lane in both] == [[[1], [0], [1]], [[0], [0], [1]]]
    assert policy.label != other.label and "0.1" not in policy.label
    # What a file holds can be said as numbers.
    text = "# learned\n0.1\t0.9\n\n0.8 2e-1\r\n.3 0.7\n"
    assert rows_of(text) == policy.scores
    for wrong in ("", "a b", "nan 1", "1,2", "0x10", "1e5000 1 1_0"):
        with pytest.raises(ValueError, match="no file of scores"):
            rows_of(wrong)
    with pytest.raises(ValueError, match="no number"):
        open_lanes(tiny_llama, words(), [parse("duo:scores=1e999 1; 1 1; 1 1")])


def test_a_file_of_scores_is_regular_local_and_small(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large").write_text("1 1\n" * 400_000)
    (tmp_path / "binary").write_bytes(b"\x80\x00\xff" * 9)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
    there = sorted(p.name for p in tmp_path.rglob("*"))
    for name in ("large", "binary", "folder", "pipe", "/dev/zero", "/dev/stdin", address, "x" * 5000, "~", "gone"):
        with pytest.raises(ValueError, match="cannot be read as numbers") as e:
            open_lanes(tiny_llama, words(), [parse(f"duo:scores={name}")])
        assert len(str(e.value)) < 300
    with pytest.raises(BlockingIOError):
        listening.accept()
    listening.close()
    assert sorted(p.name for p in tmp_path.rglob("*")) == there


@pytest.mark.parametrize(
    "other", ["dense", "window:window=20", "streaming:sinks=4,window=16", "h2o:budget=16,recent=5"]
)
def test_a_lane_becomes_split_and_whole_again(tiny_llama, other):
    lane = open_lanes(tiny_llama, words(200), [parse(other)], history=64)[0]
    reference = beside(lane)
    read_both(lane, reference, 40)
    switch_both(lane, reference, Duo(50, 4, 12))
    read_both(lane, reference, 40)
    assert lane.policy.store == "split" and lane.shares[-12:].min() == 1
    switch_both(lane, reference, parse(other))
    assert len({len(c) for c in lane.store.layers}) == 1
    check_held(lane, reference)
    read_both(lane, reference, 40)


@pytest.mark.parametrize(("before", "after"), [(50, 25), (25, 50)])
def test_another_share_of_full_heads_is_that_of_the_new_policy(tiny_llama, before, after):
    lane = open_lanes(tiny_llama, words(90), [Duo(before, 3, 9)], history=64)[0]
    reference = beside(lane)
    read_both(lane, reference, 40)
    policy = Duo(after, 3, 9)
    switch_both(lane, reference, policy)
    full = full_heads(lane.context, policy)
    assert [layer.names[0] for layer in lane.store.layers] == full != full_heads(lane.context, Duo(before, 3, 9))
    check_held(lane, reference)
    read_both(lane, reference, 20)


def test_switching_where_nothing_has_left_equals_having_begun_so(tiny_llama):
    tokens = words(90)
    for old in (Dense(), Streaming(4, 60), Duo(50, 2, 50, "cache")):
        switched = open_lanes(tiny_llama, tokens, [old])[0]
        switched.read(20)
        switched.switch(Duo(50, 4, 16))
        begun = open_lanes(tiny_llama, tokens, [Duo(50, 4, 16)])[0]
        begun.read(20)
        for _ in range(3):
            np.testing.assert_allclose(switched.read(20).nll, begun.read(20).nll, atol=1e-4)


def test_pinned_sinks_are_held_by_both_kinds_of_heads(tiny_llama):
    lane = open_lanes(tiny_llama, words(120), [Window(20)])[0]
    reference = beside(lane)
    read_both(lane, reference, 60)
    switch_both(lane, reference, Duo(50, 4, 16), pin=True)
    assert lane.sinks == 4
    prefix = lane.context.prefix(4)
    for cache, (keys, _) in zip(lane.store.layers, prefix, strict=True):
        for part, own in zip(cache.parts, cache.heads, strict=True):
            torch.testing.assert_close(part.sink_keys, keys[own])
    switch_both(lane, reference, Duo(50, 4, 16, first="own", knockout="values"))
    read_both(lane, reference, 20)
