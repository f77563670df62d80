"""What a cache eviction policy is: its settings, and the words in which a person writes it.

A policy is a frozen dataclass.  Its fields are its settings (their metadata gives range and help text, from which the
page makes its widgets), its docstring is its help text, and `str(policy)` is the way to write it on a command line.
What a policy does to a cache is said by the two subclasses: `Band` keeps by place, `Afresh` keeps nothing.
This module knows nothing of tensors.
"""

import re
from dataclasses import Field, dataclass, field, fields
from typing import ClassVar, Self


def setting(
    default: float | str,
    help: str,
    *,
    low: float = 0,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    what_if: bool = False,
):
    """A dataclass field for one setting: its default, its help text, and the values that it may take.

    `what_if`: it bends attention rather than saying what is kept, and is written only where it bends.
    """
    rule = {"help": help, "low": low, "high": high, "choices": choices, "pattern": pattern, "what_if": what_if}
    return field(default=default, metadata=rule, kw_only=what_if)


@dataclass(frozen=True)
class Policy:
    """What a lane keeps of the tokens that it has read."""

    name: ClassVar[str]
    title: ClassVar[str]

    knockout: str = setting(
        "none",
        "What is taken from the first tokens: their values (seen, but empty) or their weights (others make up for it).",
        choices=("none", "values", "weights"),
        what_if=True,
    )
    heads: str = setting(
        "all",
        "Heads that are knocked out or get the extra logit: all, or layer.head layer.head and so on.",
        pattern=r"all|\d+\.\d+( \d+\.\d+)*",
        what_if=True,
    )
    softmax: str = setting(
        "ordinary",
        "Whether one more logit takes a share of attention: off-by-one has a logit of 0, logit the one below.",
        choices=("ordinary", "off-by-one", "logit"),
        what_if=True,
    )
    first: str = setting(
        "own",
        "What attention finds in place of the first tokens: own, newlines, bos (the token that begins a text), or the "
        "first tokens of another bundled text, such as macbeth.",
        pattern=r"[\w.-]+",
        what_if=True,
    )
    logit: float = setting(0.0, "The extra logit, where softmax is logit.", low=-20, high=20, what_if=True)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, rule = getattr(self, f.name), f.metadata
            if rule["choices"]:
                if value not in rule["choices"]:
                    raise ValueError(
                        f"{self.name}: {f.name} must be one of {', '.join(rule['choices'])}, not {value!r}"
                    )
            elif rule["pattern"]:
                if not re.fullmatch(rule["pattern"], str(value)):
                    raise ValueError(f"{self.name}: {f.name} cannot be {value!r}. {rule['help']}")
            elif not isinstance(value, (int, float) if f.type is float else int) or isinstance(value, bool):
                kind = "a number" if f.type is float else "a whole number"
                raise ValueError(f"{self.name}: {f.name} must be {kind}, not {value!r}")
            elif value < rule["low"]:
                raise ValueError(f"{self.name}: {f.name} must be at least {rule['low']}, not {value}")
            elif rule["high"] is not None and value > rule["high"]:
                raise ValueError(f"{self.name}: {f.name} must be at most {rule['high']}, not {value}")

    @classmethod
    def settings(cls) -> list[Field]:
        """What says what is kept."""
        return [f for f in fields(cls) if not f.metadata["what_if"]]

    @classmethod
    def what_ifs(cls) -> list[Field]:
        """What bends attention; the same for all policies."""
        return [f for f in fields(cls) if f.metadata["what_if"]]

    @classmethod
    def parse(cls, settings: str) -> Self:
        """Read `key=value,key=value`; raises ValueError with the settings that exist when a key is unknown."""
        kinds = {f.name: f.type for f in fields(cls)}
        values: dict[str, float | str] = {}
        for part in filter(None, (p.strip() for p in settings.split(","))):
            key, equals, value = (p.strip() for p in part.partition("="))
            if key not in kinds or not equals:
                known = ", ".join(f.name for f in cls.settings() + cls.what_ifs())
                raise ValueError(f"{cls.name} has no setting {part!r}; write key=value, where key is one of: {known}")
            if key in values:
                raise ValueError(f"{cls.name}: {key} is given twice")
            if kinds[key] in (int, float):
                try:
                    values[key] = kinds[key](value)
                except ValueError:
                    kind = "a number" if kinds[key] is float else "a whole number"
                    raise ValueError(f"{cls.name}: {key} must be {kind}, not {value!r}") from None
            else:
                values[key] = value
        return cls(**values)

    def __str__(self) -> str:
        # What-ifs that bend nothing are left out.
        shown = self.settings() + [f for f in self.what_ifs() if getattr(self, f.name) != f.default]
        settings = ",".join(f"{f.name}={getattr(self, f.name)}" for f in shown)
        return f"{self.name}:{settings}" if settings else self.name

    @property
    def label(self) -> str:
        """The policy, its sizes and its what-ifs as a person says them, in sentence case."""
        return ", ".join((self.plain, *self.bent))

    @property
    def plain(self) -> str:
        """The policy and its sizes."""
        raise NotImplementedError

    @property
    def bent(self) -> list[str]:
        """What its what-ifs do, a few words each."""
        words = []
        if self.knockout != "none":
            words.append({"values": "sink values zero", "weights": "sinks unseen"}[self.knockout])
        if self.softmax != "ordinary":
            words.append("softmax off by one" if self.softmax == "off-by-one" else f"extra logit {self.logit:g}")
        if words and self.heads != "all":
            words[-1] += f" in {self.heads}"
        if self.first != "own":
            words.append(
                {"newlines": "first tokens newlines", "bos": "BOS first"}.get(self.first, f"first of {self.first}")
            )
        return words

    @property
    def bent_heads(self) -> frozenset[tuple[int, int]] | None:
        """Layer and head of each head that `heads` names; None: all."""
        if self.heads == "all":
            return None
        return frozenset((int(layer), int(head)) for layer, head in (n.split(".") for n in self.heads.split()))

    @property
    def capacity(self) -> int | None:
        """The most tokens that the cache ever holds; None where it grows with the text."""
        raise NotImplementedError

    def cautions(self, tokens: int | None, trained_length: int | None) -> list[str]:
        """What to know before this reads so many tokens (None: not known yet): one sentence each."""
        notes, window = [], getattr(self, "window", None)
        if tokens is not None and self.capacity is not None and self.capacity >= tokens:
            notes.append(
                f"{self.label}: the text has {tokens} tokens, so nothing is ever evicted and this equals dense"
            )
        if trained_length is not None and window is not None and window > trained_length:
            notes.append(
                f"{self.label}: the window is longer than the {trained_length} tokens that the model was trained on, "
                "so expect it to lose its way before anything is evicted"
            )
        return notes


@dataclass(frozen=True)
class Band(Policy):
    """Keeps the first `sinks` tokens and the last `window`: what is kept never depends on what is read."""

    sinks: ClassVar[int] = 0
    window: ClassVar[int | None] = None
    positions: ClassVar[str] = "text"

    @property
    def capacity(self) -> int | None:
        return None if self.window is None else self.sinks + self.window


@dataclass(frozen=True)
class Afresh(Policy):
    """A policy that keeps no keys: every `stride` tokens the last `window` tokens are encoded anew from position 0."""

    window: ClassVar[int]
    stride: ClassVar[int]

    @property
    def capacity(self) -> int | None:
        return self.window + self.stride - 1
