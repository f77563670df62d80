"""What comes out of a layer is told to the pass that computed it, whoever else reads the same model meanwhile."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from analysis.engine.attention.band import Band
from analysis.engine.attention.banded import BandedPass
from analysis.engine.check import adapt
from analysis.engine.stream import open_lanes
from analysis.experiments.measures import MEASURES, joined, measure
from analysis.families import ADAPTERS, FAMILIES, rotary
from analysis.maps.stretch import Stretch
from analysis.policies import Dense, Streaming

from .families import shared, tiny, twin, words
from .test_atlas import captured_by


def dense(adapted):
    return BandedPass(adapted, 0, 0, Band(0, 0, None, "text"), None)


def outputs_of(adapted, ids, reader=None):
    seen = {}
    adapted.forward(ids, reader or dense(adapted), last=1, outputs=seen)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_the_hidden_states_of_the_network(family):
    """Adapted attentions stand one level deeper, which must not make the attention's output out of the layer's."""
    network, ids = shared(family), torch.as_tensor(words())[None]
    hidden = network(ids, use_cache=False, output_hidden_states=True).hidden_states
    seen = outputs_of(twin(network), ids)
    assert sorted(seen) == list(range(4))
    # What comes out of the last layer is normed before transformers tells it.
    for layer in range(3):
        torch.testing.assert_close(seen[layer], hidden[layer + 1], atol=1e-4, rtol=1e-4)


def test_norms_of_keys_are_those_of_the_familys_own(tmp_path):
    """And not of what ALiBi carries behind them."""
    network, tokens = tiny("bloom"), words(40)
    fused = []
    attention = network.transformer.h[1].self_attention
    handle = attention.query_key_value.register_forward_hook(lambda _module, _args, out: fused.append(out))
    network(torch.as_tensor(tokens)[None, :-1], use_cache=False)
    handle.remove()
    heads = network.config.n_head
    _, key, value = fused[0].unflatten(-1, (heads, 3, -1)).transpose(1, 2).unbind(-2)
    wanted = [x[0].norm(dim=-1).mean(0).numpy() for x in (key, value)]
    adapted = adapt(network)
    (measured,) = measure(adapted, tokens[None, :-1])
    stretch = captured_by(adapted, tokens, Dense(), tmp_path / "s")
    for kind, sizes in enumerate(wanted):
        np.testing.assert_allclose(stretch.norms[kind, 1], sizes, rtol=1e-4)
        np.testing.assert_allclose(measured.norms[0, kind, 1], [sizes[0], sizes[1:].mean()], rtol=1e-4)


class Interrupted:
    """A reader in whose pass another thread reads a whole text, each time that it is at some layer."""

    def __init__(self, adapted, other):
        self.reader, self.other = dense(adapted), other

    def attend(self, attention, *tensors, **settings):
        if attention.layer_idx in (1, 2):
            with ThreadPoolExecutor(1) as thread:
                thread.submit(self.other).result()
        return self.reader.attend(attention, *tensors, **settings)


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt2"])
def test_a_pass_sees_nothing_of_one_that_comes_in_between(family):
    adapted = twin(shared(family))
    mine, theirs = torch.as_tensor(words(24))[None], torch.as_tensor(words(60)[30:])[None]
    alone = [outputs_of(adapted, ids) for ids in (mine, theirs)]
    between = []
    seen = outputs_of(adapted, mine, Interrupted(adapted, lambda: between.append(outputs_of(adapted, theirs))))
    assert len(between) == 2
    for got, wanted in ((seen, alone[0]), *((b, alone[1]) for b in between)):
        for layer, out in wanted.items():
            assert torch.equal(got[layer], out)


def test_nobody_is_told_who_has_not_asked():
    """Also not from inside a pass that has."""
    adapted = twin(shared("llama"))
    mine, theirs = torch.as_tensor(words(24))[None], torch.as_tensor(words(30))[None]

    class Nested(Interrupted):
        def attend(self, attention, *tensors, **settings):
            if attention.layer_idx == 2:
                self.other()
            return self.reader.attend(attention, *tensors, **settings)

    seen = outputs_of(adapted, mine, Nested(adapted, lambda: adapted.forward(theirs, dense(adapted), last=1)))
    assert [len(seen[layer][0]) for layer in range(4)] == [24] * 4


def test_nothing_is_hooked_into_a_network(tmp_path):
    network = tiny("llama")
    adapted = adapt(network)
    before = [m.forward for m in adapted.network.modules()]
    list(measure(adapted, np.stack([words(20)])))
    captured_by(adapted, words(40), Dense(), tmp_path / "s")
    assert [m.forward for m in adapted.network.modules()] == before
    for module in (*network.modules(), *adapted.network.modules()):
        assert not any(hooks for name, hooks in vars(module).items() if "hooks" in name)
    assert not any("forward" in vars(m) for m in network.modules())


def test_measuring_capturing_and_reading_at_once_give_what_each_gives_alone(tiny_llama, tmp_path):
    adapted, tokens = twin(tiny_llama), words(150)
    samples = np.stack([words(150)[i : i + 30] for i in range(0, 120, 10)])

    def measured(name):
        return joined([part for i in range(0, 12, 3) for part in measure(adapted, samples[i : i + 3])])

    def captured(name):
        return captured_by(adapted, tokens, Streaming(4, 20), tmp_path / name, chunk=11)

    def read(name):
        lane = open_lanes(adapted, tokens[:40], [Streaming(4, 20)])[0]
        lane.context.trace()
        while not lane.done:
            lane.read(9)
        return np.stack([lane.next(lambda _, t=int(t): t).nll[0] for t in tokens[40:]])

    jobs, start = (measured, captured, read, measured, captured), threading.Barrier(5)
    alone = [job(f"alone{i}") for i, job in enumerate(jobs)]

    def together(i, job, time):
        start.wait(60)
        return job(f"{i}-{time}")

    with ThreadPoolExecutor(len(jobs)) as threads:
        for time in range(4):
            found = [threads.submit(together, i, job, time) for i, job in enumerate(jobs)]
            for got, wanted in zip([f.result() for f in found], alone, strict=True):
                if isinstance(wanted, Stretch):
                    for name in ("norms", "massive", "median", "mass", "queries", "keys"):
                        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), rtol=1e-6, atol=1e-6)
                elif isinstance(wanted, np.ndarray):
                    np.testing.assert_allclose(got, wanted, atol=1e-6)
                else:
                    for name in MEASURES:
                        np.testing.assert_allclose(got.heads[name], wanted.heads[name], rtol=1e-6, atol=1e-6)
                    np.testing.assert_allclose(got.norms, wanted.norms, rtol=1e-6)
                    np.testing.assert_allclose(got.largest, wanted.largest, rtol=1e-6)


def test_outputs_lie_where_their_layer_lies():
    model = tiny("llama")
    spread = copy.deepcopy(model)
    norm, head = spread.model.norm, spread.lm_head
    for module in (*spread.model.layers[2:], norm, head):
        add_hook_to_module(module.to("meta"), AlignDevicesHook("meta", io_same_device=False), append=True)
    adapted, ids = rotary.adapt(spread, ADAPTERS), torch.as_tensor(words(20))[None]
    seen = outputs_of(adapted, ids)
    assert {layer: out.device for layer, out in seen.items()} == adapted.homes
    whole = outputs_of(adapt(model), ids)
    for layer in (0, 1):
        torch.testing.assert_close(seen[layer], whole[layer])
