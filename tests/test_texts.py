"""Laws of texts: tokens together are the text, and what cannot be read gets one sentence that says what to do."""

import io

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from analysis import texts
from analysis.engine.stream import open_lanes
from analysis.policies import Dense
from analysis.texts import MAX_BYTES, from_bytes, read, token_texts, tokenize

from .tokenizers import byte_level


def refusal(data: bytes, name: str = "upload.txt") -> str:
    """The sentence that an upload is refused with."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        from_bytes(data, name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    return str(caught.value)


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


@pytest.fixture(scope="module")
def tokenizer(embedded):
    return embedded.tokenizer


@pytest.fixture(scope="module")
def spaced():
    """A tokenizer of the other kind: spaces are part of the word as ▁, unknown characters are bytes."""
    words = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁a", "b")]
    model = models.BPE({w: i for i, w in enumerate(words)}, merges, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_bundled_plays_are_read_by_name():
    assert {"hamlet", "macbeth", "king-lear"} <= set(texts.plays())
    hamlet = read("hamlet")
    assert hamlet.title == "Hamlet"
    assert hamlet.content.startswith("# Hamlet\n")
    assert all(texts.title(name) for name in texts.plays())
    # Its first line is that of its first act.
    assert texts.title("measure-for-measure") == texts.play("measure-for-measure").title == "Measure for Measure"


def test_tokens_of_hamlet_are_the_official_ones(tokenizer, oracle):
    ids, _ = oracle(4, 124)
    assert np.array_equal(tokenize(read("hamlet"), tokenizer, limit=len(ids)), ids)


def test_same_bytes_have_the_same_digest_wherever_they_come_from(tmp_path):
    (tmp_path / "note.txt").write_bytes(b"to be or not")
    assert read(str(tmp_path / "note.txt")).sha256 == from_bytes(b"to be or not", "paste").sha256


@pytest.mark.parametrize("limit", [2, 3, 100, 1000])
def test_limit_cuts_and_changes_nothing_before(tokenizer, limit):
    text = read("hamlet")
    assert np.array_equal(tokenize(text, tokenizer, limit=limit), tokenize(text, tokenizer)[:limit])


def test_limit_holds_where_one_token_is_many_characters(tokenizer):
    text = from_bytes(b" " * 50_000 + b"a b c " * 50, "spaces.txt")
    assert np.array_equal(tokenize(text, tokenizer, limit=300), tokenize(text, tokenizer)[:300])


def test_no_special_token_is_added_unless_asked_for(tokenizer):
    text = from_bytes(b"to be or not to be", "paste")
    plain = tokenize(text, tokenizer)
    assert not set(plain) & set(tokenizer.all_special_ids)
    assert np.array_equal(tokenize(text, tokenizer, bos=True), [tokenizer.bos_token_id, *plain])


def test_windows_files_read_like_any_other():
    assert from_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree", "a.txt").content == "one\ntwo\nthree"


def test_token_ids_need_no_tokenizer(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(5, dtype=np.int64))
    ids = tokenize(read(str(tmp_path / "ids.npy")), None, limit=4)
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b" \n\t ", "white space"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
        ("naïve".encode("latin-1"), "byte 2 is 0xef"),
        (b"\xef\xbb\xbf" + "naïve".encode("latin-1"), "byte 5 is 0xef"),
        ("plain".encode("utf-16"), "UTF-16"),
        (b"a" * (MAX_BYTES + 1), "8 MB"),
    ],
)
def test_upload_that_is_no_text_gets_its_sentence(data, words):
    assert words in refusal(data)


def test_largest_text_is_still_read():
    assert len(from_bytes(b"a" * MAX_BYTES, "large.txt").content) == MAX_BYTES


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not an array", "numpy.save"),
        (npy([1, 2, 3])[:-4], "numpy.save"),
        (npy([{"a": 1}]), "numpy.save"),
        (npy([[1, 2], [3, 4]]), "one dimension"),
        (npy([0.5, 1.5]), "whole numbers"),
        (npy([True, False]), "whole numbers"),
        (npy(3), "one dimension"),
        (npy([1, -2]), "-2"),
        (npy([1, 2**40]), str(2**40)),
        (npy(np.zeros(0, np.int32)), "no token ids"),
    ],
)
def test_array_that_is_no_token_ids_gets_its_sentence(data, words):
    assert words in refusal(data, "ids.npy")


def test_array_that_claims_to_be_huge_gets_its_sentence():
    header = npy([1, 2, 3]).replace(b"(3,), }" + b" " * 12, b"(3000000000000,), }")
    assert b"3000000000000" in header
    assert "numpy.save" in refusal(header, "ids.npy")


def test_array_that_holds_something_else_to_unpickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    refusal(npy(np.array([Trap()], dtype=object)), "ids.npy")
    assert not (tmp_path / "ran").exists()


def test_token_unknown_to_the_model_is_refused(tiny_llama):
    ids = tokenize(from_bytes(npy([1, 97]), "ids.npy"), None)
    with pytest.raises(ValueError, match="between 0 and 96 for this model, and the text has ids from 1 to 97"):
        open_lanes(tiny_llama, ids, [Dense()])


@pytest.mark.parametrize(("data", "name"), [(b"a", "a.txt"), (npy([7]), "ids.npy")])
def test_one_token_predicts_nothing(tokenizer, data, name):
    with pytest.raises(ValueError, match="has only 1 token"):
        tokenize(from_bytes(data, name), tokenizer)
    with pytest.raises(ValueError, match="at least 2"):
        tokenize(from_bytes(data, name), tokenizer, limit=1)


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match=r"\.npy"):
        tokenize(from_bytes(b"to be", "paste"), None)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="hamlet"):
        read("Hamlett")


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "~no.such.user/x"])
def test_name_that_can_be_no_path_is_refused_like_any_other(name):
    with pytest.raises(ValueError, match="text"):
        read(name)


def test_folder_is_not_a_text(tmp_path):
    with pytest.raises(ValueError, match="not a file"):
        read(str(tmp_path))


def test_oversized_file_is_not_read_whole(tmp_path):
    with (tmp_path / "large.txt").open("wb") as f:
        f.truncate(2**40)
    with pytest.raises(ValueError, match="8 MB"):
        read(str(tmp_path / "large.txt"))


TRICKY = "naïve 😀 日本語 👩\u200d👩\u200d👧\n\n  <b>x</b> $a_1$ `c` \ufffd & **d**"


@pytest.mark.parametrize("content", [TRICKY, "   lead", "\n", "é"])
def test_pieces_together_are_the_text(tokenizer, content):
    ids = np.array(tokenizer(content, add_special_tokens=False)["input_ids"])
    shown = token_texts(tokenizer, ids)
    assert len(shown) == len(ids)
    assert "".join(shown) == content


def test_pieces_keep_their_spaces_in_every_kind_of_tokenizer(spaced):
    ids = np.array(spaced("ab é b a", add_special_tokens=False)["input_ids"])
    shown = token_texts(spaced, ids)
    assert "".join(shown) == " ab é b a"
    assert shown[0] == " ab"
    assert shown[-1] == " a"


def test_letters_of_an_added_token_are_no_bytes():
    tokenizer = byte_level()
    tokenizer.add_tokens(["ñandú", "café"])
    ids = np.array(tokenizer("a ñandú in the café", add_special_tokens=False)["input_ids"])
    assert {*tokenizer.convert_tokens_to_ids(["ñandú", "café"])} < {*ids.tolist()}
    assert "".join(token_texts(tokenizer, ids)) == "a ñandú in the café"


def test_character_shows_at_its_last_token(tokenizer):
    ids = np.array(tokenizer("😀", add_special_tokens=False)["input_ids"])
    assert token_texts(tokenizer, ids) == [""] * (len(ids) - 1) + ["😀"]


def test_bytes_that_become_no_character_stay_where_they_are(tokenizer):
    smile = tokenizer("😀", add_special_tokens=False)["input_ids"]
    there = tokenizer(" there", add_special_tokens=False)["input_ids"]
    assert token_texts(tokenizer, np.array([smile[0], *there])) == ["\ufffd", " there"]
    assert token_texts(tokenizer, np.array([*there, smile[-1]])) == [" there", "\ufffd"]


def test_pieces_of_a_model_without_tokenizer_are_numbers():
    assert token_texts(None, np.array([3, 5])) == [" 3", " 5"]
