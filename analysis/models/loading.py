"""A causal language model in memory: loading it, and what is worth knowing about it.

Refuses with one sentence what cannot be loaded.  Where the files come from is fetch.py's; whether the engine can read a
family is decided where that is known (families/).  Weights are read from safetensors or GGUF only and no model's own
code is ever run.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .. import files
from ..engine.check import adapt
from ..engine.tracing import one_token
from ..families import unreadable
from ..families.rotary import Adapted
from . import conversions, gguf_metadata
from .checkpoint import check_loaded, check_quantization, check_rope
from .devices import pick_device
from .dtypes import AUTO, DTYPES, arithmetic, decide
from .fetch import EMBEDDED_NAME, check_gguf, embedded, first_line, from_hub, weight_files
from .gguf_once import read_once
from .gqa import pool
from .kinds import EMBEDDED
from .memory import fits_on_one, gpus, needed, numbers_in
from .progress import Tell, told
from .quantization import check, lay_out, pack


class Sharing(NamedTuple):
    """What the cache costs when the query heads share so many KV heads: bytes of a token, and of `length` tokens."""

    name: str
    kv_heads: int
    token: int
    length: int
    own: bool
    """Whether the model is like this; otherwise the figures are predicted."""


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

    def has(self, layer: int, head: int) -> bool:
        """Whether there is such a query head."""
        return 0 <= layer < self.layers and 0 <= head < self.heads

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
        return {
            "Family": self.family,
            "Layers": f"{self.layers}",
            "Heads": f"{self.heads} query, {self.kv_heads} KV ({self.sharing})",
            "Positions": self.adapted.positions.name,
            "Trained length": f"{self.trained_length:,} tokens" if self.trained_length else "not said",
            "Computed in": arithmetic(self.packed, self.dtype),
            "Cached token": f"{self.bytes_per_token / 1e3:,.1f} kB",
        }

    @property
    def sharings(self) -> list[Sharing]:
        """What the cache costs, and would cost, with a KV head for each query head, for each group, and for all.

        A model whose heads are not grouped is given groups of four, or of what divides its heads.
        """
        grouped = self.kv_heads
        if self.sharing != "GQA":
            grouped = next((self.heads // n for n in (4, 3, 2, 5, 7) if self.heads % n == 0 and self.heads > n), 0)
        counts = {"MHA": self.heads, "GQA": grouped, "MQA": 1}
        length = self.trained_length or 4096
        return [
            Sharing(name, n, self.bytes_with(n), length, n == self.kv_heads)
            for name, n in counts.items()
            if n and (n, name) not in ((1, "GQA"), (1, "MHA"))
        ]

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


def load(
    name: str = EMBEDDED,
    *,
    dtype: str = "float32",
    device: str = "auto",
    weights: str = "model",
    kv_heads: int | None = None,
    progress: Tell = lambda sentence: None,
    make_room: Callable[[], None] = lambda: None,
) -> LanguageModel:
    """The model of that name, ready to read.

    `dtype`: float32, bfloat16, float16, or auto (dtypes.py); `weights`: model, int8 or int4 (weights.py); `kv_heads`:
    averaged down to so many (sharing.py); `progress` is told in a few words what is being waited for; `make_room` is
    called when there is such a model, before memory is taken.  Raises ValueError, in one sentence that says what to do,
    for everything that can be wrong with a name or a file.
    """
    if dtype not in (AUTO, *DTYPES):
        raise ValueError(f"dtype must be one of {', '.join((AUTO, *DTYPES))}, not {dtype!r}")
    dtype = decide(dtype, device).dtype
    check(weights)
    target = pick_device(device)
    # os.path answers for any string, also for one that can be no path.
    place = Path(os.path.expanduser(name))
    if name == EMBEDDED:
        (path, installed), called = embedded(progress), EMBEDDED_NAME
    elif os.path.exists(place):
        path, called = place, place.resolve().stem if place.suffix.lower() == ".gguf" else place.resolve().name
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith((".gguf", "/")):
        path, called = from_hub(name, progress), name
    else:
        raise ValueError(
            f"there is no model {name[:80]!r}: write embedded, a hub id such as HuggingFaceTB/SmolLM2-360M, or the "
            "path of a folder or GGUF file that exists"
        )
    own = path
    if name != EMBEDDED and path.is_file():
        path = _converted(path, called, progress, make_room)
    with told(f"Loading {called}", progress), read_once() if path.is_file() else contextlib.nullcontext():
        model = _from_disk(path, called, getattr(torch, dtype), target, weights, kv_heads, make_room)
    if path != own or name == EMBEDDED:
        # The file says more than its conversion: it is the same on every machine.
        model.weights = [installed if name == EMBEDDED else own]
    if name != EMBEDDED:
        # Refused now, in the family's name, rather than when the first token is read.
        assert model.adapted
    return model


def _converted(path: Path, called: str, progress: Tell, make_room: Callable[[], None]) -> Path:
    """The folder of the cache with the same model as a GGUF file; the file itself where that is small, or the cache
    has no room for its numbers."""
    check_gguf(path)
    if path.stat().st_size < conversions.WORTH:
        return path
    folder = conversions.folder_of(files.cache_folder(), path)

    def convert() -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        files.check_room(folder, 4 * numbers_in(path), f"the conversion of {called}")
        with told(f"Converting {called}, once", progress), read_once():
            model = _from_disk(path, called, torch.float32, torch.device("cpu"), "model", None, make_room)
        return model.network, model.tokenizer

    try:
        conversions.kept(folder, path, called, convert, progress)
    except (OSError, ValueError) as e:
        # Read as it is, which takes its time each time, or is refused with what is wrong with it.
        progress(f"The conversion of {called} cannot be kept ({first_line(e)})")
        return path
    return folder


def _from_disk(
    path: Path,
    called: str,
    dtype: torch.dtype,
    device: torch.device,
    packed: str,
    kv_heads: int | None,
    make_room: Callable[[], None],
) -> LanguageModel:
    local = {"local_files_only": True, "trust_remote_code": False}
    header = None
    if path.is_file():
        check_gguf(path)
        header = gguf_metadata.read(path, called)
        source, weights = path.parent, [path]
        local["gguf_file"] = path.name
    else:
        source, weights = path, weight_files(path, called)
    config = _configuration(source, called, local)
    if header is not None:
        try:
            config = gguf_metadata.complete(config, header)
        except (TypeError, AttributeError, ArithmeticError) as e:
            raise ValueError(
                f"{called} says something that is no number where one belongs ({first_line(e)}): convert it again"
            ) from e
    quantized = check_quantization(config, called)
    check_rope(config, None, called)
    make_room()
    alone = fits_on_one(needed(weights, config, dtype), dtype, device, called)
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            # Refused below, by name.
            ignore_mismatched_sizes=True,
            # Spread over GPUs only: what lies on the CPU or on disk would be copied for every chunk.
            **({} if alone else {"device_map": "auto", "max_memory": gpus()}),
            **local,
        )
        network = (network.to(device) if alone else network).eval().requires_grad_(False)
    except (torch.OutOfMemoryError, MemoryError) as e:
        raise ValueError(
            f"{called} does not fit into the memory of {device.type}: use bfloat16 or a smaller model"
        ) from e
    except Exception as e:
        raise ValueError(
            f"the weights of {called} cannot be read, fetch or convert them again: they may be cut short or belong to "
            f"another configuration ({first_line(e)})"
        ) from e
    if header is not None:
        report["unexpected_keys"] |= gguf_metadata.left_over(network, header)
    check_loaded(network, report, weights, called, quantized=quantized)
    tokenizer = _tokenizer(source, called, local)
    if kv_heads is not None:
        pool(network, kv_heads)
    if packed != "model":
        pack(network, packed)
    lay_out(network)
    return LanguageModel(called, network, tokenizer, weights, packed)


def _tokenizer(source: Path, called: str, local: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """A model's tokenizer; None where it has none, or one that cannot be used: it can still read token ids."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **local)
        # One that is damaged may say so only when it is asked.
        tokenizer("a")
        return tokenizer
    except Exception as e:
        if "gguf_file" in local or any((source / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
            logging.getLogger(__name__).warning(
                "The tokenizer of %s cannot be used, so it reads token ids only: fetch it again (%s)",
                called,
                first_line(e),
            )
        return None


def _configuration(source: Path, called: str, local: dict[str, Any]) -> PretrainedConfig:
    # Whatever is wrong inside a file that somebody else wrote may come out as any exception at all.
    try:
        config = AutoConfig.from_pretrained(source, **local)
    except Exception as e:
        raise ValueError(
            f"{called} is of a family that transformers does not know, or its configuration is damaged: choose another "
            f"model ({first_line(e)})"
        ) from e
    if why := unreadable(config):
        raise ValueError(why)
    return config
