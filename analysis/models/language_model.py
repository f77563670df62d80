"""A causal language model in memory, and what is worth knowing about it.  How it came there is loading.py's."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..engine.check import adapt
from ..engine.tracing import Traced, one_token
from ..families.rotary import Adapted
from .cache_cost import CacheCost
from .dtypes import arithmetic

Stamp = tuple[int, int, int]
"""Number, size and time of a file: one of these is another as soon as it is written or another takes its place."""


def stamp(path: Path) -> Stamp:
    """What a file is like now.  Raises OSError where there is none."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


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
    twin: Callable[[PreTrainedModel], Adapted] = field(default=adapt, repr=False)
    """Makes the twin of the network: tried, or known to have been."""
    loaded_as: str = ""
    """The name that it was loaded by; empty where `load` did not make it."""
    averaged: bool = False
    """Whether its KV heads were averaged down from those that it came with."""
    stamps: Mapping[Path, Stamp] = field(default_factory=dict, repr=False)
    """What these files were like before they were read; of one that is not named nobody knows."""

    @property
    def family(self) -> str:
        """The name that transformers has for its family, such as llama."""
        return self.network.config.model_type

    @cached_property
    def adapted(self) -> Adapted:
        """The twin that the engine reads with, made once.  Raises ValueError where there can be none."""
        return self.twin(self.network)

    @cached_property
    def one_token(self) -> Traced | None:
        """The faster forward pass of one token (tracing.py), traced once; None where the model cannot be traced."""
        return one_token(self.adapted)

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.adapted.layers

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.adapted.heads

    @property
    def kv_heads(self) -> int:
        """Key-value heads of a layer."""
        return self.adapted.kv_heads

    def has(self, layer: int, head: int) -> bool:
        """Whether there is such a query head."""
        return 0 <= layer < self.layers and 0 <= head < self.heads

    @property
    def head_dim(self) -> int:
        """Dimensions of a head, without those that carry a position (families/positions.py)."""
        return self.adapted.head_dim - self.adapted.positions.added

    @property
    def grouping(self) -> str:
        """How query heads share keys: MHA (not at all), GQA (in groups), MQA (all share one)."""
        return "MHA" if self.kv_heads == self.heads else "MQA" if self.kv_heads == 1 else "GQA"

    @property
    def trained_length(self) -> int | None:
        """Tokens of the longest text that it was trained on, as its configuration says."""
        config = self.network.config
        # MPT has a name of its own for it.
        return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)

    @property
    def vocabulary(self) -> int:
        """Tokens that it knows."""
        embedding: Any = self.network.get_input_embeddings()
        return embedding.num_embeddings

    @property
    def dtype(self) -> str:
        """What it computes in, such as float32."""
        return str(self.network.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Where it is: cpu, cuda or mps."""
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
            "Heads": f"{self.heads} query, {self.kv_heads} KV ({self.grouping})",
            "Positions": self.adapted.positions.name,
            "Trained length": f"{self.trained_length:,} tokens" if self.trained_length else "not said",
            "Computed in": arithmetic(self.packed, self.dtype),
            "Cached token": f"{self.bytes_per_token / 1e3:,.1f} kB",
        }

    @property
    def cache_costs(self) -> list[CacheCost]:
        """What the cache costs, and would cost, with a KV head for each query head, for each group, and for all.

        A model whose heads are not grouped is given groups of four, or of what divides its heads.
        """
        grouped = self.kv_heads
        if self.grouping != "GQA":
            grouped = next((self.heads // n for n in (4, 3, 2, 5, 7) if self.heads % n == 0 and self.heads > n), 0)
        counts = {"MHA": self.heads, "GQA": grouped, "MQA": 1}
        length = self.trained_length or 4096
        return [
            CacheCost(name, n, self.bytes_with(n), length, n == self.kv_heads)
            for name, n in counts.items()
            if n and (n, name) not in ((1, "GQA"), (1, "MHA"))
        ]

    @cached_property
    def sha256(self) -> str:
        """Digest of the weight file; of several, the digest of their digests in order of their names.

        Raises ValueError where a file is not the one any more that was read.
        """
        digests = []
        for path in sorted(self.weights):
            # Before, since large files take a while; and afterwards, since they may be overwritten meanwhile.
            self._check_same(path)
            with path.open("rb") as f:
                digests.append(hashlib.file_digest(f, "sha256"))
            self._check_same(path)
        if len(digests) == 1:
            return digests[0].hexdigest()
        return hashlib.sha256(b"".join(d.digest() for d in digests)).hexdigest()

    def _check_same(self, path: Path) -> None:
        if self.stamps.get(path, now := stamp(path)) != now:
            raise ValueError(
                f"{path} was written after {self.name} had been loaded from it, so nobody knows of which weights the "
                "numbers would be: begin again, and the model is loaded anew"
            )
