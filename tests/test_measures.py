"""Measures of heads equal what eager attention says, in every family and for any number of samples at a time."""

import numpy as np
import pytest
import torch

from analysis import metrics
from analysis.experiments import measures
from analysis.experiments.measures import MEASURES, Measured, joined, measure, samples_of, separators_of

from .families import shared, twin


def eager(network, samples):
    network.set_attn_implementation("eager")
    with torch.no_grad():
        out = network(torch.as_tensor(samples), output_attentions=True, output_hidden_states=True)
    return torch.stack(out.attentions, 1).numpy(), [h.numpy() for h in out.hidden_states]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "gpt_neox", "gpt2"])
def test_measures_equal_those_of_whole_matrices(family, monkeypatch):
    network = shared(family)
    samples = np.random.default_rng(0).integers(0, 90, (5, 40))
    apart = np.arange(200) % 7 == 0
    W, hidden = eager(network, samples)
    monkeypatch.setattr(measures, "SAMPLES_PER_PASS", 2)
    adapted = twin(network)
    got = joined(list(measure(adapted, samples, first=3, separators=apart)))
    distance = np.arange(40)[:, None] - np.arange(40)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(np.where(W > 0, W * np.log(W), 0), -1)
    separated = np.stack([w[..., apart[ids]].sum(-1).mean(-1) for w, ids in zip(W, samples, strict=True)])
    wanted = {
        "sink_mass": W[..., 3:, :3].sum(-1).mean(-1),
        "alpha": W[..., 0].mean(-1),
        "distance": (W * distance).sum(-1).mean(-1),
        "entropy": entropy.mean(-1),
        "diagonal": np.diagonal(W, axis1=-2, axis2=-1).mean(-1),
        "separators": separated,
        "top": W.mean(-2).max(-1),
    }
    assert set(wanted) == set(MEASURES)
    for name, numbers in wanted.items():
        np.testing.assert_allclose(got.heads[name], numbers, atol=2e-5, rtol=1e-4, err_msg=name)
    for layer in range(len(hidden) - 2):
        h = np.abs(hidden[layer + 1]).reshape(5, -1)
        np.testing.assert_allclose(got.largest[:, layer, 0], h.max(1), rtol=1e-4)
        norm = np.linalg.norm(hidden[layer + 1], axis=-1)
        np.testing.assert_allclose(got.norms[:, 2, layer], np.stack((norm[:, 0], norm[:, 1:].mean(1)), -1), rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_norms_are_those_of_what_a_model_projects_before_positions(family):
    """Where the library gives keys dimensions that carry a position, these are not the model's own."""
    network, samples = shared(family), np.random.default_rng(0).integers(0, 90, (2, 12))
    (got,) = measure(twin(network), samples)
    projected = {}
    hooks = [
        part.register_forward_hook(lambda _, __, out, name=name: projected.update({name: out}))
        for name, part in network.named_modules()
        if name.endswith(("k_proj", "v_proj", "query_key_value"))
    ]
    network(torch.as_tensor(samples))
    for hook in hooks:
        hook.remove()
    for layer in range(got.norms.shape[2]):
        of = [out for name, out in projected.items() if f".{layer}." in name]
        if family == "bloom":
            of = of[0].view(2, 12, network.config.n_head, 3, -1).unbind(3)[1:]
        else:
            of = [out.view(2, 12, network.config.num_key_value_heads, -1) for out in of]
        for kind, x in enumerate(of):
            norm = x.norm(dim=-1).mean(-1).numpy()
            wanted = np.stack((norm[:, 0], norm[:, 1:].mean(1)), -1)
            np.testing.assert_allclose(got.norms[:, kind, layer], wanted, rtol=1e-5)


def test_a_layer_has_massive_activations_where_most_samples_have():
    largest, median = np.zeros((5, 5, 3), np.float32), np.full((5, 5), 0.2, np.float32)
    for layer, samples in enumerate((2, 3, 5)):
        largest[:samples, layer, 0] = 250
    # As many, and as large, but no thousand medians.
    largest[:, 3, 0], median[:, 3] = 250, 0.3
    # Just a thousand.
    largest[:, 4, 0], median[:, 4] = 250, 0.25
    found = Measured({}, np.zeros(0), largest, median, np.zeros(0, np.int64))
    assert found.massive.tolist() == [False, True, True, False, True]
    # Two of four are not most.
    assert not Measured({}, np.zeros(0), largest[:4], median[:4], np.zeros(0, np.int64)).massive[0]


def test_one_sample_at_a_time_is_the_same(tiny_llama):
    adapted, samples = twin(tiny_llama), np.random.default_rng(0).integers(0, 90, (3, 24))
    whole = joined(list(measure(adapted, samples)))
    for i, sample in enumerate(samples):
        (alone,) = measure(adapted, sample[None])
        for name in MEASURES:
            np.testing.assert_allclose(alone.heads[name][0], whole.heads[name][i], atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_samples_of_first_tokens_alone_give_all_to_these(tiny_llama, count):
    """All that a query can look at is a first token then."""
    samples = np.random.default_rng(0).integers(0, 90, (3, count))
    got = joined(list(measure(twin(tiny_llama), samples, first=4)))
    np.testing.assert_allclose(got.heads["sink_mass"], 1, atol=1e-6)


def test_sink_rate_is_that_of_the_models_own_weights(tiny_llama):
    samples = np.random.default_rng(0).integers(0, 97, (8, 64))
    got = joined(list(measure(twin(tiny_llama), samples)))
    W, _ = eager(tiny_llama, samples)
    alpha = metrics.alpha(W)
    np.testing.assert_allclose(got.heads["alpha"], alpha, atol=1e-5)
    # In the widest gap, so that no rounding puts a head on the other side.
    known = np.sort(alpha.ravel())
    widest = np.diff(known[8:-8]).argmax() + 8
    threshold = float(known[widest : widest + 2].mean())
    by_layer, whole = got.sink_rate(threshold)
    assert 0 < whole < 1 and whole == metrics.sink_rate(alpha, threshold)[1] and by_layer.shape == (3,)


def test_the_embedded_model_has_massive_activations_at_its_first_token(embedded):
    """And heads whose sink takes most of their attention: what papers say of larger models."""
    from analysis.texts import read, tokenize

    ids = tokenize(read("hamlet"), embedded.tokenizer, limit=600)
    apart = separators_of(embedded.tokenizer, 49_152)
    got = joined(list(measure(embedded, samples_of(ids, 4, 64), separators=apart)))
    assert 0.5 < got.sink_rate()[1] < 0.95
    assert got.massive[12:27].all() and not got.massive[0]
    assert (got.largest_at[:, 15, 0] == 0).all()
    # The value of the sink is short, and its hidden state is long.
    assert (got.norms[:, 1, 15, 0] < 0.5 * got.norms[:, 1, 15, 1]).all()
    assert (got.norms[:, 2, 15, 0] > 10 * got.norms[:, 2, 15, 1]).all()


def test_separators_are_punctuation_and_newlines(embedded):
    apart = separators_of(embedded.tokenizer, 49_152)
    for look, is_one in ((".", True), (",", True), ("\n", True), (" the", False), (" ", False)):
        ids = embedded.tokenizer(look, add_special_tokens=False)["input_ids"]
        assert apart[ids[-1]] == is_one, look
    assert not separators_of(None, 10).any()


def test_what_cannot_be_measured_is_said(tiny_llama):
    adapted = twin(tiny_llama)
    with pytest.raises(ValueError, match="2 to 4,096 tokens, not 5,000"):
        next(measure(adapted, np.zeros((1, 5000), np.int32)))
    with pytest.raises(ValueError, match="at least 1 first token"):
        next(measure(adapted, np.zeros((1, 20), np.int32), first=0))
