"""What the tests share: a tiny random model, the embedded one, the official numbers.  No network, no stray files."""

import copy
import functools
import gc
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before the hub's client reads them.  The converted embedded model alone stays where it is: it takes long to make.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="sinkscope-tests-")
os.environ["SINKSCOPE_RUNS"] = f"{os.environ['HF_HOME']}/runs"
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = os.environ["HF_HOME"]

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from analysis.families.rotary import Adapted

ORACLES = Path(__file__).parent / "oracles"
LARGEST_TINY = 1_000_000
"""Parameters of a network that is told by all its numbers; a larger one is told by being the same object."""


@pytest.fixture(autouse=True, scope="session")
def _each_network_is_checked_and_traced_once():
    """The check of a network is test_families' matter, and of its trace test_decoding's: elsewhere one is enough."""
    from analysis.engine import context as source
    from analysis.engine import stream
    from analysis.models import language_model

    # As many as all tests have, so that whoever comes back finds it.
    adapt, one_token = functools.lru_cache(512)(stream.adapt), functools.lru_cache(512)(source.one_token)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "adapt", adapt)
        patch.setattr(language_model, "adapt", _once_for_equal_networks(adapt))
        for module in (source, language_model):
            patch.setattr(module, "one_token", one_token)
        yield


def _once_for_equal_networks(adapt: Callable) -> Callable:
    """Gives a network that was loaded again, with the same numbers, the twin that it was given before."""
    adapted = {}

    def once(network: PreTrainedModel) -> Adapted:
        if network.device.type != "cpu" or network.num_parameters() > LARGEST_TINY:
            return adapt(network)
        content = hashlib.sha256(network.config.to_json_string().encode())
        for name, module in network.named_modules():
            content.update(f"{name} {type(module)}".encode())
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
        if (key := content.digest()) not in adapted:
            # Of a copy, since a test may change its own network afterwards.
            adapted[key] = adapt(copy.deepcopy(network))
        return adapted[key]

    return once


@pytest.fixture(autouse=True, scope="session")
def _packages_are_searched_for_components_once():
    """AppTest has Streamlit read the metadata of every installed package for each run of a page."""
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            manifest_scanner, "scan_component_manifests", functools.cache(manifest_scanner.scan_component_manifests)
        )
        yield


@pytest.fixture(scope="session")
def tiny_llama() -> LlamaForCausalLM:
    """A random llama whose attention is uneven enough that evicting a token shows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def embedded():
    """The embedded model in float32 on this machine's processor."""
    from analysis.models.loading import load

    return load("embedded", device="cpu")


@pytest.fixture(scope="session")
def embedded_packed():
    """The same with weights of four bits."""
    from analysis.models.loading import load

    return load("embedded", device="cpu", weights="int4")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser.  Without one its tests are skipped, but where CI is set they fail."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    reason = "no chromium on the PATH: install it (apt-get install chromium) to run the browser tests"
    return pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.fixture(scope="session")
def oracle():
    """Token ids [N + 1] and the official NLL [N] for some sinks and window."""

    def read(sinks: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        with np.load(ORACLES / f"hamlet_{sinks}_{window}.npz") as numbers:
            return numbers["token_ids"], numbers["nll"]

    return read


@pytest.fixture(scope="session")
def model(tiny_llama, tmp_path_factory):
    """A folder with a tiny model that has no tokenizer, so that texts are token ids."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_llama.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(0, 97, 600))
    return str(path)


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit status, standard output and standard error of a command."""

    from analysis.cli.console import out
    from analysis.cli.main import main

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["analysis", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    monkeypatch.setattr(out, "width", 140)
    return command


@pytest.fixture
def command(run):
    """Runs a command that must end with a status, and gives what it said on both channels."""

    def call(*arguments, code=0):
        got, said, error = run(*map(str, arguments))
        assert got == code, (said, error)
        return said + error

    return call


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A library of the test's own."""
    place = tmp_path / "library"
    monkeypatch.setenv("SINKSCOPE_RUNS", str(place))
    return place


@pytest.fixture
def registry():
    """Live runs of a test, which end with it."""
    from app.jobs.registry import Registry

    registry = Registry()
    yield registry
    registry.close()


def pytest_configure():
    # A shell that starts them in the background has them ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Tests on the embedded model are told apart from those of units, which have tiny ones and are quick; those on the
    optional one, or on a GPU, are left out unless they are asked for: skipped, they would look as if they had been
    done."""
    unasked = [name for name in ("gemma", "gpu") if name not in config.option.markexpr]
    optional = [item for item in items if any(item.get_closest_marker(name) for name in unasked)]
    items[:] = [item for item in items if item not in optional]
    config.hook.pytest_deselected(items=optional)
    for item in items:
        if {"embedded", "embedded_packed"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("real")


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_collection_finish():
    """What has been imported stays: collecting garbage need not look at it again and again."""
    gc.collect()
    gc.freeze()
