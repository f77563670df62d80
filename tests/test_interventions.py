"""What-ifs equal attention that is changed on whole matrices, whatever the policy and however the text is read."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.engine.context import SharedContext
from analysis.engine.lane import Lane
from analysis.engine.layers.ranked import RankedLayer
from analysis.engine.stream import open_lanes, stream
from analysis.maps.recent import head_map, head_row
from analysis.policies import Dense, Recompute, Streaming, Window, parse
from analysis.texts import read as text
from analysis.texts import tokenize

from .families import few_layers, our_nll, shared, twin, words
from .naive import kept, standing
from .switching import beside, read_both, switch_both

CHANGES = [
    {"softmax": "off-by-one"},
    {"softmax": "logit", "logit": 2.5},
    {"softmax": "logit", "logit": 2.5, "heads": "0.1 1.3"},
    {"knockout": "values"},
    {"knockout": "weights"},
    {"knockout": "values", "heads": "1.2 0.0"},
    {"knockout": "weights", "heads": "0.1 0.3 1.2", "softmax": "off-by-one"},
]


BENT = (Dense, ()), (Window, (12,)), (Streaming, (4, 12))
CASES = [
    (("llama", "gpt_oss")[(i + j) % 2], policy, changed)
    for i, policy in enumerate(BENT)
    for j, changed in enumerate(CHANGES)
]
"""Every policy with every change, and both families with each of these."""


class Changed:
    """One query after the other over the keys that it is to meet, with the change written out."""

    def __init__(self, model, policy, count):
        self.model, self.policy = model, policy
        self.reach = [kept(t, policy.sinks, 10_000 if policy.window is None else policy.window) for t in range(count)]

    def attend(self, attention, query, key, value, *, scaling=None, s_aux=None, **_):
        model, policy, groups = self.model, self.policy, query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        outs, at = [], standing(model, attention, len(self.reach))
        for t, positions in enumerate(self.reach):
            slots = torch.arange(len(positions))
            k = model.rotate(attention, key[:, :, positions], at(slots))
            q = model.rotate(attention, query[:, :, [t]], at(slots[-1:]))
            e = (q @ k.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5))[0, :, 0].exp()
            below = e.sum(-1)
            if s_aux is not None:
                below = below + s_aux.exp()
            changed = [
                policy.heads == "all" or f"{attention.layer_idx}.{head}" in policy.heads.split()
                for head in range(len(below))
            ]
            if policy.softmax != "ordinary":
                below[changed] += np.exp(policy.logit if policy.softmax == "logit" else 0)
            weights, v = e / below[:, None], value[0, :, positions].clone()
            early = torch.tensor([p < 4 for p in positions])
            for head in np.flatnonzero(changed):
                if early.all():
                    continue
                if policy.knockout == "values":
                    v[head, early] = 0
                if policy.knockout == "weights":
                    left = 1 - weights[head, early].sum()
                    weights[head, early] = 0
                    weights[head] /= left
            outs.append((weights[:, None] @ v)[None])
        return torch.cat(outs, 2).transpose(1, 2)


def expected(model, tokens, policy):
    adapted, ids = open_lanes(model, tokens, [policy])[0].context.model, torch.as_tensor(tokens)[None]
    logits = adapted.forward(ids[:, :-1], Changed(adapted, policy, len(tokens) - 1))[0]
    return -torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()


@functools.cache
def unchanged(family, policy, **more):
    """What a family's lane makes of fifty words without a change: one reading for all changes."""
    return our_nll(shared(family, **more), words(50), 16, policy)


@pytest.mark.parametrize(("family", "policy", "changed"), CASES, ids=str)
def test_changed_attention_equals_whole_matrices(family, policy, changed):
    # gpt_oss's own windows are longer than this text.
    more = {"num_hidden_layers": 2} | ({"sliding_window": 512} if family == "gpt_oss" else {})
    model, tokens = shared(family, **more), words(50)
    straight, policy = policy[0](*policy[1]), policy[0](*policy[1], **changed)
    wanted = expected(model, tokens, policy)
    assert np.abs(wanted - unchanged(family, straight, **more)).max() > 1e-3
    for chunk in (1, 16):
        np.testing.assert_allclose(our_nll(model, tokens, chunk, policy), wanted, atol=1e-4)
    lane = open_lanes(model, tokens[:25], [policy])[0]
    lane.context.trace()
    while not lane.done:
        lane.read(16)
    for kv_chunk in (None, 5):
        before = lane.snapshot()
        got = [lane.next(lambda _, token=token: int(token), kv_chunk=kv_chunk).nll[0] for token in tokens[25:]]
        np.testing.assert_allclose(got, wanted[24:], atol=1e-4)
        lane.restore(before)


@pytest.mark.parametrize("changed", CHANGES, ids=str)
def test_ranked_lanes_bend_too(changed):
    """All is protected that sinks + window keep, so it must be the same."""
    model, tokens = few_layers("llama"), words(48)
    settings = ",".join(f"{k}={v}" for k, v in changed.items())
    ranked = our_nll(model, tokens, 16, parse(f"knorm:budget=17,sinks=4,recent=13,skip=0,positions=cache,{settings}"))
    np.testing.assert_allclose(ranked, our_nll(model, tokens, 16, Streaming(4, 13, **changed)), atol=1e-4)


@pytest.mark.parametrize("changed", CHANGES, ids=str)
def test_recompute_bends_the_texts_first_tokens_only(changed):
    model, tokens = few_layers("llama"), words(48)
    got, plain = (our_nll(model, tokens, 16, Recompute(20, 1, **more)) for more in (changed, {}))
    np.testing.assert_allclose(got[:15], our_nll(model, tokens, 16, Dense(**changed))[:15], atol=1e-5)
    if "knockout" in changed and "softmax" not in changed:
        # Windows that begin behind the first tokens have none of them.
        np.testing.assert_allclose(got[25:], plain[25:], atol=1e-5)
    else:
        assert np.abs(got[25:] - plain[25:]).max() > 1e-3


def test_only_heads_that_got_the_extra_sink_have_its_column(tiny_llama):
    lane = open_lanes(tiny_llama, words(), [Dense(softmax="off-by-one", heads="1.2")], history=64)[0]
    while not lane.done:
        lane.read(16)
    assert (head_map(lane, 1, 2, 20).learned > 0).all()
    for other in ((1, 1), (0, 2)):
        assert head_map(lane, *other, 20).learned is None


@pytest.mark.parametrize("policy", [Streaming(4, 12), Dense(), parse("h2o:budget=16,recent=5")], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_maps_have_the_extra_sink_as_their_own_column(family, policy):
    tokens, settings = words(60), {"softmax": "logit", "logit": 1.5}
    lane = open_lanes(shared(family), tokens, [replace(policy, **settings)], history=64)[0]
    steps = []
    while not lane.done:
        steps.append(lane.read(8))
    drawn = head_map(lane, 1, 2, 20)
    mass = np.concatenate([s.sink_mass for s in steps], -1)[1, 2, -20:]
    np.testing.assert_allclose(np.nansum(drawn.sinks, 1), mass, atol=1e-4)
    assert (drawn.learned > 0.01).all()
    row = head_row(lane, 1, 2, 50)
    np.testing.assert_allclose(row.weights.sum() + row.learned, 1, atol=1e-5)


def test_long_past_of_a_dense_lane_bends(tiny_llama):
    """Beyond what is read in one piece; a chunk of everything is the reference."""
    tokens = np.resize(words(), 2300)
    for changed in CHANGES[:4]:
        policy = Dense(**changed)
        whole = our_nll(tiny_llama, tokens, 2300, policy)
        np.testing.assert_allclose(our_nll(tiny_llama, tokens, 128, policy), whole, atol=1e-4)


def test_heads_that_look_at_nothing_but_the_sink_can_lose_it(embedded):
    """A head whose whole weight is on the first token leaves others of 1e-30, which are still compared."""
    tokens = tokenize(text("hamlet"), embedded.tokenizer, limit=200)
    for policy in (Streaming(4, 60, knockout="weights"), parse("h2o:budget=64,recent=32,interval=16,knockout=weights")):
        lane = open_lanes(embedded, tokens, [policy])[0]
        while not lane.done:
            assert np.isfinite(lane.read(64).nll).all()


def test_a_logit_that_weighs_nothing_changes_nothing(tiny_llama):
    tokens = words()
    np.testing.assert_allclose(
        our_nll(tiny_llama, tokens, 16, Dense(softmax="logit", logit=-20.0)),
        our_nll(tiny_llama, tokens, 16),
        atol=1e-5,
    )


def test_a_lane_is_bent_and_straightened_while_it_reads(tiny_llama):
    lane = open_lanes(tiny_llama, words(90), [Streaming(4, 12)])[0]
    reference = beside(lane)
    read_both(lane, reference, 40)
    switch_both(lane, reference, Streaming(4, 12, knockout="values"))
    assert lane.policy.label == "Sinks + window 4 + 12, sink values zero"
    read_both(lane, reference, 20)
    switch_both(lane, reference, Streaming(4, 12))
    read_both(lane, reference, 20)


def test_heads_that_do_not_exist_are_named(tiny_llama):
    with pytest.raises(ValueError, match=r"there is no head 3\.0: layers are 0 to 2, heads 0 to 3"):
        open_lanes(tiny_llama, words(), [Dense(knockout="values", heads="0.1 3.0")])
    lane = open_lanes(tiny_llama, words(), [Dense()])[0]
    with pytest.raises(ValueError, match="there is no head"):
        lane.switch(Dense(knockout="values", heads="0.4"))
    assert lane.policy == Dense()


@pytest.mark.parametrize("text", ["streaming:knockout=values,heads=3.1 4.2", "h2o:softmax=logit,logit=-1.5", "dense"])
def test_interventions_are_written_only_where_they_intervene(text):
    policy = parse(text)
    assert parse(str(policy)) == policy
    assert ("softmax" in str(policy)) == ("softmax" in text) and ("knockout" in str(policy)) == ("knockout" in text)


class Positioned:
    """Sinks + window, where every query and key stands where a rule puts it."""

    def __init__(self, model, policy, count):
        self.model, self.policy = model, policy
        self.reach = [kept(t, policy.sinks, policy.window) for t in range(count)]

    def attend(self, attention, query, key, value, *, scaling=None, **_):
        model, policy, groups = self.model, self.policy, query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        most, outs, angles = policy.sinks + policy.window, [], standing(model, attention, len(self.reach))

        def at(x, positions):
            return model.rotate(attention, x, angles(positions))

        for t, positions in enumerate(self.reach):
            q = query[:, :, [t]]
            if policy.positions == "naive":
                counted = [min(p, most) for p in positions]
                s = at(q, [min(t, most)]) @ at(key[:, :, positions], counted).transpose(-1, -2)
            else:
                s = at(q, [t]) @ at(key[:, :, positions], positions).transpose(-1, -2)
                first = [p for p in positions if p < policy.sinks]
                s[..., : len(first)] = q @ key[:, :, first].transpose(-1, -2)
            outs.append(torch.softmax(s * (scaling or query.shape[-1] ** -0.5), -1) @ value[:, :, positions])
        return torch.cat(outs, 2).transpose(1, 2)


@pytest.mark.parametrize(
    "policy", [Streaming(4, 12, "none"), Streaming(4, 12, "naive"), Streaming(0, 12, "naive")], ids=str
)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mpt"])
def test_positions_counted_otherwise_equal_the_rule(family, policy):
    model, tokens = few_layers(family), words(48)
    adapted, ids = open_lanes(model, tokens, [policy])[0].context.model, torch.as_tensor(tokens)[None]
    logits = adapted.forward(ids[:, :-1], Positioned(adapted, policy, len(tokens) - 1))[0]
    wanted = -torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
    for chunk in (1, 16):
        np.testing.assert_allclose(our_nll(model, tokens, chunk, policy), wanted, atol=1e-4)
    lane = open_lanes(model, tokens[:25], [policy], history=64)[0]
    while not lane.done:
        lane.read(16)
    steps = [lane.next(lambda _, token=token: int(token)) for token in tokens[25:]]
    np.testing.assert_allclose([s.nll[0] for s in steps], wanted[24:], atol=1e-4)
    lane.settle()
    drawn = head_map(lane, 1, 2, 20)
    assert drawn.learned is None
    np.testing.assert_allclose(np.nansum(drawn.sinks, 1), [s.sink_mass[1, 2, 0] for s in steps[-20:]], atol=1e-4)


NEWLINE = 5


class Tokenizer:
    """What a lane asks of a tokenizer: every text is the same few words."""

    bos_token_id = 7

    def __call__(self, content, **_):
        return {"input_ids": [3, NEWLINE] if content == "\n" else list(range(40, 60))}


REPLACED = {"newlines": [NEWLINE] * 4, "bos": [7], "macbeth": [40, 41, 42, 43]}
STREAMING, RANKED = "streaming:sinks=4,window=12", "h2o:budget=16,recent=5"
HOLDERS = ["dense", "window:window=12", "recompute:window=12,stride=4", STREAMING, RANKED]


def opened(model, tokens, policy, history=0):
    context = SharedContext(twin(model), np.asarray(tokens, np.int32), 4, history, tokenizer=Tokenizer())
    return Lane(0, parse(policy), context)


def rest(lane, chunk=16):
    steps = []
    while not lane.done:
        steps.append(lane.read(chunk))
    return np.concatenate([s.nll for s in steps]), steps


@pytest.mark.parametrize("first", REPLACED)
@pytest.mark.parametrize("policy", HOLDERS)
def test_a_lane_reads_other_first_tokens_as_if_the_text_began_with_them(policy, first):
    model, tokens, others = shared("llama"), np.random.default_rng(1).permutation(90)[:60], REPLACED[first]
    replaced = np.concatenate((others, tokens[len(others) :]))
    wanted = our_nll(model, replaced, 16, parse(policy))
    joint = "," if ":" in policy else ":"
    got, _ = rest(opened(model, tokens, f"{policy}{joint}first={first}"))
    # What is predicted of the first tokens is the text's own.
    np.testing.assert_allclose(got[len(others) - 1 :], wanted[len(others) - 1 :], atol=1e-5)
    straight, _ = rest(opened(model, tokens, policy))
    assert np.abs(got[8:12] - straight[8:12]).max() > 1e-3


@pytest.mark.parametrize("sinks", [0, 1, 6])
def test_as_many_first_tokens_are_others_as_the_policy_has_sinks(sinks, monkeypatch):
    tokens, count = words(30), sinks or 4
    for first, others in (("newlines", [NEWLINE] * count), ("macbeth", list(range(40, 40 + count))), ("bos", [7])):
        for policy in ("streaming:window=12,sinks", "h2o:budget=20,recent=5,sinks", "duo:window=12,sinks"):
            lane = opened(shared("llama"), tokens, f"{policy}={sinks},first={first}")
            assert lane.ids.tolist() == [*others, *tokens[len(others) :]]
    # A text may be shorter than what is put first.
    lane = opened(shared("llama"), tokens[:3], "streaming:sinks=6,window=12,first=macbeth")
    assert lane.ids.tolist() == [40, 41, 42]
    # The other text is read once, and not for every pass.
    monkeypatch.setattr("analysis.texts.play", None)
    assert lane.ids.tolist() == [40, 41, 42]


@pytest.mark.parametrize("policy", ["dense", STREAMING, RANKED])
def test_first_tokens_are_exchanged_while_a_lane_reads(policy):
    """Held are the keys and values of the others, and back they are the text's own."""
    model, tokens = shared("llama"), np.random.default_rng(1).permutation(90)[:60]
    lane = opened(model, tokens, policy, history=64)
    lane.read(30)
    own = lane.context.prefix(4)
    joint = "," if ":" in policy else ":"
    lane.switch(parse(f"{policy}{joint}first=macbeth"))
    others = lane.context.prefix(4, "macbeth", 4)
    for cache, (keys, values) in zip(lane.store.layers, others, strict=True):
        held = cache if policy.startswith("h2o") else RankedLayer.of(cache, 30)
        for head in range(len(keys)):
            for slot, position in enumerate(held.positions[head].tolist()):
                if position < 4:
                    torch.testing.assert_close(held.keys[head, slot], keys[head, position])
                    torch.testing.assert_close(held.values[head, slot], values[head, position])
    assert any((o[0] - k[0]).abs().max() > 1e-3 for o, k in zip(own, others, strict=True))
    changed = lane.read(10).nll
    lane.switch(parse(policy))
    for cache, (keys, _) in zip(lane.store.layers, own, strict=True):
        if not policy.startswith("h2o"):
            torch.testing.assert_close(RankedLayer.of(cache, 40).keys[:, :4], keys)
    lane = opened(model, tokens, policy)
    lane.read(30)
    assert np.abs(lane.read(10).nll - changed).max() > 1e-3


def test_sinks_of_another_text_are_pinned_where_a_window_has_none(tiny_llama):
    """As if they had been there from the beginning of the window's past: keys and values are the other text's."""
    tokens = words(90)
    lane = opened(tiny_llama, tokens, "window:window=12")
    reference = beside(lane)
    read_both(lane, reference, 40)
    switch_both(lane, reference, parse("streaming:sinks=4,window=12,first=macbeth"), pin=True)
    for cache, (keys, values) in zip(lane.store.layers, lane.context.prefix(4, "macbeth", 4), strict=True):
        torch.testing.assert_close(cache.sink_keys, keys)
        torch.testing.assert_close(cache.sink_values, values)
    assert lane.sinks == 4
    read_both(lane, reference, 40)


@pytest.mark.parametrize("policy", ["streaming:sinks=4,window=12,first=newlines", "dense:first=newlines"])
def test_answers_and_maps_have_the_other_first_tokens(tiny_llama, policy):
    tokens = words(60)
    read, steps = rest(opened(tiny_llama, tokens, policy))
    lane = opened(tiny_llama, tokens[:25], policy, history=64)
    rest(lane)
    said = [lane.next(lambda _, token=token: int(token)).nll[0] for token in tokens[25:]]
    np.testing.assert_allclose(said, read[24:], atol=1e-4)
    lane.settle()
    mass = np.concatenate([s.sink_mass for s in steps], -1)[1, 2, -20:]
    np.testing.assert_allclose(np.nansum(head_map(lane, 1, 2, 20).sinks, 1), mass, atol=1e-4)


def test_first_tokens_that_are_not_to_be_had_are_named(tiny_llama, embedded):
    with pytest.raises(ValueError, match="no tokenizer"):
        open_lanes(tiny_llama, words(), [Dense(first="newlines")])
    with pytest.raises(ValueError, match=r"there is no text 'macbet'.*macbeth"):
        open_lanes(embedded, words(), [Dense(first="macbet")])
    lane = opened(tiny_llama, words(), "dense")
    lane.context.tokenizer.bos_token_id = None
    with pytest.raises(ValueError, match="no token that begins a text"):
        lane.switch(Dense(first="bos"))
    assert lane.policy == Dense()


def test_newlines_are_as_good_as_sinks_as_the_texts_own(embedded):
    """StreamingLLM, Table 1: it is the position that matters and not the token."""
    tokens = tokenize(text("hamlet"), embedded.tokenizer, limit=700)
    own, newlines, without = (
        np.concatenate([s.nll for s in stream(embedded, tokens, [parse(p)])])[200:].mean()
        for p in ("streaming:sinks=4,window=60", "streaming:sinks=4,window=60,first=newlines", "window:window=64")
    )
    assert abs(newlines - own) < 0.1 * (without - own)
