"""What a run was asked: everything that decides its numbers.  Knows nothing of what was learned."""

import json
import operator
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from .. import COMMAND, files
from ..models.devices import DEVICES
from ..models.dtypes import DTYPES, WEIGHTS, arithmetic
from ..policies import parse
from ..texts import BOS, SPECIAL, Text, Tokenized, checked, tokenized

TYPED = "what was typed"
"""The text of a conversation that has no script."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen, token by token."""

    max_new: int = 128
    """At most so many tokens an answer."""
    temperature: float = 0.0
    """0: always the most probable token."""
    top_k: int = 0
    """Only the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Only the most probable tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Logits of tokens that were said lately are divided by this, and those below 0 multiplied by it."""
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "max_new": (self.max_new >= 1, "at least 1 token"),
            "temperature": (0 <= self.temperature <= 100, "from 0 (greedy) to 100"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty <= 10, "above 0 and at most 10"),
            "seed": (0 <= self.seed < 2**63, f"from 0 to {2**63 - 1:,}"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {expected}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Spec:
    """Everything that decides the numbers of a run.  The same Spec gives the same numbers."""

    model: str
    text: str
    policies: tuple[str, ...]
    tokens: int | None = None
    """At most so many tokens are read; None reads the whole text."""
    chunk: int = 512
    dtype: str = "float32"
    device: str = "auto"
    bos: str | bool = "auto"
    """Whether the text begins with BOS: auto (as the tokenizer does by itself), on or off."""
    weights: str = "model"
    """As the model came, or packed: int8, int4."""
    kv_heads: int | None = None
    """KV heads averaged down to so many; None: as the model has them."""
    sampling: Sampling | None = None
    """In a conversation, whose text is a script: how answers are chosen."""
    kv_chunk: int | None = None
    """In a conversation: cached tokens that an answer reads at a time; changes no number."""
    special: str = "text"
    """What names of control tokens in a text, or in what somebody types, are: text or tokens."""
    fidelity: bool = False
    """Whether each lane of a reading is measured against the first one: KL divergence and top-1 agreement."""

    def __post_init__(self) -> None:
        if isinstance(self.policies, str):
            raise ValueError(f"policies are several, such as ({self.policies!r},), and not one string")
        # As a file has them: a notebook may hold paths, policies, and the whole numbers of other libraries.
        for name in ("model", "text"):
            object.__setattr__(self, name, str(getattr(self, name)))
        object.__setattr__(self, "policies", tuple(map(str, self.policies)))
        for name in ("tokens", "chunk", "kv_heads", "kv_chunk"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        object.__setattr__(self, "bos", checked("bos", self.bos, BOS))
        checked("special", self.special, SPECIAL)
        if isinstance(self.sampling, dict):
            object.__setattr__(self, "sampling", Sampling(**self.sampling))
        if not self.policies:
            raise ValueError("choose at least one policy, such as streaming:sinks=4,window=252")
        for policy in self.policies:
            parse(policy)
        if self.tokens is not None and self.tokens < 2:
            raise ValueError(f"tokens must be at least 2, to predict one from another, not {self.tokens}")
        if self.chunk is None or self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 token, not {self.chunk}")
        if self.kv_heads is not None and self.kv_heads < 1:
            raise ValueError(f"kv_heads must be at least 1, not {self.kv_heads}")
        for name, among in (("dtype", DTYPES), ("weights", WEIGHTS), ("device", DEVICES)):
            if (value := getattr(self, name)) not in among:
                raise ValueError(f"{name} must be {', '.join(among[:-1])} or {among[-1]}, not {value!r}")
        if self.fidelity and (self.sampling is not None or len(self.policies) < 2):
            raise ValueError("fidelity measures lanes that read a text against the first: give at least two policies")
        if self.kv_chunk is not None and self.kv_chunk < 1:
            raise ValueError(f"kv_chunk must be at least 1 token, not {self.kv_chunk}")

    @property
    def arithmetic(self) -> str:
        """What numbers are computed in, in a few words."""
        return arithmetic(self.weights, self.dtype)

    @property
    def loading(self) -> dict[str, Any]:
        """How the model is loaded: keywords of `analysis.models.loading.load`."""
        names = ("dtype", "device", "weights", "kv_heads")
        return {"name": self.model} | {name: getattr(self, name) for name in names}

    def tokenized(self, text: Text, tokenizer: Any) -> Tokenized:
        """A text as the model reads it.  Raises ValueError with what to do."""
        return tokenized(text, tokenizer, bos=self.bos, special=self.special, limit=self.tokens)

    def command(self) -> str:
        """The command line that this Spec is of, quoted for a shell; one that was typed asks for the words again."""
        policies = [f"--policy={policy}" for policy in self.policies]
        if (sampling := self.sampling) is not None:
            script = None if self.text == TYPED else self.text
            return self.command_line("chat", *policies, script=script, **asdict(sampling), kv_chunk=self.kv_chunk)
        measured = ["--fidelity"] * self.fidelity
        return self.command_line("stream", *policies, *measured, text=self.text, tokens=self.tokens)

    def command_line(self, *words: str, without: Sequence[str] = (), **options: Any) -> str:
        """A command that computes with this model as it is read here, quoted for a shell: words, and options by name.

        Several numbers have commas between them; what is None is left out, and so is what the command has no options
        for, `without`.
        """
        own = [name for name in ("model", "chunk", "dtype", "device", "weights", "kv_heads") if name not in without]
        options |= {name: getattr(self, name) for name in own}
        # As one word each, since a value may begin with a dash.
        said = [f"--{name.replace('_', '-')}={_said(value)}" for name, value in options.items() if value is not None]
        said += {"auto": [], "on": ["--bos"], "off": ["--no-bos"]}[str(self.bos)]
        said += [f"--special={self.special}"] if self.special != "text" else []
        return shlex.join([*COMMAND.split(), *words, *said])

    def to_json(self) -> str:
        """All settings as JSON, which `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote; raises ValueError when it is something else."""
        wrong = "this is not the Spec of a run"
        spec, said = files.decoded(text, cls, wrong), files.decoded(text, dict[str, Any], wrong)
        if new := unknown(said):
            raise ValueError(f"{wrong}: nobody here knows its {new[0]!r}")
        return spec


def unknown(said: Mapping[str, Any]) -> list[str]:
    """Settings of a written Spec that are not known here, as of another version: they could change the numbers."""
    sampling = said.get("sampling") or {}
    return sorted({*said} - {f.name for f in fields(Spec)} | {*sampling} - {f.name for f in fields(Sampling)})


def _whole(name: str, number: Any) -> int | None:
    if number is None:
        return None
    try:
        return operator.index(number)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {number!r}") from None


def _said(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    # Every digit counts: places in a text are named by them, and their seeds come from their names.
    return ",".join(repr(one).removesuffix(".0") if isinstance(one, float) else str(one) for one in value)
