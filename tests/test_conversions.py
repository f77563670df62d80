"""Laws of conversions: the same model as its file, made once, and made again whatever has become of it."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AddedToken, AutoTokenizer

from analysis.models import checked, conversions, fetch
from analysis.models.loading import load

from .fuzz import seeds
from .gguf_files import tiny, write

pytestmark = pytest.mark.whole

UNLIKE = {"_name_or_path", "transformers_version", "architectures", "quantization_config"}
"""What a configuration says of where it was read from."""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tiny("llama"), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, into which every file is worth to be converted."""
    monkeypatch.setattr(conversions, "WORTH", 0)
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder(cache) -> Path:
    (found,) = (p for p in cache.iterdir() if not p.name.startswith("."))
    return found


def loaded(file) -> tuple:
    heard = []
    return load(str(file), device="cpu", progress=heard.append), [h.partition(":")[0] for h in heard]


def test_a_file_is_converted_once_and_is_the_same_model(file, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(conversions, "WORTH", 10**9)
        plain = loaded(file)[0]
    assert not cache.exists()
    first, heard = loaded(file)
    assert "Converting tiny, once" in heard and folder(cache).name.startswith("tiny.gguf-")
    again, heard = loaded(file)
    assert set(heard) == {"Loading tiny"}
    for model in (first, again):
        assert model.sha256 == plain.sha256 and model.name == plain.name and model.card == plain.card
        for name, weight in plain.network.state_dict().items():
            assert torch.equal(weight, model.network.state_dict()[name])
        mine, its = model.network.config.to_dict(), plain.network.config.to_dict()
        assert {k: mine.get(k) for k in its.keys() - UNLIKE} == {k: its[k] for k in its.keys() - UNLIKE}


def test_a_model_whose_weights_are_tied_is_converted_too(cache, tmp_path):
    """Its output layer is a wide matrix, which lies otherwise in memory than in a file."""
    network = tiny("llama", tie_word_embeddings=True)
    model, heard = loaded(write(network, tmp_path / "tied.gguf"))
    assert "Converting tied, once" in heard and folder(cache).name.startswith("tied.gguf-")
    assert torch.equal(model.network.get_output_embeddings().weight, network.get_input_embeddings().weight)


def flip(path: Path) -> None:
    with path.open("r+b") as f:
        f.seek(path.stat().st_size // 2)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))


DAMAGES = {
    "cut": lambda p: os.truncate(p, p.stat().st_size // 2),
    "empty": lambda p: p.write_bytes(b""),
    "flipped": flip,
    "gone": Path.unlink,
    "a folder": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_whatever_has_become_of_a_file_it_is_made_again_and_said(file, cache, caplog, how):
    whole = loaded(file)[0].network.state_dict()
    names = sorted(p.name for p in folder(cache).iterdir() if p.name != checked.FILE)
    assert {"config.json", "model.safetensors", conversions.MANIFEST} <= set(names)
    for name in names:
        before = caplog.text.count("The converted tiny cannot be used")
        DAMAGES[how](folder(cache) / name)
        model, heard = loaded(file)
        if name != conversions.MANIFEST or how != "flipped":
            # A bit of what is only noted there changes nothing.
            assert "Converting tiny, once" in heard
            assert caplog.text.count("The converted tiny cannot be used") == before + 1
        assert all(torch.equal(weight, model.network.state_dict()[key]) for key, weight in whole.items())
        assert sorted(p.name for p in folder(cache).iterdir()) == sorted([*names, checked.FILE])
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [folder(cache).name]


def test_what_another_version_made_is_made_again_and_not_called_damaged(file, cache, monkeypatch):
    loaded(file)
    monkeypatch.setattr(conversions, "_made_with", lambda: ["another"])
    heard = loaded(file)[1]
    why = "it was made with another version of what converts"
    assert f"The converted tiny cannot be used ({why})" in heard
    assert not any("damaged" in words for words in heard)


def test_a_damaged_tokenizer_is_seen(tmp_path):
    network = seeds.model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    conversions.place(tmp_path / "cache" / "m", network, tokenizer)
    assert conversions.damage(tmp_path / "cache" / "m") == ""
    flip(tmp_path / "cache" / "m" / "tokenizer.json")
    assert conversions.damage(tmp_path / "cache" / "m") == "tokenizer.json has changed"


def test_a_tokenizer_that_is_kept_is_what_it_was(tmp_path):
    """Its configuration names its special tokens, so that its file is parsed once: those that it was given later are
    in the file, too."""
    network = seeds.model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", padding_side="left")
    tokenizer.add_tokens(["<one>", AddedToken("<two>", special=True)])
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    conversions.place(tmp_path / "m", network, tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "m")
    for words in ("a", "", " to be<one>or <two> not<begin>", "<begin>é\n\n"):
        ids = tokenizer(words)["input_ids"]
        assert again(words)["input_ids"] == ids and again.decode(ids) == tokenizer.decode(ids)
        assert again.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)
    for name in ("special_tokens_map", "all_special_ids", "padding_side", "model_max_length", "chat_template"):
        assert getattr(again, name) == getattr(tokenizer, name)
    assert len(again) == len(tokenizer) and again.get_vocab() == tokenizer.get_vocab()
    spelled = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items()}
    assert {i: str(t) for i, t in again.added_tokens_decoder.items()} == spelled


def test_files_that_were_only_touched_are_whole(file, cache):
    loaded(file)
    for path in folder(cache).iterdir():
        os.utime(path)
    assert set(loaded(file)[1]) == {"Loading tiny"}
    (folder(cache) / "adapter_config.json").write_text("{}")
    assert "Converting tiny, once" in loaded(file)[1]


def test_another_file_of_the_same_name_is_another_model(file, cache, tmp_path):
    mine = Path(shutil.copy(file, tmp_path / "mine.gguf"))
    loaded(mine)
    write(tiny("llama", attention_bias=True), mine)
    model, heard = loaded(mine)
    assert "Converting mine, once" in heard and model.network.config.attention_bias


def test_what_a_killed_conversion_left_is_removed(file, cache):
    """A draft stands beside where it was to go; only who has the lock makes one."""
    loaded(file)
    (cache / f".{folder(cache).name}.abcd1234" / "half").mkdir(parents=True)
    (folder(cache) / "config.json").unlink()
    old = cache / "tmpabcd1234"
    (old / "tiny.gguf-0").mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    loaded(file)
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [folder(cache).name]


def test_few_conversions_are_kept_and_those_that_were_used_last(file, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(conversions, "MOST", 2)
    copies = [shutil.copy(file, tmp_path / f"{name}.gguf") for name in "abc"]
    for i in (0, 1, 0, 2):
        loaded(copies[i])
        time.sleep(0.02)
    assert sorted(p.name[0] for p in cache.iterdir() if not p.name.startswith(".")) == ["a", "c"]


def test_a_cache_without_room_costs_time_and_nothing_else(file, cache, monkeypatch):
    cache.write_text("no folder")
    model, heard = loaded(file)
    assert model.name == "tiny" and any("cannot be kept" in h for h in heard)
    cache.unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    model, heard = loaded(file)
    assert model.name == "tiny" and any("on disk, and" in h for h in heard) and not folder_or_none(cache)


def folder_or_none(cache) -> list[Path]:
    return [p for p in cache.iterdir() if p.is_dir()] if cache.exists() else []


def test_the_embedded_model_lies_whole_in_the_cache(embedded):
    place, source = fetch.embedded(lambda sentence: None)
    assert conversions.damage(place, source) == "" and embedded.weights == [source]
