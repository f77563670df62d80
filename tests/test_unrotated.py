"""Networks whose attention leaves out what would rotate nothing."""

import sys

import pytest
import torch
from torch import nn

from analysis.families.rotary import Alone, adapt
from analysis.families.unrotated import ROTATES, leave_out

from .families import tiny


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "phi", "glm4", "gpt_oss", "cohere", "gpt_neox"])
def test_an_adapted_network_rotates_nothing_and_spends_nothing_on_it(family, monkeypatch):
    network, ids = tiny(family), torch.arange(9)[None]
    modules = {sys.modules[type(m).__module__] for m in network.modules()}
    homes = [m for m in modules if hasattr(m, ROTATES)]
    twin, plain = adapt(network), adapt(network)
    for attention in plain.attentions.values():
        del attention.forward
    expected = plain.forward(ids, Alone())
    before = network(ids).logits
    for home in homes:
        monkeypatch.setattr(home, ROTATES, None)
    assert torch.equal(twin.forward(ids, Alone()), expected)
    with pytest.raises(TypeError):
        plain.forward(ids, Alone())
    monkeypatch.undo()
    # The network itself goes on rotating.
    assert torch.equal(network(ids).logits, before)


def _turned(q, k, cos, sin):
    return k * cos, q * cos + sin


class Twice(nn.Module):
    """An attention whose function gives back something else than what it was given."""

    def forward(self, q, k):
        return apply_rotary_pos_emb(q, k, 1, 0)


apply_rotary_pos_emb = _turned


def test_an_attention_that_does_more_than_rotate_is_left_alone():
    attention = Twice()
    leave_out(attention, 8)
    assert "forward" not in vars(attention)
    known = tiny("llama").model.layers[0].self_attn
    known.forward = own = lambda *_: None
    leave_out(known, 8)
    assert known.forward is own
