"""A row in full is what the model computes, and its parts merge to the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.maps.attention_row import AttentionRow, attend, merge, split
from analysis.maps.passage import Passage
from analysis.models.loading import load

IDS = np.array([5, 17, 3, 88, 41, 2, 60, 9], np.int32)


@pytest.fixture(scope="module")
def passage(model):
    return Passage(load(model, device="cpu"), IDS)


def test_a_row_is_that_of_the_model_itself(tiny_llama, passage):
    tiny_llama.set_attn_implementation("eager")
    seen = {}

    def values(layer):
        def keep(_module, _inputs, out) -> None:
            seen[layer] = out[0].view(len(IDS), 2, -1).transpose(0, 1)

        return keep

    hooks = [b.self_attn.v_proj.register_forward_hook(values(i)) for i, b in enumerate(tiny_llama.model.layers)]
    with torch.no_grad():
        wanted = tiny_llama(torch.from_numpy(IDS.astype(np.int64))[None], output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    mass = np.stack([w[0, :, 1:, 0].mean(-1).numpy() for w in wanted])
    np.testing.assert_allclose(passage.sink_mass, mass, atol=1e-5)
    for layer, head in [(0, 0), (1, 3), (2, 1)]:
        row = passage.row(layer, head)
        logits, values = torch.from_numpy(row.logits), torch.from_numpy(row.values)
        torch.testing.assert_close(logits.softmax(-1), wanted[layer][0, head, -1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(values, seen[layer][head // 2], atol=1e-4, rtol=1e-4)
        out = torch.from_numpy(attend(row))
        torch.testing.assert_close(out, wanted[layer][0, head, -1] @ values, atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(passage.sink_weights[layer, head], wanted[layer][0, head, :, 0], atol=1e-5)


def test_logits_are_those_before_the_softmax(tiny_llama, passage):
    """And not only up to a constant, which softmax does not show."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    ids = torch.from_numpy(IDS.astype(np.int64))[None]
    with torch.no_grad():
        attention, model = tiny_llama.model.layers[0].self_attn, tiny_llama.model
        x = model.layers[0].input_layernorm(model.embed_tokens(ids))
        q, k = (p(x).view(1, len(IDS), -1, 8).transpose(1, 2) for p in (attention.q_proj, attention.k_proj))
        q, k = apply_rotary_pos_emb(q, k, *model.rotary_emb(x, torch.arange(len(IDS))[None]))
        wanted = q[0, 3, -1] @ k[0, 1].T * 8**-0.5
    torch.testing.assert_close(torch.from_numpy(passage.row(0, 3).logits), wanted, atol=1e-4, rtol=1e-4)


@settings(max_examples=300, deadline=None, database=None)
@given(st.data())
def test_parts_merge_to_the_whole_for_any_cuts(data):
    keys = data.draw(st.integers(2, 400))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    spread = data.draw(st.floats(0, 40))
    row = AttentionRow((torch.randn(keys) * spread).numpy(), (torch.rand(keys, 16) * 2 - 1).numpy())
    cuts = data.draw(st.lists(st.integers(1, keys - 1), max_size=20))
    found = split(row, cuts)
    assert [p.begin for p in found] == sorted({0, *cuts}) and found[-1].end == keys
    assert merge(found).dtype == attend(row).dtype == np.float32
    assert np.abs(merge(found) - attend(row)).max() <= 1e-6


def test_a_cut_outside_of_the_row_is_said():
    row = AttentionRow(torch.randn(5).numpy(), torch.randn(5, 2).numpy())
    for cut in (0, 5, -1):
        with pytest.raises(ValueError, match="cut before keys 1 to 4"):
            split(row, [2, cut])
