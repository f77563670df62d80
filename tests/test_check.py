"""The check at loading: what it must find, in every dtype, and what it must let pass."""

import re

import numpy as np
import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from analysis.engine import check
from analysis.engine.attention import band as reach
from analysis.engine.attention.banded import BandedPass
from analysis.engine.check import adapt
from analysis.engine.kv.banded import BandedStore
from analysis.engine.sample import WINDOW, sample
from analysis.engine.stream import open_lanes
from analysis.families import FAMILIES, unreadable
from analysis.families.masks import FAR, window_of
from analysis.families.positions import BOUND, Rotary
from analysis.models.quantization import pack
from analysis.policies import Dense

from . import causal
from .families import DOCS, our_nll, own_nll, tiny, words

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rule(low):
    """A mask in which query q sees keys low(q) … q."""
    return lambda batch, head, q, k: (k <= q) & (k >= low(q))


@pytest.mark.parametrize("window", [1, 20, 4096, 200_000])
def test_a_window_is_read_off_a_mask(window):
    assert window_of(rule(lambda q: q - window + 1), torch.device("cpu")) == window


def test_a_mask_of_all_tokens_has_no_window():
    assert window_of(rule(lambda q: 0 * q), torch.device("cpu")) is None


@pytest.mark.parametrize("chunk", [7, 4096, 8192, 200_000])
def test_chunks_are_no_window(chunk):
    with pytest.raises(ValueError, match="chunks"):
        window_of(rule(lambda q: q // chunk * chunk), torch.device("cpu"))


def test_a_mask_that_looks_ahead_or_leaves_holes_is_no_window():
    with pytest.raises(ValueError, match="come after"):
        window_of(lambda b, h, q, k: k <= q + 1, torch.device("cpu"))
    with pytest.raises(ValueError, match="nearest"):
        window_of(lambda b, h, q, k: (k <= q) & (k % 2 == 0), torch.device("cpu"))
    assert min(FAR) > 4096


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_that_lives_in_the_mask_alone_is_honoured(dtype):
    """Phimoe hands no window to its attention."""
    model = tiny("phimoe", sliding_window=12, num_local_experts=4).to(dtype)
    adapted = adapt(model)
    assert [s["sliding_window"] for s in adapted.settings.values()] == [12] * 4
    if dtype == torch.float32:
        for chunk in (1, 16, 60):
            np.testing.assert_allclose(our_nll(adapted, words(), chunk), own_nll(model, words()), atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "bloom", "gpt2"])
def test_a_right_family_passes_in_every_dtype(name, dtype):
    assert adapt(tiny(name).to(dtype)).dtype == dtype


def test_a_network_that_says_the_same_of_every_word_passes():
    model = tiny("llama")
    model.lm_head.weight.zero_()
    assert not adapt(model).positions.fixed


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_packed_network_passes(weights):
    model = tiny("llama", hidden_size=64, intermediate_size=128, head_dim=16)
    pack(model, weights)
    assert not adapt(model).positions.fixed


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_that_is_wrong_by_one_token_is_found_in_every_dtype(dtype, monkeypatch):
    right = reach.Band.narrowed

    def wrong(self, window):
        return right(self, None if window is None else window + 1)

    model = tiny("mistral", sliding_window=20).to(dtype)
    monkeypatch.setattr(reach.Band, "narrowed", wrong)
    with pytest.raises(ValueError, match="'mistral' is not supported yet: its own forward pass gives other numbers"):
        adapt(model)


def test_a_mask_that_is_wrong_is_found_in_a_packed_network(monkeypatch):
    right = reach.Band.narrowed
    model = tiny("mistral", sliding_window=20, hidden_size=64, intermediate_size=128, head_dim=16)
    pack(model, "int4")
    assert adapt(model).dtype == torch.float32
    monkeypatch.setattr(reach.Band, "narrowed", lambda self, window: right(self, window and window + 1))
    with pytest.raises(ValueError, match="'mistral' is not supported yet: its own forward pass gives other numbers"):
        adapt(model)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_position_that_is_wrong_by_one_in_far_tokens_is_found_in_every_dtype(dtype, monkeypatch):
    right = Rotary.angles
    monkeypatch.setattr(Rotary, "angles", lambda self, a, p, dtype: right(self, a, p + (p > 30), dtype))
    assert adapt(tiny("llama").to(dtype)).positions is BOUND


@pytest.mark.parametrize(("nth", "by"), [(1, 1.1), (2, 1.1), (3, 1.1), (4, 1.1), (4, float("nan"))])
def test_a_fault_in_any_one_pass_is_found(nth, by, monkeypatch):
    """Two chunks, a token that is read alone, and one that is decoded."""
    passes = []

    def patch(name, right):
        def wrong(self, *given):
            passes.append(given)
            passed = right(self, *given)
            return passed._replace(logits=passed.logits * (by if len(passes) == nth else 1))

        monkeypatch.setattr(BandedStore, name, wrong)

    patch("forward", BandedStore.forward)
    patch("decode", BandedStore.decode)
    # Keys that stay where they were read are tried next, in passes that are right.
    assert adapt(tiny("llama")).positions is BOUND and len(passes) == 8


@pytest.mark.parametrize("scale", [1e-2, 1, 1e4])
def test_a_fault_in_a_layer_that_is_not_in_the_sample_is_found_however_large_logits_are(scale, monkeypatch):
    right = BandedPass.attend

    def wrong(self, attention, *given, **settings):
        return right(self, attention, *given, **settings) * (1.1 if attention.layer_idx == 3 else 1)

    model = tiny("llama", num_hidden_layers=4)
    model.lm_head.weight.mul_(scale)
    assert not adapt(model).positions.fixed
    monkeypatch.setattr(BandedPass, "attend", wrong)
    assert sample(model).config.num_hidden_layers == 2
    with pytest.raises(ValueError, match="'llama' is not supported yet: its own forward pass gives other numbers"):
        adapt(model)


@pytest.mark.parametrize("window", [4096, 20])
def test_windows_of_a_sample_are_short_and_those_of_the_network_stay(window):
    model = tiny("mistral", sliding_window=window)
    small = sample(model)
    assert {m.config.sliding_window for m in small.modules() if hasattr(m, "config")} == {WINDOW}
    assert {m.config.sliding_window for m in model.modules() if hasattr(m, "config")} == {window}
    assert check.TOKENS > 2 * WINDOW


def test_a_sample_has_one_layer_of_each_making():
    model = tiny("gemma3_text", num_hidden_layers=12)
    small = sample(model)
    kinds = [layer.self_attn.is_sliding for layer in small.model.layers]
    assert sorted(kinds) == [False, True] and small.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]
    assert len(model.model.layers) == 12 and model.model.layers[5].self_attn.layer_idx == 5
    assert small.model.layers[0].mlp.up_proj.weight is model.model.layers[0].mlp.up_proj.weight


def test_half_a_sample_is_float32_and_the_network_stays_half():
    model = tiny("llama").bfloat16()
    small = sample(model)
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


STATEFUL = {
    "falcon_h1": "mamba",
    "bamba": "mamba",
    "lfm2": "conv",
    "qwen3_next": "linear_attn",
    "recurrent_gemma": "temporal_block",
    "zaya": "conv",
    "inkling_text": "sconv",
    "minimax_m3_vl_text": "indexer",
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_module_with_a_state_of_its_own_is_named(name):
    model = causal.build(causal.config_of(name, **(causal.VARIANTS["lfm2"] if name == "lfm2" else {})))
    with pytest.raises(
        ValueError, match=rf"{name}' is not supported yet: its [\w.]*{STATEFUL[name]}.* in a way of its own"
    ):
        adapt(model)


class Shift(torch.nn.Module):
    """A layer's own norm, and a little of the token before."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x) + 1e-2 * torch.nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_shift_anywhere_is_found(dtype):
    model = tiny("llama").to(dtype)
    model.model.layers[1].post_attention_layernorm = Shift(model.model.layers[1].post_attention_layernorm)
    with pytest.raises(ValueError, match=r"post_attention_layernorm.*Shift.*way of its own"):
        adapt(model)


class Leak(Shift):
    """A layer's own norm, and a share of the text's first token."""

    share = 1e-7

    def forward(self, x):
        out = self.norm(x)
        return out + self.share * out[:, :1]


def test_what_is_lost_in_rounding_is_no_way_of_its_own():
    model = tiny("llama")
    model.model.layers[1].post_attention_layernorm = Leak(model.model.layers[1].post_attention_layernorm)
    assert not adapt(model).positions.fixed
    model.model.layers[1].post_attention_layernorm.share = 1e-3
    with pytest.raises(ValueError, match=r"post_attention_layernorm \(Leak\) lets tokens learn of one another"):
        adapt(model)


def test_a_token_shift_that_several_layers_share_is_found():
    model = tiny("llama")
    shared = Shift(model.model.layers[0].post_attention_layernorm)
    for layer in model.model.layers:
        layer.post_attention_layernorm = shared
    with pytest.raises(ValueError, match=r"layers.0.post_attention_layernorm.*Shift.*way of its own"):
        adapt(model)


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda x: [x], lambda x: x[0]),
        (lambda x: (None, x), lambda x: x[1]),
        (lambda x: {"a": [x]}, lambda x: x["a"][0]),
    ],
)
def test_a_token_shift_is_found_in_whatever_a_module_gives(wrap, unwrap):
    class Inner(Shift):
        def forward(self, x):
            return wrap(super().forward(unwrap(x)))

    class Outer(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.inner = Inner(norm)

        def forward(self, x):
            return unwrap(self.inner(wrap(x)))

    model = tiny("llama")
    model.model.layers[1].input_layernorm = Outer(model.model.layers[1].input_layernorm)
    with pytest.raises(ValueError, match=r"layers.1.input_layernorm.inner \(Inner\).*way of its own"):
        adapt(model)


def test_a_text_that_is_tried_goes_all_over_the_vocabulary_and_another_is_another_everywhere():
    model = tiny("llama")
    ids, other = check.tokens_of(model), check.tokens_of(model, check.TOKENS)
    assert ids.shape == other.shape == (1, check.TOKENS) and (ids != other).all()
    assert len(set(ids.flatten().tolist())) == check.TOKENS
    assert ids.min() < 97 / 8 and ids.max() > 97 - 97 / 8 and ids.max() < 97
    assert torch.equal(check.few_tokens(model), ids[:, : check.SHORT])


class Head(torch.nn.Linear):
    """A head that is computed in its own way, in which no words are left out of a sample."""

    def __init__(self, head, rule):
        super().__init__(head.in_features, head.out_features, bias=False)
        self.weight, self.rule = head.weight, rule

    def forward(self, x):
        return self.rule(super().forward(x))


def test_rows_of_logits_that_are_missing_are_told():
    model = tiny("llama")
    model.lm_head = Head(model.lm_head, lambda logits: logits[:, 1:])
    with pytest.raises(ValueError, match="'llama' is not supported yet: it has 46 rows of logits for 47 tokens"):
        adapt(model)


def test_what_cannot_be_read_in_chunks_is_told_with_why():
    def rule(logits):
        if check.SHORT < logits.shape[1] < check.TOKENS:
            raise KeyError("so many\n tokens", "x" * 300)
        return logits

    model = tiny("llama")
    model.lm_head = Head(model.lm_head, rule)
    with pytest.raises(ValueError, match=r"its layers cannot be read in chunks \(KeyError: .*so many") as told:
        adapt(model)
    assert str(told.value).startswith("the family 'llama' is not supported yet") and len(str(told.value)) < 320


def test_looking_ahead_is_refused():
    model = causal.build(causal.config_of("bert", is_decoder=False))
    with pytest.raises(ValueError, match="'bert' is not supported yet: its tokens see some that come after them"):
        adapt(model)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("llama4_text", "its rotary module gives something else than cosines and sines"),
        ("xlnet", "its transformer.layer.0.rel_attn .* lets tokens learn of one another in a way of its own"),
        ("gptj", "its transformer.h.0.attn .* in a way of its own, and not through transformers' attention interface"),
    ],
)
def test_a_refusal_says_what_is_so(name, why):
    with pytest.raises(ValueError, match=f"the family '{name}' is not supported yet: {why}"):
        adapt(causal.build(causal.config_of(name)))


def test_what_overflows_in_float16_is_named_and_what_to_use():
    model = tiny("llama").half()
    model.model.layers[2].mlp.up_proj.weight.mul_(1e3)
    model.model.layers[2].mlp.down_proj.weight.mul_(1e4)
    with pytest.raises(
        ValueError, match=r"too large for float16: model.layers.2.mlp.down_proj \(Linear\).*bfloat16 or float32"
    ):
        adapt(model)
    assert adapt(model.bfloat16()).dtype == torch.bfloat16


def test_an_output_that_overflows_by_itself_is_named_so():
    model = tiny("cohere", logit_scale=1e30).half()
    with pytest.raises(ValueError, match=r"too large for float16: its output \(CohereForCausalLM\)"):
        adapt(model)


def test_numbers_that_are_none_in_any_dtype_are_told_as_damaged_weights():
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"not finite in float32, from model.layers.1.mlp.up_proj.*damaged"):
        adapt(model)


def test_checking_leaves_no_trace_on_the_network():
    model = tiny("phimoe", sliding_window=12, num_local_experts=4)

    def state():
        """What each module holds, and how many of it: of hooks too."""
        modules = [{k: len(v) if isinstance(v, dict) else None for k, v in vars(m).items()} for m in model.modules()]
        return list(map(id, model.modules())), modules, model.config.to_json_string()

    before = state()
    adapt(model)
    assert before == state() and model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["mamba", "rwkv", "gemma3", "dots3_note_text", "bart", "whisper"])
def test_a_configuration_alone_may_say_that_a_family_cannot_be_read(name):
    config = causal.config_of(name) if name != "dots3_note_text" else causal.CONFIG_MAPPING[name]()
    assert re.match(f"the family '{name}' is not supported yet: .+", unreadable(config))


def test_docs_list_every_causal_class_once():
    text = DOCS.read_text("utf-8").split("## Other ways")[0]
    listed = re.findall(r"^\| `([^`]+)` \|", text, flags=re.M)
    assert sorted(listed) == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    exact, refused = text.split("## Refused")
    assert set(FAMILIES) <= set(re.findall(r"^\| `([^`]+)` \|", exact, flags=re.M))
    assert "## Neither" not in text
    exact, refused = exact.count("\n| `"), refused.count("\n| `")
    assert f"{exact + refused} classes, {exact} read exactly, {refused} refused, 0 neither" in text


@pytest.mark.parametrize("name", ["afmoe", "jetmoe", "modernbert-decoder", "gemma3n_text", "ctrl", "phimoe", "beam"])
def test_families_beyond_the_registry_read_exactly(name):
    model = causal.build(causal.config_of(name))
    lane = open_lanes(model, words(), [Dense()])[0]
    got = np.concatenate([lane.read(16).nll for _ in range(4)])
    np.testing.assert_allclose(got, own_nll(model, words()), atol=1e-4)


def test_a_family_with_a_rotary_module_that_no_layer_asks_reads_exactly():
    """Beam rotates in some types of layers; a network with none of these has a rotary module without frequencies."""
    model = causal.build(causal.config_of("beam", num_hidden_layers=1))
    assert not list(model.model.rotary_emb.buffers())
    for chunk in (7, 60):
        np.testing.assert_allclose(our_nll(model, words(), chunk), own_nll(model, words()), atol=1e-4)
