"""What a cache eviction policy is: its settings, and the words in which a person writes it.

A policy is a frozen dataclass.  Its fields are its settings (their metadata gives range and help text, from which the
page makes its widgets), its docstring is its help text, and `str(policy)` is the way to write it on a command line.
What a policy does to a cache is said by its subclasses: `Banded` keeps by position, `Recomputed` keeps nothing,
`Ranked` (ranked.py) keeps what scores highest, and `Duo` (duo.py) everything in some heads and by position in others.
This module knows nothing of tensors.
"""

from dataclasses import Field, dataclass, fields, replace
from typing import ClassVar

from typing_extensions import override

from ..settings import Settings, setting


@dataclass(frozen=True)
class Policy(Settings):
    """What a lane keeps of the tokens that it has read."""

    store: ClassVar[str]
    """Name of the KV store that keeps it (engine/kv/)."""
    quantizable: ClassVar[bool] = False
    """Whether its store can keep older tokens in few bits (`cache`)."""
    # No ClassVar: where it is a setting, that would stand before all others.
    block = 1
    """How many tokens leave together, as where memory is handed out in blocks."""

    knockout: str = setting(
        "none",
        "What is taken from the first tokens: their values (seen, but empty) or their weights (others make up for it).",
        choices=("none", "values", "weights"),
        intervention=True,
    )
    heads: str = setting(
        "all",
        "Heads that are knocked out or get the extra logit: all, or layer.head layer.head and so on.",
        pattern=r"all|\d{1,4}\.\d{1,4}( \d{1,4}\.\d{1,4})*",
        intervention=True,
    )
    softmax: str = setting(
        "ordinary",
        "Whether one more logit takes a share of attention: off-by-one has a logit of 0, logit the one below.",
        choices=("ordinary", "off-by-one", "logit"),
        intervention=True,
    )
    first: str = setting(
        "own",
        "What attention finds in place of the first tokens: own, newlines, bos (the token that begins a text), or the "
        "first tokens of another bundled text, such as macbeth.",
        pattern=r"[\w.\-]{1,80}",
        intervention=True,
    )
    logit: float = setting(0.0, "The extra logit, where softmax is logit.", low=-20, high=20, intervention=True)
    cache: str = setting(
        "own",
        "In how many bits older keys and values are stored: own is the precision that the model computes in.",
        choices=("own", "int8", "int4", "int2"),
        intervention=True,
    )
    exact: int = setting(
        0, "First tokens of the text that stay as they are where the cache has few bits.", high=1024, intervention=True
    )
    group: int = setting(
        32, "Tokens whose keys share a scale, and are quantized together.", low=1, high=1024, intervention=True
    )
    residual: int = setting(
        32, "Newest tokens of which the oldest group is quantized.", low=1, high=1024, intervention=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache == "own":
            return
        if not self.quantizable:
            raise ValueError(f"{self.name}: its cache cannot be quantized: choose cache=own, or another policy")
        if self.residual < self.group:
            raise ValueError(
                f"{self.name}: the newest {self.residual} tokens hold no group of {self.group}: choose a smaller group "
                "or a larger residual"
            )

    def _check_residual(self, least: int) -> None:
        """Raises ValueError where a window that may hold so few tokens has no room for those that stay as they are."""
        if self.cache != "own" and least < self.residual:
            raise ValueError(
                f"{self.name}: the newest {self.residual} tokens are to be read before some are quantized, and the "
                f"window may hold {least}: choose a larger window or a smaller residual"
            )

    @classmethod
    def interventions(cls) -> list[Field]:
        """The settings that change attention; the same for all policies."""
        return [f for f in fields(cls) if f.metadata["intervention"]]

    @property
    def capturable(self) -> bool:
        """Whether a token's position alone says what it reaches in every head, so that a captured stretch can be
        drawn."""
        return False

    @property
    def label(self) -> str:
        """The policy, its sizes and its interventions as a person says them, in sentence case."""
        return ", ".join((self.plain, *self.changes))

    @property
    def plain(self) -> str:
        """The policy and its sizes."""
        raise NotImplementedError

    @property
    def changes(self) -> list[str]:
        """What its interventions do and how its cache is stored, a few words each."""
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
        if self.cache != "own":
            words.append(f"{self.cache} cache")
            words += [f"first {self.exact} exact"] if self.exact else []
            words += [f"groups of {self.group}"] if self.group != 32 else []
            words += [f"residual {self.residual}"] if self.residual != 32 else []
        return words

    @property
    def changed_heads(self) -> frozenset[tuple[int, int]] | None:
        """Layer and head of each head that `heads` names; None: all."""
        if self.heads == "all":
            return None
        return frozenset((int(layer), int(head)) for layer, head in (n.split(".") for n in self.heads.split()))

    @property
    def capacity(self) -> int | None:
        """The most tokens that the cache ever holds; None where it grows with the text."""
        raise NotImplementedError

    def allocated(self, held: int) -> int:
        """How many slots an engine hands out where a KV head holds so many tokens: whole blocks."""
        return -(-held // self.block) * self.block

    @property
    def _blocks(self) -> str:
        """The blocks in words, where there are any."""
        return "" if self.block == 1 else f", blocks of {self.block}"

    @property
    def full_from(self) -> int | None:
        """The most tokens that can be read before the first one leaves; None where none ever does."""
        return self.capacity

    def at_budget(self, tokens: int) -> "Policy":
        """The same policy with a cache of so many tokens, at most.

        Raises ValueError where its cache grows with the text, or has no room for what it protects.
        """
        raise ValueError(f"{self.label} keeps more the more it reads, so it has no budget: compare without it")

    def _with_window(self, window: int, tokens: int) -> "Policy":
        if window < 1:
            raise ValueError(f"{self.label}: {tokens} tokens leave no room for a window: choose a larger budget")
        return replace(self, window=window)

    @property
    def pass_tokens(self) -> int | None:
        """The most tokens that go through the model in one pass when the cache is full; None for any number."""
        return None

    @property
    def moves_keys(self) -> bool:
        """Whether cached keys stand elsewhere after others have left, as learned positions cannot."""
        return True

    def first_protected(self, read: int) -> int:
        """How many of the first tokens stay whatever comes, when `read` tokens have been read."""
        return 0

    @property
    def unplaced(self) -> int:
        """How many of the first tokens have no position."""
        return 0

    def with_room(self, tokens: int) -> "Policy":
        """The same policy with room for so many more tokens before it evicts; itself where it has no such size."""
        return self

    @property
    def file(self) -> str:
        """The path of a file that it reads; empty where it reads none."""
        return ""

    def equals_dense(self, tokens: int) -> bool:
        """Whether reading so many tokens under it is what dense attention does, but for rounding, since none leaves."""
        if self.full_from is None or self.full_from < tokens:
            return False
        # What changes attention or positions, or stores keys in few bits, is not dense where it keeps all.
        return not self.changes and not self.unplaced

    def cautions(self, tokens: int | None, trained_length: int | None) -> list[str]:
        """What to know before this reads so many tokens (None: not known yet): one sentence each."""
        notes, window = [], getattr(self, "window", None)
        if tokens is not None and self.full_from is not None and self.full_from >= tokens:
            equals = " and this equals dense" if self.equals_dense(tokens) else ""
            notes.append(f"{self.label}: the text has {tokens} tokens, so nothing is ever evicted{equals}")
        if trained_length is not None and window is not None and window > trained_length:
            notes.append(
                f"{self.label}: the window is longer than the {trained_length} tokens that the model was trained on, "
                "so expect it to lose its way before anything is evicted"
            )
        return notes


@dataclass(frozen=True)
class Banded(Policy):
    """Keeps the first `sinks` tokens and the last `window`: what is kept never depends on what is read.

    When the window would be longer than `window`, `step` tokens leave it together.
    """

    store: ClassVar[str] = "banded"
    quantizable: ClassVar[bool] = True
    sinks: ClassVar[int] = 0
    window: ClassVar[int | None] = None
    positions: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.step > self.window:
            raise ValueError(
                f"{self.name}: {self.step} tokens cannot leave a window of {self.window} together: choose a smaller "
                "block or a larger window"
            )
        if self.window is not None:
            self._check_residual(self.window - self.step + 1)

    @property
    @override
    def capturable(self) -> bool:
        return True

    @property
    def step(self) -> int:
        """How many tokens leave the window together."""
        return self.block

    @property
    @override
    def capacity(self) -> int | None:
        return None if self.window is None else self.sinks + self.window

    @override
    def allocated(self, held: int) -> int:
        # Sinks, which never leave, have blocks of their own.
        first = min(self.sinks, held)
        return super().allocated(first) + super().allocated(held - first)

    @override
    def at_budget(self, tokens: int) -> "Policy":
        return super().at_budget(tokens) if self.window is None else self._with_window(tokens - self.sinks, tokens)

    @property
    @override
    def moves_keys(self) -> bool:
        return self.window is not None

    @override
    def first_protected(self, read: int) -> int:
        return min(self.sinks, read)

    @property
    @override
    def unplaced(self) -> int:
        return self.sinks if self.positions == "none" else 0

    @override
    def with_room(self, tokens: int) -> "Policy":
        return self if self.window is None else replace(self, window=self.window + tokens)


@dataclass(frozen=True)
class Recomputed(Policy):
    """A policy that keeps no keys: every `stride` tokens the last `window` tokens are encoded anew from position 0."""

    store: ClassVar[str] = "recomputed"
    window: ClassVar[int]
    stride: ClassVar[int]

    @property
    @override
    def capacity(self) -> int:
        return self.window + self.stride - 1

    @property
    @override
    def full_from(self) -> int:
        # The next encoding begins without the first token, whatever room its stride takes later.
        return self.window

    @override
    def at_budget(self, tokens: int) -> "Policy":
        return self._with_window(tokens - self.stride + 1, tokens)

    @property
    @override
    def pass_tokens(self) -> int:
        return self.stride

    @property
    @override
    def moves_keys(self) -> bool:
        return False
