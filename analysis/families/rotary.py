"""Positions taken out of the model's hands.

A cache that evicts must hold keys *before* rotation, since a key's position changes when others leave.  So an adapted
network rotates nothing: its rotary module answers cos = 1 and sin = 0, and whoever reads (engine/attention/) rotates
queries and keys to positions of its choice, by the family's own rule (positions.py).  Families with an attention of
their own have a file beside this one.  Nothing here knows what is kept or why.
"""

import copy
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from .fused import fusing
from .masks import PROBED, Rule, rule_of, window_of
from .positions import LEARNED, Angles, AttentionModule, Positions, Rotary
from .positions import bound as bound_positions
from .prepacked import prepack, worth
from .unrotated import Unrotated, leave_out

IMPLEMENTATION = "sinkscope"
TENSORS = ("position_ids", "cache_position", "s_aux")
"""Tensors that layers hand to their attention and that are honoured, or say nothing of what is seen."""

_thread = threading.local()


@runtime_checkable
class Reader(Protocol):
    """Who is asked for the attention of every layer while it is reading."""

    def attend(self, attention: AttentionModule, query: Tensor, key: Tensor, value: Tensor, **settings) -> Tensor:
        """One layer's attention, [batch, tokens, heads, dim].

        Queries, keys and values come as [batch, heads, tokens, dim], none of them rotated.
        """
        ...


@dataclass(eq=False)
class Adapted:
    """A network whose positions are ours, with what a forward pass tells of each layer."""

    network: PreTrainedModel
    positions: Positions
    attentions: dict[int, AttentionModule] = field(default_factory=dict)
    settings: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What each layer hands to its attention beside tensors: scaling, softcap, sliding_window, s_aux."""
    homes: dict[int, torch.device] = field(default_factory=dict)
    """Where each layer lies, and with it its cache: a large network may be spread over several devices."""
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    _kinds: dict[int, tuple] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # BLOOM and MPT have no use for them.
        self._takes_positions = "position_ids" in inspect.signature(type(self.network).forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the network takes its tokens."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.network.dtype

    def forward(
        self,
        ids: Tensor,
        reader: Reader,
        *,
        begin: int | Tensor = 0,
        last: int = 0,
        outputs: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Logits [batch, last or all tokens, vocabulary] of ids [batch, tokens], every layer's attention the reader's.

        `begin`: text position of the first token; it matters where the network puts positions in itself, and is a
        tensor where it is to change later.  `outputs`, where given, takes the hidden state that comes out of every
        layer in this very pass, [batch, tokens, width].  Raises ValueError where the network cannot put in positions
        as far as that.
        """
        if self.longest is not None and begin + ids.shape[1] > self.longest:
            raise ValueError(
                f"{self.network.config.model_type} {self.positions.fixed}, and can do so for {self.longest:,} tokens "
                "only: read no more of them"
            )
        positions = begin + torch.arange(ids.shape[1], device=ids.device)[None].expand(len(ids), -1)
        more: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        before = getattr(_thread, "reader", None), getattr(_thread, "outputs", None)
        _thread.reader, _thread.outputs = reader, outputs
        try:
            with torch.inference_mode():
                return self.network(input_ids=ids, use_cache=False, logits_to_keep=last, **more).logits
        finally:
            _thread.reader, _thread.outputs = before

    def angles(
        self,
        attention: AttentionModule,
        positions: Int[Tensor, " tokens"],
        length: int = 1,
        dtype: torch.dtype | None = None,
    ) -> Angles | None:
        """What `rotate` needs for positions in this layer; None: nothing is rotated.

        `length`: of the context (families/frequencies.py); `dtype`: the model's own, or another.
        """
        angles = self.positions.of_length(length).angles(attention, positions, dtype or self.dtype)
        home = self.homes[attention.layer_idx]
        return None if angles is None else (angles[0].to(home), angles[1].to(home))

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that can be read with cached keys; None where there is no longest."""
        if self.positions is LEARNED:
            longest = getattr(self.network.config, "max_position_embeddings", None)
            return longest if longest is None or longest > 0 else None  # XLNet says -1.
        return self.regime_end(1) if self.positions.fixed else None

    def regime(self, length: int) -> int:
        """The shortest context that is rotated as one of `length` tokens is."""
        return self.positions.rule.regime(length)

    def regime_end(self, length: int) -> int | None:
        """The longest context that is rotated as one of `length` tokens is; None where there is no longest."""
        return self.positions.rule.regime_end(length)

    def kind(self, attention: AttentionModule) -> tuple:
        """What tells the angles of one layer from those of another: layers of a kind have equal ones, on one device."""
        layer = attention.layer_idx
        if layer not in self._kinds:
            self._kinds[layer] = (self.homes[layer], *self.positions.kind(attention))
        return self._kinds[layer]

    def rotate(
        self, attention: AttentionModule, x: Float[Tensor, "batch heads tokens dim"], angles: Angles | None
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """x at the positions that the angles are of, by the family's own rule."""
        return x if angles is None else self.positions.rotate(attention, x, angles)


Adapter = Callable[[PreTrainedModel], Positions | None]
"""Replaces, in a twin, the attention of a family by one that asks the reader; the family's positions, if not rotary."""


def adapt(network: PreTrainedModel, adapters: dict[str, Adapter] | None = None, *, bound: bool = False) -> Adapted:
    """An adapted twin of a network: the same weights in memory, rotating nothing.  The network itself is untouched.

    `bound`: its positions are left to it, and its cached keys where they were read; so are those of a network with
    several rotary modules.  Raises ValueError, naming the family, where it cannot be read by this mechanism.
    """
    twin, positions = twin_of(network, adapters)
    family = network.config.model_type
    rotaries = [n for n, m in twin.named_modules() if type(m).__name__.endswith("RotaryEmbedding")]
    unrotated = None
    if bound or len(rotaries) > 1:
        positions = bound_positions([twin.get_submodule(name) for name in rotaries], network)
    elif positions is None and rotaries:
        module = twin.get_submodule(rotaries[0])
        unrotated, positions = Unrotated(module), Rotary(module, network)
        twin.set_submodule(rotaries[0], unrotated)
    adapted = Adapted(twin, positions or LEARNED, layers=network.config.num_hidden_layers)
    rows = worth(twin)
    if family in (adapters or {}) or adapted.device.type == "meta":
        # An adapter makes no masks, and where there are no numbers none can be asked.
        _probe(adapted, unrotated)
    else:
        _implement(twin, PROBED)
        with fusing(twin, rows):
            _probe(adapted, unrotated)
        _implement(twin, IMPLEMENTATION)
    if rows:
        prepack(twin, rows)
    if unrotated is not None and isinstance(adapted.positions, Rotary):
        for layer, attention in adapted.attentions.items():
            if width := adapted.positions.rotated[layer]:
                leave_out(attention, width)
    for layer, block in decoder_layers(adapted).items():
        block.forward = _Told(layer, block.forward)
    return adapted


def twin_of(
    network: PreTrainedModel, adapters: dict[str, Adapter] | None = None
) -> tuple[PreTrainedModel, Positions | None]:
    """A twin with the same weights in memory whose layers ask the reader for their attention; its positions, where an
    adapter knows them."""
    twin = copied(network)
    if (adapter := (adapters or {}).get(network.config.model_type)) is not None:
        return twin, adapter(twin)
    _implement(twin, IMPLEMENTATION)
    return twin, None


def copied(network: PreTrainedModel, memo: dict[int, Any] | None = None) -> PreTrainedModel:
    """The same weights in memory in modules of their own; `memo`: what else is shared, or left out."""
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared | (memo or {})).eval().requires_grad_(False)


def _implement(twin: PreTrainedModel, implementation: str) -> None:
    """Let the layers of a twin call this attention function."""
    for module in twin.modules():
        if getattr(module, "config", None) is not None:
            config: Any = module.config
            config._attn_implementation = implementation


def decoder_layers(adapted: Adapted) -> dict[int, nn.Module]:
    """The decoder layers, by number: what stands in the network's list of layers and holds that layer's attention."""
    modules = dict(adapted.network.named_modules())
    names = {id(module): name for name, module in modules.items()}
    attentions = {names[id(attention)] for attention in adapted.attentions.values()}
    blocks = {}
    for layer, attention in adapted.attentions.items():
        name = names[id(attention)]
        parts = name.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts))]
        # The widest of those that stand in a list and hold no other layer; where there is none, what holds the
        # attention itself.
        lone = [
            path
            for path in above
            if isinstance(modules[path.rpartition(".")[0]], nn.ModuleList | nn.Sequential | nn.ModuleDict)
            and sum(other.startswith(f"{path}.") for other in attentions) == 1
        ]
        blocks[layer] = modules[(lone or above[-1:] or [""])[0]]
    return blocks


class _Told:
    """A layer's forward pass, which tells the pass of its own thread what came out, if that has asked.

    It is put into the twin once, before anybody reads with it: so one reader never sees what another's pass gave.
    """

    def __init__(self, layer: int, forward: Callable) -> None:
        self.layer, self.forward = layer, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.forward(*args, **kwargs)
        wanted = getattr(_thread, "outputs", None)
        if wanted is not None:
            wanted[self.layer] = out[0] if isinstance(out, tuple) else out
        return out


@dataclass(eq=False)
class _Probe:
    """Sees what heads there are, what their masks say, and which dimensions of a query are zero when cos and sin are:
    those that the family rotates."""

    adapted: Adapted
    masked: bool
    """Whether masks are made as for any family, with a rule that can be asked."""
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    """Query heads, KV heads, dimensions of a key and of a value."""
    wrong: str = ""
    """Half a sentence where a layer attends in a way that is not ours."""
    _windows: dict[int, tuple[Rule, int | None]] = field(default_factory=dict)

    def attend(
        self, attention: AttentionModule, query: Tensor, key: Tensor, value: Tensor, *, mask: Any = None, **settings
    ) -> Tensor:
        """The output of a layer in which every token sees itself alone; what the layer hands over is noted."""
        adapted, layer = self.adapted, attention.layer_idx
        if layer in adapted.attentions:
            self._say("a layer of it attends more than once for each token")
        if more := [k for k, v in settings.items() if isinstance(v, Tensor) and k not in TENSORS]:
            self._say(f"its layers hand {more[0]} to their attention, which is not known here")
        if self.masked:
            settings |= self._honoured(attention, rule_of(mask), settings.get("sliding_window"), adapted.device)
        adapted.attentions[layer], adapted.settings[layer], adapted.homes[layer] = attention, settings, query.device
        adapted.heads, adapted.kv_heads, adapted.head_dim = query.shape[1], key.shape[1], query.shape[-1]
        self.shapes.add((query.shape[1], key.shape[1], query.shape[-1], value.shape[-1]))
        if isinstance(adapted.positions, Rotary):
            dims = query.shape[-1] if query.is_meta else int((query == 0).flatten(0, 2).all(0).sum())
            adapted.positions.rotated[layer] = dims
        return Alone().attend(attention, query, key, value)

    def _honoured(
        self, attention: AttentionModule, rule: Rule | None, sliding_window: int | None, device: torch.device
    ) -> dict[str, int | None]:
        """The window that the layer's mask has, where the layer says another."""
        if rule is None:
            self._say("its layers see by a mask that is not made by transformers' own functions")
            return {}
        if id(rule) not in self._windows:
            try:
                self._windows[id(rule)] = rule, window_of(rule, device)
            except ValueError as e:
                self._say(str(e))
                return {}
        window = self._windows[id(rule)][1]
        if window == sliding_window:
            return {}
        # Found by `_attention`: a window that lives in the mask alone.
        attention.mask_window = window
        return {"sliding_window": window}

    def _say(self, wrong: str) -> None:
        self.wrong = self.wrong or wrong


class Alone:
    """A reader under which every token sees itself alone."""

    def attend(self, attention: AttentionModule, query: Tensor, key: Tensor, value: Tensor, **settings) -> Tensor:
        """The output of a layer, [batch, tokens, heads, dim]."""
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2).contiguous()


def _probe(adapted: Adapted, unrotated: Unrotated | None) -> None:
    """Fill in what only a forward pass tells."""
    masked = adapted.network.config._attn_implementation == PROBED
    family, probe = adapted.network.config.model_type, _Probe(adapted, masked)
    if unrotated is not None:
        unrotated.fill = (0.0, 0.0)
    try:
        adapted.forward(torch.arange(2, device=adapted.device)[None], probe, last=1)
    except Exception as e:
        # Whatever a family does that ours do not may come out as any exception at all.
        why = f"{type(e).__name__}: {' '.join(str(e).split())}"[:200]
        raise ValueError(f"the family {family!r} is not supported yet: its forward pass cannot be read ({why})") from e
    finally:
        if unrotated is not None:
            unrotated.fill = (1.0, 0.0)
    if probe.wrong:
        raise ValueError(f"the family {family!r} is not supported yet: {probe.wrong}")
    if sorted(adapted.attentions) != list(range(adapted.layers)):
        raise ValueError(
            f"the family {family!r} is not supported yet: {len(adapted.attentions)} of its {adapted.layers} layers use "
            "transformers' attention interface"
        )
    if len(probe.shapes) > 1:
        raise ValueError(
            f"the family {family!r} is not supported yet: its layers differ in their heads or in the sizes of these"
        )
    if adapted.head_dim != (size := next(iter(probe.shapes))[-1]):
        raise ValueError(
            f"the family {family!r} is not supported yet: its keys have {adapted.head_dim} dimensions and its values "
            f"{size}"
        )


def ask(attention: AttentionModule, query: Tensor, key: Tensor, value: Tensor, **settings) -> Tensor:
    """The output of one layer's attention, [batch, tokens, heads, dim], from whoever is reading in this thread."""
    return _thread.reader.attend(attention, query, key, value, **settings)


def _attention(
    attention: AttentionModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **settings,
) -> tuple[Tensor, None]:
    """What transformers calls for every layer."""
    if "mask_window" in attention.__dict__:
        settings["sliding_window"] = attention.mask_window
    # As transformers' own functions give it: some families look at it without a copy.
    return ask(attention, query, key, value, **settings).contiguous(), None


def _probed(
    attention: AttentionModule, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **settings
) -> tuple[Tensor, None]:
    """What it calls while a network is probed."""
    return ask(attention, query, key, value, mask=attention_mask, **settings), None


# No mask function is registered beside it: then transformers makes no mask, and looks for nothing on the host.
AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionInterface.register(PROBED, _probed)
