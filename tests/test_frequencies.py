"""Frequencies that depend on the length of the context are chosen once for a pass, by the family's own rule."""

import copy
import sys

import numpy as np
import pytest
import torch

from analysis.engine.check import adapt
from analysis.engine.head_scores import measured_scores
from analysis.engine.stream import open_lanes
from analysis.experiments.measures import measure
from analysis.families.frequencies import Rule
from analysis.families.positions import Rotary
from analysis.families.rotary import Adapted
from analysis.maps.atlas import Atlas
from analysis.maps.capture import capture
from analysis.maps.recent import head_map, head_row
from analysis.maps.region import Region
from analysis.maps.stretch import Stretch
from analysis.models.loading import load
from analysis.policies import Dense, Duo, Recompute, Shift, Streaming, Window, parse
from analysis.runs.spec import Spec

from .families import our_nll, own_nll, shared, words
from .naive import kept

pytestmark = pytest.mark.whole

ORIGINAL = 32
"""Tokens from which on the frequencies are others."""
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 3.0, 9.0, 20.0],
    "rope_theta": 1e4,
    "original_max_position_embeddings": ORIGINAL,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
VARIANTS = {
    "phi3, longrope": ("phi3", {"original_max_position_embeddings": ORIGINAL, "rope_parameters": LONGROPE}),
    "llama, dynamic": ("llama", {"max_position_embeddings": ORIGINAL, "rope_parameters": DYNAMIC}),
    "phimoe, mscale": (
        "phimoe",
        EXPERTS
        | {"original_max_position_embeddings": ORIGINAL, "sliding_window": None}
        | {"rope_parameters": LONGROPE | {"short_mscale": 1.2, "long_mscale": 1.9}},
    ),
}
TOKENS, LAYERS = 48, 2


def model_of(variant: str, **more):
    name, settings = VARIANTS[variant]
    return shared(name, **{"num_hidden_layers": LAYERS} | settings | more)


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def model_and_policy(request, tmp_path):
    """A model, and a policy as it is written; the heads of Duo come from a file, since a longer text could measure
    others."""
    name, written = request.param
    scores = tmp_path / "scores.txt"
    np.savetxt(scores, np.arange(2 * LAYERS).reshape(LAYERS, 2) % 3)
    return model_of(name), parse(written.replace("SCORES", str(scores)))


class ByTheRule:
    """One query after the other: the family's own module is asked for the positions of what this query meets, so that
    it chooses by the largest of them."""

    def __init__(self, model, count: int, sinks: int, window: int, step: int, *, by_slot: bool) -> None:
        self.rotary = next(m for n, m in model.named_modules() if type(m).__name__.endswith("RotaryEmbedding"))
        self.reach, self.by_slot = [kept(t, sinks, window, step) for t in range(count)], by_slot

    def attend(self, attention, query, key, value, *, scaling, **_):
        apply = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        outs = []
        for t, met in enumerate(self.reach):
            at = torch.arange(len(met)) if self.by_slot else torch.tensor(met) - met[0]
            cos, sin = copy.deepcopy(self.rotary)(query, at[None])
            _, k = apply(key[:, :, met], key[:, :, met], cos, sin)
            q, _ = apply(query[:, :, [t]], query[:, :, [t]], cos[:, -1:], sin[:, -1:])
            outs.append(torch.softmax(q @ k.transpose(-1, -2) * scaling, -1) @ value[:, :, met])
        return torch.cat(outs, 2).transpose(1, 2)


@pytest.mark.parametrize(
    ("policy", "sinks", "window", "by_slot"),
    [
        (Dense(), 0, 1000, True),
        (Window(44), 0, 44, True),
        (Window(20), 0, 20, True),
        (Streaming(4, 44), 4, 44, True),
        (Streaming(4, 20), 4, 20, True),
        (Streaming(4, 20, "text"), 4, 20, False),
        (Shift(36, 4), 4, 36, True),
    ],
    ids=str,
)
def test_every_token_gets_the_choice_of_its_own_context(variant, policy, sinks, window, by_slot):
    model, tokens = model_of(variant), words(TOKENS)
    fresh, adapted, ids = copy.deepcopy(model), adapt(model), torch.as_tensor(tokens)[None]
    reader = ByTheRule(fresh, TOKENS - 1, sinks, window, policy.step, by_slot=by_slot)
    logits = adapted.forward(ids[:, :-1], reader)[0]
    expected = -torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0]
    for chunk in (7, ORIGINAL + 1, 512):
        np.testing.assert_allclose(our_nll(model, tokens, chunk, policy), expected, atol=1e-4)


@pytest.mark.parametrize("positions", ["cache", "text"])
def test_slots_that_are_ranked_by_when_they_came_equal_sinks_and_window(variant, positions):
    """Which is held to the family's own rule above: past the length at which frequencies change, and with evictions."""
    model, tokens = model_of(variant), words(TOKENS)
    expected = our_nll(model, tokens, 512, Streaming(4, 30, positions))
    for chunk in (7, ORIGINAL + 1, 512):
        ranked = our_nll(model, tokens, chunk, parse(f"late:budget=34,sinks=4,start=0,positions={positions}"))
        np.testing.assert_allclose(ranked, expected, atol=1e-4)


@pytest.mark.parametrize("positions", ["cache", "text"])
def test_heads_that_share_a_budget_evenly_equal_heads_that_each_have_one(variant, positions):
    """Which stand in one row, past the length at which frequencies change; with a budget for all tokens it is dense."""
    model, tokens = model_of(variant), words(TOKENS)
    settings = f"recent=4,kernel=3,pooling=mean,positions={positions}"
    of_heads = our_nll(model, tokens, 7, parse(f"snapkv:budget=36,{settings}"))
    shared_out = our_nll(model, tokens, 7, parse(f"adakv:budget=36,floor=100,{settings}"))
    np.testing.assert_allclose(shared_out, of_heads, atol=1e-4)
    whole = our_nll(model, tokens, 7, parse(f"adakv:budget={TOKENS},{settings}"))
    np.testing.assert_allclose(whole, our_nll(model, tokens, 7), atol=1e-4)


def test_with_one_layer_dense_equals_the_familys_own_pass_over_every_prefix(variant):
    """Keys of the first layer depend on no frequencies, so nothing that was read earlier can differ."""
    model, tokens = model_of(variant, num_hidden_layers=1), words(TOKENS)
    fresh = copy.deepcopy(model)
    expected = [nll_of(unmet(fresh, model), tokens[:end], tokens[end]) for end in range(1, TOKENS)]
    for chunk in (1, 16, 512):
        np.testing.assert_allclose(our_nll(model, tokens, chunk), expected, atol=1e-5)


def unmet(copied, model):
    """A copy of a model, as if it had met no text yet: what it remembers of one is in its rotary module."""
    copied.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    return copied


def nll_of(model, prefix, token) -> float:
    logits = model(torch.as_tensor(prefix)[None], use_cache=False).logits[0, -1]
    return -float(torch.log_softmax(logits.float(), -1)[int(token)])


@pytest.mark.parametrize("window", [40, 28])
@pytest.mark.parametrize("stride", [1, 3])
def test_recompute_equals_the_familys_own_pass_over_its_window(variant, window, stride):
    model, tokens = model_of(variant), words(TOKENS)
    expected, fresh = [], copy.deepcopy(model)
    for i in range(1, TOKENS):
        # The whole stride is encoded at once, of which the first predicted tokens see a part.
        begin = 0 if i <= window else i - window - (i - window - 1) % stride
        stop = i if i <= window else begin + window + stride - 1
        whole = torch.as_tensor(np.resize(tokens, stop + 1)[begin:stop])[None]
        logits = unmet(fresh, model)(whole, use_cache=False).logits[0, i - 1 - begin]
        expected.append(-float(torch.log_softmax(logits.float(), -1)[int(tokens[i])]))
    for chunk in (1, 512):
        np.testing.assert_allclose(our_nll(model, tokens, chunk, Recompute(window, stride)), expected, atol=1e-4)


POLICIES = (
    "dense",
    "window:window=44",
    "window:window=12",
    "streaming:sinks=4,window=40",
    "streaming:sinks=4,window=12",
    "streaming:sinks=4,window=12,positions=text",
    "streaming:sinks=4,window=40,positions=none",
    "streaming:sinks=4,window=40,positions=naive",
    "shift:keep=4,window=36",
    "recompute:window=40,stride=3",
    "h2o:budget=40,recent=8",
    "h2o:budget=12,recent=4,positions=text",
    "tova:budget=40,interval=4,positions=cache",
    "pyramid:budget=36,sinks=2,recent=4,steepness=2",
    "duo:full=50,sinks=2,window=12,scores=SCORES",
    "duo:full=0,sinks=2,window=12,positions=cache",
)


# Every policy on one family, and on the others one policy of each kind.
KINDS = (
    "dense",
    "streaming:sinks=4,window=12,positions=text",
    "h2o:budget=40,recent=8",
    "recompute:window=40,stride=3",
)
EACH = [(name, p) for name in VARIANTS for p in POLICIES if name == "phi3, longrope" or p in KINDS]


@pytest.mark.parametrize("model_and_policy", EACH, indirect=True, ids=lambda each: "-".join(each))
def test_the_chunk_changes_nothing_and_decoding_equals_reading(model_and_policy):
    (model, policy), tokens = model_and_policy, words(TOKENS)
    expected = our_nll(model, tokens, 1, policy)
    np.testing.assert_allclose(our_nll(model, tokens, 512, policy), expected, atol=1e-4)
    lane = open_lanes(model, tokens[:20], [policy])[0]
    if policy == Dense():
        lane.context.trace()
    while not lane.done:
        lane.read(16)
    got = [lane.next(lambda _, token=token: int(token)).nll[0] for token in tokens[20:]]
    np.testing.assert_allclose(got, expected[19:], atol=1e-4)


@pytest.mark.parametrize(("full", "same"), [(0, Streaming(2, 12)), (100, Dense())])
def test_heads_of_a_kind_that_there_are_none_of_make_no_context_longer(variant, full, same):
    model, tokens = model_of(variant), words(TOKENS)
    wanted = our_nll(model, tokens, 16, same)
    np.testing.assert_allclose(our_nll(model, tokens, 16, Duo(full, 2, 12, "cache")), wanted, atol=1e-4)


def test_a_snapshot_from_before_the_change_goes_on_as_if_nothing_had_come_after(variant):
    model, tokens = model_of(variant), words(TOKENS)
    expected = our_nll(model, tokens, 16, Streaming(4, 40))
    lane = open_lanes(model, tokens[:28], [Streaming(4, 40)])[0]
    while not lane.done:
        lane.read(16)
    snapshot = lane.snapshot()
    for _ in range(2):
        lane.restore(snapshot)
        got = [lane.next(lambda _, token=token: int(token)).nll[0] for token in tokens[28:]]
        np.testing.assert_allclose(got, expected[27:], atol=1e-4)


def test_first_tokens_that_are_encoded_again_are_those_that_were_read(variant):
    """Also where they go on past the length at which frequencies change."""
    lane = open_lanes(model_of(variant), words(TOKENS), [Dense()])[0]
    while not lane.done:
        lane.read(7)
    for count in (ORIGINAL, ORIGINAL + 1, TOKENS - 1):
        context = open_lanes(model_of(variant), words(TOKENS), [Dense()])[0].context
        for layer, (keys, values) in zip(lane.store.layers, context.prefix(count), strict=True):
            torch.testing.assert_close(keys, layer.keys.view()[:, :count], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(values, layer.values.view()[:, :count], atol=1e-4, rtol=1e-4)


MAPPED = [each for each in EACH if not each[1].startswith("recompute")]


@pytest.mark.parametrize("model_and_policy", MAPPED, indirect=True, ids=lambda each: "-".join(each))
def test_rows_of_maps_sum_to_one_and_to_the_sink_mass_of_reading(model_and_policy):
    model, policy = model_and_policy
    lane = open_lanes(model, words(TOKENS), [policy], history=TOKENS)[0]
    mass = []
    while not lane.done:
        mass.append(lane.read(16).sink_mass)
    mass = np.concatenate(mass, -1)
    layer, head = 1, 1
    for token in (10, 31, 33, 45):
        row = head_row(lane, layer, head, token)
        if row is None:
            continue
        assert row.weights.sum() == pytest.approx(1, abs=1e-5)
        assert row.weights[row.positions < 4].sum() == pytest.approx(mass[layer, head, token], abs=1e-5)
    drawn = head_map(lane, layer, head)
    early = drawn.first + np.flatnonzero(~np.isnan(drawn.sinks).all(1))
    given = np.nansum(drawn.sinks, 1)[early - drawn.first]
    np.testing.assert_allclose(given, mass[layer, head, early], atol=1e-5)


@pytest.mark.parametrize("policy", ["dense", "streaming:sinks=4,window=40", "window:window=40"])
def test_maps_of_tokens_decoded_beyond_the_change_are_those_of_tokens_read(variant, policy):
    """Those of one stretch of decoded tokens have one length, though the frequencies change among them."""
    model, tokens = model_of(variant), words(TOKENS)
    read, decoded = (open_lanes(model, of, [parse(policy)], history=TOKENS)[0] for of in (tokens, tokens[:20]))
    for lane in (read, decoded):
        while not lane.done:
            lane.read(16)
    for token in tokens[20:]:
        decoded.next(lambda _, token=token: int(token))
    one, other = (head_map(lane, 1, 1, 30) for lane in (read, decoded))
    assert one.first == other.first < ORIGINAL - 10
    np.testing.assert_allclose(other.weights, one.weights, atol=1e-5)
    np.testing.assert_allclose(other.sinks, one.sinks, atol=1e-5)


@pytest.mark.parametrize("policy", ["dense", "streaming:sinks=4,window=40", "streaming:sinks=4,window=12"])
def test_maps_of_a_captured_stretch_sum_to_one(variant, policy, tmp_path):
    model_of(variant).save_pretrained(tmp_path / "model")
    model, tokens = load(str(tmp_path / "model"), device="cpu"), words(TOKENS)
    for _ in capture(model, tokens, Spec("tiny", "words", (policy,)), tmp_path / "stretch", chunk=16):
        pass
    count = TOKENS - 1
    atlas = Atlas(Stretch(tmp_path / "stretch"), model)
    drawn = atlas.draw(1, 1, Region((0, count), (0, count)))
    np.testing.assert_allclose(np.nansum(drawn, 1), 1, atol=1e-5)
    lane = open_lanes(model, tokens, [parse(policy)])[0]
    mass = np.concatenate([step.sink_mass for step in iter_steps(lane)], -1)
    np.testing.assert_allclose(np.nansum(drawn[:, :4], 1), mass[1, 1], atol=1e-5)


def iter_steps(lane):
    while not lane.done:
        yield lane.read(16)


def test_a_sample_is_measured_as_the_family_reads_it_whole(variant):
    model, tokens = model_of(variant), words(TOKENS)
    attentions = copy.deepcopy(model)(torch.as_tensor(tokens)[None], use_cache=False, output_attentions=True).attentions
    expected = np.stack([a[0, :, :, 0].mean(-1).numpy() for a in attentions])
    measured = next(measure(adapt(model), tokens[None].astype(np.int32)))
    np.testing.assert_allclose(measured.heads["alpha"][0], expected, atol=1e-5)


def test_heads_are_rated_as_the_family_reads_the_text_whole(variant):
    model, tokens = model_of(variant), words(TOKENS)
    attentions = copy.deepcopy(model)(torch.as_tensor(tokens)[None], use_cache=False, output_attentions=True).attentions
    context = open_lanes(model, tokens, [Dense()])[0].context
    kv_heads = context.model.kv_heads
    expected = [a[0, :, 4:, :4].sum(-1).mean(-1).view(kv_heads, -1).mean(-1).numpy() for a in attentions]
    np.testing.assert_allclose(measured_scores(context), expected, atol=1e-5)


def test_asking_about_far_positions_changes_no_later_answer(variant):
    """Dynamic NTK remembers the longest text that it has seen, and the longest may have been another lane's."""
    model, tokens = model_of(variant), words(20)
    expected = own_nll(copy.deepcopy(model), tokens)
    adapted = adapt(model)
    model(torch.as_tensor(words(200))[None], use_cache=False)
    our_nll(adapted, words(200), 64)
    np.testing.assert_allclose(our_nll(adapted, tokens, 16), expected, atol=1e-5)


def test_a_rule_says_which_lengths_are_alike():
    rule = Rule(steps=(4,), growing=6)
    assert [rule.regime(n) for n in range(1, 9)] == [1, 1, 1, 1, 5, 5, 7, 8]
    assert [rule.regime_end(n) for n in range(1, 9)] == [4, 4, 4, 4, 6, 6, 7, 8]
    assert Rule().regime(1000) == 1 and Rule().regime_end(1000) is None


def test_equal_factors_for_short_and_long_contexts_are_no_rule():
    """Llama 3's own scaling comes from a GGUF file as such."""
    same = LONGROPE | {"long_factor": LONGROPE["short_factor"]}
    name, settings = VARIANTS["phi3, longrope"]
    model, tokens = shared(name, **settings | {"rope_parameters": same}), words(TOKENS)
    assert not adapt(model).positions.rule
    np.testing.assert_allclose(our_nll(model, tokens, 16), own_nll(model, tokens), atol=1e-5)


def test_a_rule_that_is_not_known_is_refused(tiny_llama, monkeypatch):
    rotary = type(tiny_llama.model.rotary_emb)
    own = rotary.forward

    def by_the_largest(self, x, position_ids):
        cos, sin = own(self, x, position_ids)
        return (cos, sin) if position_ids.max() < 5000 else (2 * cos, 2 * sin)

    monkeypatch.setattr(rotary, "forward", by_the_largest)
    with pytest.raises(ValueError, match="depend on the length of the text by a rule that is not known"):
        adapt(tiny_llama)


def test_keys_that_cannot_be_rotated_again_end_where_the_frequencies_change():
    rope = DYNAMIC | {"factor": 2.0}
    model, tokens = shared("hunyuan_v1_dense", max_position_embeddings=ORIGINAL, rope_parameters=rope), words(TOKENS)
    short = tokens[:ORIGINAL]
    np.testing.assert_allclose(our_nll(model, short, 16), own_nll(model, short), atol=1e-5)
    with pytest.raises(ValueError, match=f"rotates alike no more than {ORIGINAL} positions.*choose recompute"):
        open_lanes(model, tokens, [Dense()])
    lane = open_lanes(model, tokens[:ORIGINAL], [Dense()])[0]
    while not lane.done:
        lane.read(16)
    lane.next(lambda _: 5)
    with pytest.raises(ValueError, match="read no more of them"):
        lane.next(lambda _: 5)


def test_frequencies_are_chosen_once_for_all_layers_of_a_pass(variant, monkeypatch):
    """No layer asks for them again: what one length needs is made when it is first met."""
    made = []
    own = Rotary.angles
    monkeypatch.setattr(Rotary, "angles", lambda self, *a: made.append(self.module) or own(self, *a))
    lane = open_lanes(model_of(variant), words(TOKENS), [Window(12)])[0]
    made.clear()
    lane.read(512)
    assert isinstance(lane.context.model, Adapted) and len(set(map(id, made))) == 1
