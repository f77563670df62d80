"""What a family must say through the engine before it is read: on a short text, in chunks and token by token, what its
own forward pass says.

Tried is a sample (sample.py).  What a family does with its tokens outside of attention is found by walking through its
modules: a cache of keys and values holds nothing of that.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import out_of_memory
from ..families import ADAPTERS, rotary
from ..families.frequencies import as_at_first
from ..families.positions import LEARNED, Rotary
from ..families.rotary import Adapted, Adapter, Alone, copied, twin_of
from ..policies import Dense
from .attention.band import Band
from .attention.banded import BandedPass
from .context import SharedContext
from .lane import Lane
from .sample import packed, sample

TOKENS, CHUNKS, DECODED = 47, 2, 2
"""Tokens of the text, a prime that no size of a layer equals; in how many passes most of it is read, before one token
is read alone and the last are decoded."""
SHORT = 12
"""Tokens that the whole network reads."""
CHANGED = 8
"""First tokens that are others when modules are walked through."""
EXACT, ROUNDED = 1e-3, 0.1
"""Standard deviations of the logits by which they may differ in float32, and where weights are multiplied in less."""


def tokens_of(network: PreTrainedModel, begin: int = 0) -> Tensor:
    """A text of the network's tokens, [1, tokens], all over its vocabulary."""
    vocabulary = network.get_input_embeddings().num_embeddings
    ids = (np.arange(begin, begin + TOKENS) * 7919 + 1) % vocabulary
    return torch.as_tensor(ids, device=network.device)[None]


def few_tokens(network: PreTrainedModel) -> Tensor:
    """The beginning of that text, which the whole network reads."""
    return tokens_of(network)[:, :SHORT]


def own_logits(network: PreTrainedModel, ids: Tensor) -> Tensor:
    """What the network says by itself, [tokens, vocabulary]."""
    with torch.inference_mode():
        return network(input_ids=ids, use_cache=False).logits[0].float().cpu()


def differs(small: PreTrainedModel, adapters: dict[str, Adapter], *, bound: bool) -> str:
    """A sentence where the engine gives other numbers than the sample's own forward pass; empty where it does not."""
    family, adapted = small.config.model_type, rotary.adapt(small, None if bound else adapters, bound=bound)
    # A longer text may be rotated with other frequencies as a whole than token by token (families/frequencies.py).
    ids = tokens_of(small)[:, : adapted.regime_end(1)]
    for module in small.modules():
        as_at_first(module)
    own, count = own_logits(small, ids), ids.shape[1]
    if (size := own.shape[0]) != count:
        return f"the family {family!r} is not supported yet: it has {size} rows of logits for {count} tokens"
    try:
        apart = _apart(adapted, ids[0].cpu().numpy().astype(np.int32), own)
    except Exception as e:
        return f"the family {family!r} is not supported yet: its layers cannot be read in chunks ({_why(e)})"
    return "" if apart <= (EXACT if is_exact(small) else ROUNDED) else _other(small, apart)


def _apart(adapted: Adapted, tokens: np.ndarray, own: Tensor) -> float:
    """By how many standard deviations of the logits the engine's numbers differ; infinite where they are none."""
    spread, count = own.std().clamp(min=1e-6), len(tokens)
    expected = -torch.log_softmax(own, -1)[torch.arange(count - 1), torch.as_tensor(tokens[1:], dtype=torch.int64)]
    chunks = [(count - DECODED - 1) // CHUNKS] * CHUNKS + [1]
    apart, upto = [], sum(chunks) + 1
    lane = Lane(0, Dense(), SharedContext(adapted, tokens[:upto], 4, 0))
    for chunk in chunks:
        step = lane.read(chunk)
        apart.append((torch.as_tensor(step.nll) - expected[step.start - 1 : step.stop - 1]).abs().max())
    for position in range(upto - 1, count - 1):

        def choose(logits: Tensor, position: int = position) -> int:
            apart.append((logits - own[position]).abs().max())
            return int(tokens[position + 1])

        lane.next(choose)
    return float(torch.nan_to_num(torch.stack(apart) / spread, nan=torch.inf).max())


def mixing(small: PreTrainedModel, adapters: dict[str, Adapter]) -> str:
    """A sentence that names the module through which tokens learn of one another outside of attention; empty where
    there is none.

    Every token is made to attend to itself alone, and the text is read twice, with other tokens at its beginning: no
    module may give later tokens anything else where it was handed the same of them.
    """
    twin, _ = twin_of(small, adapters)
    adapted = Adapted(twin, LEARNED)
    ids = tokens_of(small)
    other = torch.cat((tokens_of(small, TOKENS)[:, :CHANGED], ids[:, CHANGED:]), 1)
    names = {id(m): n for n, m in twin.named_modules()}
    seen: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
    found: list[nn.Module] = []
    calls: dict[int, int] = {}
    again = False

    def look(module: nn.Module, given: tuple, named: dict[str, Any], out: Any) -> None:
        key = id(module), calls.get(id(module), 0)
        calls[key[0]] = key[1] + 1
        sides = list(_later(given)) + list(_later(named)), list(_later(out))
        if not again:
            seen[key] = sides
        elif key in seen and _same(seen[key][0], sides[0]) and not _same(seen[key][1], sides[1]):
            found.append(module)

    hooks = [m.register_forward_hook(look, with_kwargs=True) for m in twin.modules() if m is not twin]
    try:
        adapted.forward(ids, Alone())
        again, calls = True, {}
        adapted.forward(other, Alone())
    except Exception as e:
        if out_of_memory(e):
            raise
        # What cannot be run is told of where it is adapted.
        return ""
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return ""
    # Modules end from the inside out.
    name, kind = names[id(found[0])], type(found[0]).__name__
    return (
        f"the family {small.config.model_type!r} is not supported yet: its {name} ({kind}) lets tokens learn of one "
        "another in a way of its own, and not through transformers' attention interface"
    )


def _later(x: Any) -> Iterator[Tensor]:
    """What belongs to the tokens that are the same in both texts, of all tensors that have a row for each token."""
    if isinstance(x, Tensor):
        if TOKENS in x.shape[:3]:
            yield x.narrow(x.shape.index(TOKENS), CHANGED, TOKENS - CHANGED).clone()
    elif isinstance(x, dict | tuple | list):
        for value in x.values() if isinstance(x, dict) else x:
            yield from _later(value)


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(_close(x, y) for x, y in zip(a, b, strict=True))


def _close(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape or not x.numel():
        return x.shape == y.shape
    if not x.is_floating_point():
        return bool((x == y).all())
    return bool((x - y).abs().max() <= 1e-4 * x.float().std().clamp(min=1e-6))


def overflow(network: PreTrainedModel) -> str:
    """A sentence that says where the numbers of a network, which are not finite, end."""
    twin, where = copied(network), []
    names = {id(m): n for n, m in twin.named_modules()}

    def look(module: nn.Module, given: tuple, out: Any) -> None:
        if not where and not all(x.isfinite().all() for x in _floats(out)):
            where.append((names[id(module)], type(module).__name__))

    # Hooks are on a copy's modules: others may read with the network itself.
    for module in twin.modules():
        module.register_forward_hook(look)
    own_logits(twin, few_tokens(network))
    name, kind = where[0] if where and where[0][0] else ("its output", type(network).__name__)
    if network.dtype == torch.float16:
        return (
            f"this model's numbers are too large for float16: {name} ({kind}) gives more than 65,504, the most that it "
            "holds: use bfloat16 or float32"
        )
    return (
        f"this model's own numbers are not finite in {_dtype(network)}, from {name} ({kind}) on: its weights may be "
        "damaged, fetch or convert it again"
    )


def whole_differs(network: PreTrainedModel, adapted: Adapted, own: Tensor) -> str:
    """A sentence where the whole network's numbers on a few tokens, `own` [tokens, vocabulary], are not ours."""
    if network.dtype == torch.bfloat16 or packed(network):
        # Sums of another order differ as much there as sums of other terms, so the sample has the word.
        return ""
    ids = few_tokens(network)
    reading = BandedPass(adapted, 0, 0, Band(0, 0, None, "text"), None, length=adapted.regime(ids.shape[1]))
    ours = adapted.forward(ids, reading)[0].float().cpu()
    if not ours.isfinite().all():
        return f"sums of this model's attention are too large for {_dtype(network)}: use bfloat16 or float32"
    apart = float((own - ours).abs().max() / own.std().clamp(min=1e-6))
    return _other(network, apart) if is_exact(network) and apart > EXACT else ""


def _dtype(network: PreTrainedModel) -> str:
    return str(network.dtype).removeprefix("torch.")


def is_exact(network: PreTrainedModel) -> bool:
    """Whether rounding is far below what a wrong mask does."""
    return network.dtype == torch.float32 and not packed(network)


def _other(network: PreTrainedModel, apart: float) -> str:
    return (
        f"the family {network.config.model_type!r} is not supported yet: its own forward pass gives other numbers "
        f"(by {apart:.2g} standard deviations of the logits)"
    )


def _floats(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        if x.is_floating_point():
            yield x
    elif isinstance(x, dict | tuple | list):
        for value in x.values() if isinstance(x, dict) else x:
            yield from _floats(value)


def adapt(network: PreTrainedModel) -> Adapted:
    """An adapted twin of a network, saying what it says.  Raises ValueError, naming the family, where there is none."""
    if network.device.type == "meta":
        return rotary.adapt(network, ADAPTERS)
    small = small_part(network)
    try:
        own = own_logits(network, few_tokens(network))
    except Exception as e:
        # The sample has run: what fails is a layer that it leaves out, or what the network is computed in.
        raise ValueError(
            f"the family {network.config.model_type!r} is not supported in {_dtype(network)}: its own forward pass "
            f"cannot be run ({_why(e)})" + ("" if is_exact(network) else ": use float32")
        ) from e
    if not own.isfinite().all():
        raise ValueError(overflow(network))
    if why := mixing(small, ADAPTERS):
        raise ValueError(why)
    wrong = ""
    for bound in (False, True):
        adapted = rotary.adapt(network, None if bound else ADAPTERS, bound=bound)
        why = differs(small, ADAPTERS, bound=bound) or whole_differs(network, adapted, own)
        if not why:
            return adapted
        wrong = wrong or why
        # Something may follow the rotation (HunYuan normalises behind it): then keys stay where they were read.
        if not isinstance(adapted.positions, Rotary):
            break
    raise ValueError(wrong)


def small_part(network: PreTrainedModel) -> PreTrainedModel:
    """What is tried in the network's place: a small part of it, or all where no part of it runs alone."""
    for whole in (False, True):
        try:
            small = sample(network, whole=whole)
            own_logits(small, tokens_of(small))
            return small
        except Exception as e:
            # A network that is cut short may fail in any way at all.
            why = _why(e)
    if most := _most_tokens(network):
        raise ValueError(
            f"this model reads {most} tokens at most, and a model is tried on {TOKENS} before it is read: choose one "
            "that reads longer texts"
        )
    raise ValueError(
        f"the family {network.config.model_type!r} is not supported yet: its own forward pass cannot be run ({why})"
    )


def _most_tokens(network: PreTrainedModel) -> int:
    """How many tokens the network reads by itself of a text that is too long for it; 0 where it reads none."""

    def fails(count: int) -> bool:
        try:
            own_logits(network, tokens_of(network)[:, :count])
        except Exception as e:
            if out_of_memory(e):
                raise
            return True
        return False

    return bisect_left(range(1, TOKENS), True, key=fails)


def _why(e: Exception) -> str:
    """What went wrong, in brackets behind what cannot be done.  Raises it where memory ran out: that says nothing of a
    family."""
    if out_of_memory(e):
        raise e
    return f"{type(e).__name__}: {' '.join(str(e).split())}"[:200]
