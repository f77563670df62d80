"""What-ifs equal attention that is bent on whole matrices, whatever the policy and however the text is read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.families import adapt
from analysis.maps import head_map, head_row
from analysis.policies import Dense, Recompute, Streaming, Window, parse
from analysis.stream import open_lanes
from analysis.texts import read as text
from analysis.texts import tokenize

from .families import our_nll, tiny, words
from .naive import kept

BENT = [
    {"softmax": "off-by-one"},
    {"softmax": "logit", "logit": 2.5},
    {"softmax": "logit", "logit": 2.5, "heads": "0.1 2.3"},
    {"knockout": "values"},
    {"knockout": "weights"},
    {"knockout": "values", "heads": "1.2 3.0"},
    {"knockout": "weights", "heads": "0.1 0.3 2.2", "softmax": "off-by-one"},
]


class Bent:
    """One query after the other over the keys that it is to meet, with the change written out."""

    def __init__(self, model, policy, count):
        self.model, self.policy = model, policy
        self.reach = [kept(t, policy.sinks, 10_000 if policy.window is None else policy.window) for t in range(count)]

    def attend(self, attention, query, key, value, *, scaling=None, s_aux=None, **_):
        model, policy, groups = self.model, self.policy, query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        outs = []
        for t, places in enumerate(self.reach):
            slots = torch.arange(len(places))
            k = model.rotate(attention, key[:, :, places], model.angles(attention, slots))
            q = model.rotate(attention, query[:, :, [t]], model.angles(attention, slots[-1:]))
            e = (q @ k.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5))[0, :, 0].exp()
            below = e.sum(-1)
            if s_aux is not None:
                below = below + s_aux.exp()
            bent = [
                policy.heads == "all" or f"{attention.layer_idx}.{head}" in policy.heads.split()
                for head in range(len(below))
            ]
            if policy.softmax != "ordinary":
                below[bent] += np.exp(policy.logit if policy.softmax == "logit" else 0)
            weights, v = e / below[:, None], value[0, :, places].clone()
            early = torch.tensor([p < 4 for p in places])
            for head in np.flatnonzero(bent):
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
    adapted, ids = adapt(model), torch.as_tensor(tokens)[None]
    logits = adapted.forward(ids[:, :-1], Bent(adapted, policy, len(tokens) - 1))[0]
    return -torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()


@pytest.mark.parametrize("bent", BENT, ids=str)
@pytest.mark.parametrize("policy", [(Dense, ()), (Window, (12,)), (Streaming, (4, 12))], ids=lambda p: p[0].name)
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_bent_attention_equals_whole_matrices(family, policy, bent):
    # gpt_oss's own windows are longer than this text.
    model = tiny(family, **({"sliding_window": 512} if family == "gpt_oss" else {}))
    tokens, straight, policy = words(50), policy[0](*policy[1]), policy[0](*policy[1], **bent)
    wanted = expected(model, tokens, policy)
    assert np.abs(wanted - our_nll(model, tokens, 16, straight)).max() > 1e-3
    for chunk in (1, 16):
        np.testing.assert_allclose(our_nll(model, tokens, chunk, policy), wanted, atol=1e-4)
    lane = open_lanes(model, tokens[:25], [policy])[0]
    lane.source.trace()
    while not lane.done:
        lane.read(16)
    for kv_chunk in (None, 5):
        before = lane.snapshot()
        got = [lane.next(lambda _, token=token: int(token), kv_chunk=kv_chunk).nll[0] for token in tokens[25:]]
        np.testing.assert_allclose(got, wanted[24:], atol=1e-4)
        lane.restore(before)


@pytest.mark.parametrize("bent", BENT, ids=str)
def test_ranked_lanes_bend_too(bent):
    """All is safe that sinks + window keep, so it must be the same."""
    model, tokens = tiny("llama"), words(60)
    settings = ",".join(f"{k}={v}" for k, v in bent.items())
    ranked = our_nll(model, tokens, 16, parse(f"knorm:budget=17,sinks=4,recent=13,{settings}"))
    np.testing.assert_allclose(ranked, our_nll(model, tokens, 16, Streaming(4, 13, **bent)), atol=1e-4)


@pytest.mark.parametrize("bent", BENT, ids=str)
def test_recompute_bends_the_texts_first_tokens_only(bent):
    model, tokens = tiny("llama"), words(60)
    got, plain = (our_nll(model, tokens, 16, Recompute(20, 1, **more)) for more in (bent, {}))
    np.testing.assert_allclose(got[:15], our_nll(model, tokens, 16, Dense(**bent))[:15], atol=1e-5)
    if "knockout" in bent and "softmax" not in bent:
        # Windows that begin behind the first tokens have none of them.
        np.testing.assert_allclose(got[25:], plain[25:], atol=1e-5)
    else:
        assert np.abs(got[25:] - plain[25:]).max() > 1e-3


def test_only_heads_that_got_the_extra_sink_have_its_column(tiny_llama):
    lane = open_lanes(tiny_llama, words(), [Dense(softmax="off-by-one", heads="1.2")], hold=64)[0]
    while not lane.done:
        lane.read(16)
    assert (head_map(lane, 1, 2, 20).learned > 0).all()
    for other in ((1, 1), (0, 2)):
        assert head_map(lane, *other, 20).learned is None


@pytest.mark.parametrize("policy", [Streaming(4, 12), Dense(), parse("h2o:budget=16,recent=5")], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_maps_have_the_extra_sink_as_their_own_column(family, policy):
    tokens, settings = words(60), {"softmax": "logit", "logit": 1.5}
    lane = open_lanes(tiny(family), tokens, [replace(policy, **settings)], hold=64)[0]
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
    tokens = np.resize(words(), 3000)
    for bent in BENT[:4]:
        policy = Dense(**bent)
        whole = our_nll(tiny_llama, tokens, 3000, policy)
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
    tokens = words(90)
    lane = open_lanes(tiny_llama, tokens, [Streaming(4, 12)])[0]
    lane.read(40)
    lane.switch(Streaming(4, 12, knockout="values"))
    assert lane.policy.label == "Sinks + window 4 + 12, sink values zero"
    lane.read(20)
    lane.switch(Streaming(4, 12))
    assert np.isfinite(lane.read(20).nll).all()


def test_heads_that_do_not_exist_are_named(tiny_llama):
    with pytest.raises(ValueError, match=r"there is no head 3\.0: layers are 0 to 2, heads 0 to 3"):
        open_lanes(tiny_llama, words(), [Dense(knockout="values", heads="0.1 3.0")])
    lane = open_lanes(tiny_llama, words(), [Dense()])[0]
    with pytest.raises(ValueError, match="there is no head"):
        lane.switch(Dense(knockout="values", heads="0.4"))
    assert lane.policy == Dense()


@pytest.mark.parametrize("text", ["streaming:knockout=values,heads=3.1 4.2", "h2o:softmax=logit,logit=-1.5", "dense"])
def test_what_ifs_are_written_only_where_they_bend(text):
    policy = parse(text)
    assert parse(str(policy)) == policy
    assert ("softmax" in str(policy)) == ("softmax" in text) and ("knockout" in str(policy)) == ("knockout" in text)


class Placed:
    """Sinks + window, where every query and key stands where a rule puts it."""

    def __init__(self, model, policy, count):
        self.model, self.policy = model, policy
        self.reach = [kept(t, policy.sinks, policy.window) for t in range(count)]

    def attend(self, attention, query, key, value, *, scaling=None, **_):
        model, policy, groups = self.model, self.policy, query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        most, outs = policy.sinks + policy.window, []

        def at(x, places):
            return model.rotate(attention, x, model.angles(attention, torch.tensor(places)))

        for t, places in enumerate(self.reach):
            q = query[:, :, [t]]
            if policy.positions == "naive":
                s = at(q, [min(t, most)]) @ at(key[:, :, places], [min(p, most) for p in places]).transpose(-1, -2)
            else:
                s = at(q, [t]) @ at(key[:, :, places], places).transpose(-1, -2)
                first = [p for p in places if p < policy.sinks]
                s[..., : len(first)] = q @ key[:, :, first].transpose(-1, -2)
            outs.append(torch.softmax(s * (scaling or query.shape[-1] ** -0.5), -1) @ value[:, :, places])
        return torch.cat(outs, 2).transpose(1, 2)


@pytest.mark.parametrize(
    "policy", [Streaming(4, 12, "none"), Streaming(4, 12, "naive"), Streaming(0, 12, "naive")], ids=str
)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mpt"])
def test_places_put_otherwise_equal_the_rule(family, policy):
    model, tokens = tiny(family), words(60)
    adapted, ids = adapt(model), torch.as_tensor(tokens)[None]
    logits = adapted.forward(ids[:, :-1], Placed(adapted, policy, len(tokens) - 1))[0]
    wanted = -torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
    for chunk in (1, 16):
        np.testing.assert_allclose(our_nll(model, tokens, chunk, policy), wanted, atol=1e-4)
    lane = open_lanes(model, tokens[:25], [policy], hold=64)[0]
    while not lane.done:
        lane.read(16)
    steps = [lane.next(lambda _, token=token: int(token)) for token in tokens[25:]]
    np.testing.assert_allclose([s.nll[0] for s in steps], wanted[24:], atol=1e-4)
    lane.settle()
    drawn = head_map(lane, 1, 2, 20)
    assert drawn.learned is None
    np.testing.assert_allclose(np.nansum(drawn.sinks, 1), [s.sink_mass[1, 2, 0] for s in steps[-20:]], atol=1e-4)
