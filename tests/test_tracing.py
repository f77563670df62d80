"""The trace of one token: it says what the model says, asks whoever decodes, and is refused where it would not."""

import itertools
import threading

import numpy as np
import pytest
import torch
from torch import nn
from transformers.utils import logging

from analysis.engine.check import adapt
from analysis.engine.tracing import CHECKS, one_token

from .families import tiny


class Decoding:
    """Attention of a kind that depends on the layer, its settings, the values and the position, and notes its calls."""

    def __init__(self, token):
        self.token, self.asked = token, []

    def attend(self, attention, query, key, value, **settings):
        told = {name: settings.get(name) for name in ("scaling", "softcap", "sliding_window", "s_aux")}
        self.asked.append((attention.layer_idx, attention, told, query.shape, key.shape, value.shape))
        groups = query.shape[1] // value.shape[1]
        out = query * settings["scaling"] + (key - value).repeat_interleave(groups, 1) * (attention.layer_idx + 1)
        return out.transpose(1, 2) * np.cos(self.token)


def both(model, traced, token, position):
    """What the model and its trace say of a token at a position, and what each asked for."""
    ids, a, b = torch.tensor([[token]]), Decoding(position), Decoding(position)
    return model.forward(ids, a, begin=position, last=1), traced(ids, b, position), a.asked, b.asked


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "phi", "falcon", "bloom"])
def test_a_trace_says_what_the_model_says_and_asks_for_the_same(family):
    model = adapt(tiny(family))
    traced = one_token(model)
    assert traced is not None
    for token, position in [(0, 0), (96, 1), (5, 77), (5, 300)]:
        expected, got, asked, by_trace = both(model, traced, token, position)
        assert got.shape == (1, 1, 97)
        torch.testing.assert_close(got, expected)
        assert asked == by_trace and [layer for layer, *_ in asked] == [0, 1, 2, 3]


def test_two_threads_decode_each_its_own_token():
    model = adapt(tiny("llama"))
    traced, meet, got = one_token(model), threading.Barrier(2, timeout=60), {}

    class Meeting(Decoding):
        def attend(self, *given, **settings):
            meet.wait()
            return super().attend(*given, **settings)

    def decode(token):
        got[token] = traced(torch.tensor([[token]]), Meeting(token), token)

    threads = [threading.Thread(target=decode, args=(token,)) for token in (3, 40)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for token, logits in got.items():
        torch.testing.assert_close(logits, both(model, traced, token, token)[0])
    assert len(got) == 2


def test_tracing_leaves_what_the_library_says_as_it_was():
    model, before = adapt(tiny("llama")), logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        said = logging.get_verbosity()
        assert one_token(model) is not None and logging.get_verbosity() == said
    finally:
        logging.set_verbosity(before)


class Deciding(nn.Module):
    """A norm that in Python makes more of some tokens."""

    def __init__(self, norm, more):
        super().__init__()
        self.norm, self.more = norm, more

    def forward(self, x):
        return self.norm(x) * (2.0 if self.more(x) else 1.0)


def test_a_model_that_decides_in_python_by_its_token_is_not_traced():
    model, seen = adapt(tiny("llama", num_hidden_layers=1)), set()
    norm = model.network.model.norm
    model.network.model.norm = Deciding(norm, lambda x: seen.add(float(x.sum())))
    assert one_token(model) is not None
    tried = sorted(seen)
    assert len(tried) == CHECKS
    # However many of the tokens that are tried it tells from the others.
    for low, high in itertools.pairwise(tried):
        model.network.model.norm = Deciding(norm, lambda x, at=(low + high) / 2: float(x.sum()) > at)
        assert one_token(model) is None


def test_a_model_that_decides_in_python_by_the_position_is_not_traced():
    model = adapt(tiny("llama", num_hidden_layers=1))
    right = model.network.model.forward

    def forward(*args, position_ids, **kwargs):
        out = right(*args, position_ids=position_ids, **kwargs)
        out.last_hidden_state = out.last_hidden_state * (2 if int(position_ids[0, 0]) > 60_000 else 1)
        return out

    model.network.model.forward = forward
    assert one_token(model) is None


def test_positions_of_the_network_itself_and_several_devices_are_not_traced():
    assert one_token(adapt(tiny("gpt2"))) is None
    model = adapt(tiny("llama", num_hidden_layers=2))
    assert one_token(model) is not None
    model.homes[0] = torch.device("meta")
    assert one_token(model) is None


def test_a_model_that_fails_while_it_is_traced_is_not_traced():
    model = adapt(tiny("llama", num_hidden_layers=1))
    norm = model.network.model.norm
    model.network.model.norm = Deciding(norm, lambda x: torch.jit.is_tracing() and x @ x)
    assert one_token(model) is None
    model.network.model.norm = norm
    assert one_token(model) is not None
