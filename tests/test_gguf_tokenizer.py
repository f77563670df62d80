"""Laws of how the text of a GGUF file's model is split and begun: as its header says, or not at all."""

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from analysis.models import load
from tests.gguf_files import tiny, write

TOKENS = [*bytes_to_unicode().values(), "ĊĊ", "ĠĠ", "ĠĠĠ", "12", "34", "a!", "Ġa", "<s>"]
BYTES = {
    "tokens": TOKENS,
    "merges": ["Ċ Ċ", "Ġ Ġ", "ĠĠ Ġ", "1 2", "3 4", "a !", "Ġ a"],
    "token_type": [1] * 263 + [3],
    "bos_token_id": 263,
}
"""A byte-level vocabulary with a few merges."""
PIECES = {
    "smollm": "a ĊĊ 1 2 3 4 ĠĠĠ 1 Ġa !",
    "stablelm2": "a ĊĊ 1 2 3 4 ĠĠ Ġ 1 Ġa !",
    "glm4": "a ĊĊ 12 3 4 ĠĠ Ġ 1 Ġa !",
    "falcon": "a Ċ Ċ 12 3 4 ĠĠ Ġ 1 Ġa !",
    "deepseek-coder": "a Ċ Ċ 1 2 3 4 ĠĠĠ 1 Ġa !",
    "bloom": "a ĊĊ 12 34 ĠĠ Ġ 1 Ġa !",
    "viking": "a ĊĊ 1 2 3 4 ĠĠ Ġ 1 Ġa !",
    "gpt-2": "a Ċ Ċ 12 34 ĠĠ Ġ 1 Ġa !",
}


def tokenizer_of(folder, family="llama", **words):
    return load(str(write(tiny(family, vocab_size=264, num_hidden_layers=1), folder / "m.gguf", words=words))).tokenizer


@pytest.mark.parametrize("split", PIECES)
def test_a_text_is_split_as_the_file_says(split, tmp_path):
    made = tokenizer_of(tmp_path, **BYTES, pre=split)
    assert made.tokenize("a\n\n1234   1 a!") == PIECES[split].split()
    assert made.decode(made("a\n\n1234   1 a!")["input_ids"]) == "a\n\n1234   1 a!"


def test_digits_that_stand_alone_are_those_of_the_models_own_tokenizer(tmp_path):
    made = tokenizer_of(tmp_path, **BYTES, pre="smollm")
    own = Tokenizer.from_str(made.backend_tokenizer.to_str())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    for text in ("\n\n1. one\n\n2. two", "\t\t7", "in 1999,  2 of ½ and ٣", "it's 10 %", "  ", ""):
        assert made(text)["input_ids"] == own.encode(text).ids


def test_a_split_that_is_not_known_leaves_token_ids(tmp_path, caplog):
    assert tokenizer_of(tmp_path, **BYTES, pre="kimi-k2") is None
    assert "give the folder of the model" in caplog.text and "(tokenizer.ggml.pre = kimi-k2)" in caplog.text


@pytest.mark.parametrize(("says", "begun"), [({}, True), ({"add_bos_token": False}, False)])
def test_llama_3_begins_with_bos_unless_its_file_says_otherwise(says, begun, tmp_path):
    made = tokenizer_of(tmp_path, **BYTES, **says, pre="llama-bpe")
    assert made("a")["input_ids"] == [263] * begun + [TOKENS.index("a")]


@pytest.mark.parametrize(("split", "pieces"), [("llama-bpe", ["Ġx"]), ("gpt-2", ["Ġ", "x"])])
def test_a_whole_word_of_llama_3_needs_no_merges(split, pieces, tmp_path):
    tokens = [token if token != "a!" else "Ġx" for token in TOKENS]
    made = tokenizer_of(tmp_path, **BYTES | {"tokens": tokens, "merges": BYTES["merges"][:5]}, pre=split)
    assert made.tokenize(" x") == pieces


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("says", [{}, {"add_space_prefix": False}])
def test_a_space_comes_before_sentencepiece_text_unless_the_file_says_otherwise(family, says, tmp_path):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a", "b", "c"]
    kinds, scores = [2, 3, 3] + [6] * 256 + [1] * 5, [-float(i) for i in range(264)]
    words = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds, "bos_token_id": 1}
    made = tokenizer_of(tmp_path, family, **words, **says)
    assert made.tokenize("a a") == (["a", "▁a"] if says else ["▁a", "▁a"])
    assert made.decode(made("a a", add_special_tokens=False)["input_ids"]) == "a a"


@pytest.mark.real
def test_the_embedded_model_reads_numbers_as_it_was_taught_to():
    made = load().tokenizer
    assert made.tokenize("one\n\n1. two   12") == ["one", "ĊĊ", "1", ".", "Ġtwo", "ĠĠĠ", "1", "2"]
