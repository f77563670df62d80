"""What a cache eviction policy is: its settings, and the words in which a person writes it.

A policy is a frozen dataclass.  Its fields are its settings (their metadata gives range and help text, from which the
page makes its widgets), its docstring is its help text, and `str(policy)` is the way to write it on a command line.
What a policy does to a cache is said by the two subclasses: `Band` keeps by place, `Afresh` keeps nothing.
This module knows nothing of tensors.
"""

from dataclasses import dataclass, field, fields
from typing import ClassVar, Self


def setting(default: int | str, help: str, *, low: int = 0, high: int | None = None, choices: tuple[str, ...] = ()):
    """A dataclass field for one setting: its default, its help text, and the values that it may take."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Policy:
    """What a lane keeps of the tokens that it has read."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __post_init__(self) -> None:
        for f in fields(self):
            value, rule = getattr(self, f.name), f.metadata
            if rule["choices"]:
                if value not in rule["choices"]:
                    raise ValueError(
                        f"{self.name}: {f.name} must be one of {', '.join(rule['choices'])}, not {value!r}"
                    )
            elif not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{self.name}: {f.name} must be a whole number, not {value!r}")
            elif value < rule["low"]:
                raise ValueError(f"{self.name}: {f.name} must be at least {rule['low']}, not {value}")
            elif rule["high"] is not None and value > rule["high"]:
                raise ValueError(f"{self.name}: {f.name} must be at most {rule['high']}, not {value}")

    @classmethod
    def parse(cls, settings: str) -> Self:
        """Read `key=value,key=value`; raises ValueError with the settings that exist when a key is unknown."""
        kinds = {f.name: f.type for f in fields(cls)}
        values: dict[str, int | str] = {}
        for part in filter(None, (p.strip() for p in settings.split(","))):
            key, equals, value = (p.strip() for p in part.partition("="))
            if key not in kinds or not equals:
                known = ", ".join(kinds) or "none"
                raise ValueError(f"{cls.name} has no setting {part!r}; write key=value, where key is one of: {known}")
            if key in values:
                raise ValueError(f"{cls.name}: {key} is given twice")
            if kinds[key] is int:
                try:
                    values[key] = int(value)
                except ValueError:
                    raise ValueError(f"{cls.name}: {key} must be a whole number, not {value!r}") from None
            else:
                values[key] = value
        return cls(**values)

    def __str__(self) -> str:
        settings = ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
        return f"{self.name}:{settings}" if settings else self.name

    @property
    def label(self) -> str:
        """The policy and its sizes as a person says them, in sentence case."""
        raise NotImplementedError

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
