"""The small network that is tried in a large one's place: which layers, words and windows it has, and what it says."""

import pytest
import torch
from torch import nn

from analysis.engine import check
from analysis.engine import sample as module
from analysis.engine.sample import LEAST, MOST, VOCABULARY, WINDOW, sample
from analysis.models.quantization import pack

from .families import tiny


def layers_of(small, model):
    """Which layers of a network a sample has, told by their weights, which both share."""
    own = [layer.mlp.up_proj.weight for layer in model.model.layers]
    return [next(i for i, w in enumerate(own) if w is layer.mlp.up_proj.weight) for layer in small.model.layers]


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [("aaaa", [0, 1]), ("aaba", [0, 2]), ("abcb", [0, 1, 2]), ("ab", [0, 1]), ("a", [0]), ("abcdefghij", range(MOST))],
)
def test_layers_that_the_configuration_alone_tells_apart_are_kept_with_what_it_says_of_them(kinds, kept):
    model = tiny("llama", num_hidden_layers=len(kinds))
    model.config.kinds, model.config.sizes = list(kinds), tuple(range(len(kinds) + 1))
    small = sample(model)
    assert layers_of(small, model) == list(kept)
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [*range(len(kept))]
    assert small.config.kinds == [kinds[i] for i in kept] and small.config.num_hidden_layers == len(kept)
    assert small.config.sizes == model.config.sizes == tuple(range(len(kinds) + 1))
    assert model.config.kinds == list(kinds) and layers_of(model, model) == [*range(len(kinds))]


def test_layers_with_other_settings_are_of_another_making_but_for_their_number():
    model = tiny("llama", num_hidden_layers=6)
    model.model.layers[3].self_attn.scaling = 0.5
    model.model.layers[5].mlp.wide = None
    small = sample(model)
    assert layers_of(small, model) == [0, 3, 5]
    for layer in model.model.layers:
        layer.number, layer.idx = layer.self_attn.layer_idx, layer.self_attn.layer_idx
    model.model.layers[3].number = 0
    small = sample(model)
    assert [(a.number, a.idx) for a in small.model.layers] == [(0, 0), (1, 1), (2, 2), (0, 3), (4, 4), (5, 5)]


def test_lists_inside_layers_stay_whole():
    model = tiny("llama", num_hidden_layers=4)
    for layer in model.model.layers:
        layer.experts = nn.ModuleList(nn.Identity() for _ in range(4))
    small = sample(model)
    assert len(small.model.layers) == LEAST and [len(layer.experts) for layer in small.model.layers] == [4, 4]
    assert list(small.model.layers._modules) == ["0", "1"]


@pytest.mark.parametrize("bias", [False, True])
def test_words_of_a_sample_are_spread_over_the_vocabulary_and_get_the_logits_that_they_have(bias):
    model = tiny("llama", num_hidden_layers=2, vocab_size=1000)
    if bias:
        model.lm_head.bias = nn.Parameter(torch.randn(1000), requires_grad=False)
    small = sample(model)
    words = torch.linspace(0, 999, VOCABULARY).long()
    ids = torch.arange(3, VOCABULARY, 31)[None]
    assert torch.equal(check.own_logits(small, ids), check.own_logits(model, words[ids])[:, words])
    embedding, head = small.get_input_embeddings(), small.get_output_embeddings()
    assert small.config.vocab_size == embedding.num_embeddings == head.out_features == VOCABULARY
    assert embedding.padding_idx is None and not any(p.requires_grad for p in small.parameters())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert model.config.vocab_size == embedding.num_embeddings == head.out_features == 1000
    assert embedding.padding_idx == 0


@pytest.mark.parametrize("count", [VOCABULARY, VOCABULARY + 1])
def test_a_vocabulary_that_is_small_already_stays(count):
    model = tiny("llama", num_hidden_layers=2, vocab_size=count)
    shares = sample(model).get_input_embeddings().weight is model.get_input_embeddings().weight
    assert shares == (count == VOCABULARY)


class Head(nn.Linear):
    """A head that may compute in a way of its own."""


@pytest.mark.parametrize("head", [nn.Linear(32, 999), Head(32, 1000)])
def test_a_vocabulary_that_is_not_said_word_by_word_stays(head):
    model = tiny("llama", num_hidden_layers=2, vocab_size=1000)
    model.lm_head = head
    small = sample(model)
    assert small.get_input_embeddings().num_embeddings == small.config.vocab_size == 1000
    assert small.lm_head.weight is model.lm_head.weight


@pytest.mark.parametrize("fits", [True, False])
def test_what_would_take_too_much_room_in_float32_stays_as_it_is(fits, monkeypatch):
    model = tiny("llama", num_hidden_layers=2).bfloat16()
    model.model.layers[0].register_buffer("in_half", torch.ones(3, dtype=torch.bfloat16))
    model.model.layers[0].register_buffer("empty", None)
    model.model.layers[0].register_buffer("number", torch.ones(3, dtype=torch.int64))
    model.model.norm.float()
    half = sum(p.numel() for p in model.parameters() if p.dtype == torch.bfloat16)
    monkeypatch.setattr(module, "ROOM", 4 * half if fits else 4 * half - 1)
    small = sample(model)
    expected = torch.float32 if fits else torch.bfloat16
    assert small.lm_head.weight.dtype == small.model.layers[0].in_half.dtype == expected
    assert small.model.layers[0].number.dtype == torch.int64 and small.model.norm.weight is model.model.norm.weight
    assert not any(p.requires_grad for p in small.parameters())
    assert model.lm_head.weight.dtype == model.model.layers[0].in_half.dtype == torch.bfloat16


def test_only_windows_that_are_long_become_short():
    model = tiny("mistral", sliding_window=4096)
    model.config.chunk_size, model.config.window_layers, model.config.window_scale = WINDOW - 1, 28, 99.0
    model.config.block_size, model.config.max_chunks = WINDOW + 1, True
    model.model.layers[0].attention_window = 77
    small = sample(model)
    config = small.config
    assert (config.sliding_window, config.block_size, small.model.layers[0].attention_window) == (WINDOW,) * 3
    assert (config.chunk_size, config.window_layers, config.window_scale) == (WINDOW - 1, 28, 99.0)
    assert config.max_chunks is True and config.max_position_embeddings == 512
    assert model.config.sliding_window == 4096 and model.model.layers[0].attention_window == 77


def test_a_whole_network_keeps_its_layers_and_windows_in_float32():
    model = tiny("mistral", sliding_window=4096).bfloat16()
    small = sample(model, whole=True)
    assert len(small.model.layers) == 4 and small.config.sliding_window == 4096
    assert {p.dtype for p in small.parameters()} == {torch.float32}


def test_weights_that_are_no_plain_numbers_are_told_and_stay():
    model = tiny("llama", num_hidden_layers=2, hidden_size=64, intermediate_size=128, head_dim=16)
    assert not module.packed(model)
    model.is_quantized = True
    assert module.packed(model)
    del model.is_quantized
    pack(model, "int8")
    assert module.packed(model)
    model.model.norm.half()
    assert sample(model).model.norm.weight.dtype == torch.float16


def test_tried_is_a_part_and_the_whole_only_where_no_part_runs(monkeypatch):
    model = tiny("llama", num_hidden_layers=6)
    right, needed = type(model).forward, LEAST

    def forward(self, *given, **named):
        if len(self.model.layers) < needed:
            raise RuntimeError(f"no fewer\n than {needed} layers")
        return right(self, *given, **named)

    monkeypatch.setattr(type(model), "forward", forward)
    assert len(check.small_part(model).model.layers) == LEAST
    needed = 6
    assert len(check.small_part(model).model.layers) == 6
    needed = 7
    why = r"'llama' is not supported yet: .* cannot be run \(RuntimeError: no fewer than 7 layers\)"
    with pytest.raises(ValueError, match=why):
        check.small_part(model)


@pytest.mark.parametrize("family", ["gpt2", "mpt"])
@pytest.mark.parametrize("longest", [46, 5])
def test_a_model_that_reads_less_than_the_trial_has_is_told_how_much_it_reads(family, longest):
    model = tiny(family, **{"gpt2": {"max_position_embeddings": longest}, "mpt": {"max_seq_len": longest}}[family])
    with pytest.raises(ValueError, match=f"^this model reads {longest} tokens at most, and a model is tried on 47 "):
        check.adapt(model)


@pytest.mark.parametrize(
    ("dtype", "what"),
    [
        (torch.float32, r"in float32: its own forward pass cannot be run \(RuntimeError: no\)$"),
        (torch.float16, r"in float16: its own forward pass cannot be run \(RuntimeError: no\): use float32$"),
    ],
)
def test_a_network_that_fails_where_its_sample_ran_is_refused_in_words(dtype, what):
    model = tiny("llama", num_hidden_layers=6).to(dtype)

    def no(*_):
        raise RuntimeError("no")

    # The sample has the first two of six equal layers.
    model.model.layers[5].mlp.register_forward_pre_hook(no)
    with pytest.raises(ValueError, match=f"^the family 'llama' is not supported {what}"):
        check.adapt(model)


def full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("layer", [0, 5])
def test_where_memory_runs_out_no_family_is_blamed(layer):
    model = tiny("llama", num_hidden_layers=6)

    model.model.layers[layer].mlp.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        check.adapt(model)


def test_where_memory_runs_out_while_the_engine_reads_the_sample_no_family_is_blamed(monkeypatch):
    monkeypatch.setattr(check, "_apart", full)
    with pytest.raises(torch.OutOfMemoryError):
        check.adapt(tiny("llama"))
