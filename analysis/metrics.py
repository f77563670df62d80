"""Pure functions on what was measured: perplexity, excess over a reference, curves, and predicted bytes.

NLL is in nats, one number for each predicted token (position 1 first).  Curves are differences of prefix sums, so that
a page can draw thirty thousand tokens ten times a second.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

BLOCK = 256
"""Tokens of a block: standard errors are taken over block means, since neighbouring tokens are not independent."""
ROLL = 256
"""Tokens of a rolling mean."""
FIRST = 32
"""Tokens before a curve begins: means over fewer say nothing."""
MODES = ("relative", "rolling", "cumulative")
"""Curves of a lane: over the last tokens against another lane, over the last tokens alone, and from the start."""
FIDELITY = ("KL", "top-1")
"""Curves of a lane that was measured against the first one, over the last tokens: KL divergence in nats, and in per
cent how often both have the same most probable token."""


def perplexity(nll: Array) -> float:
    """exp of the mean NLL; NaN for no tokens."""
    return float(perplexities(np.mean(nll, dtype=np.float64))) if len(nll) else float("nan")


def perplexities(mean: Any) -> Array:
    """exp of mean NLLs, or of their differences, in nats, in their shape; infinite above 709, where float64 ends."""
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(mean, np.float64))


def check_finite(numbers: Any, dtype: str = "") -> None:
    """Raises ValueError where one of these, which a model gave, is NaN or infinite: of what it says then nothing is
    known.  `dtype`: what it computes in, where that is known, since float16 is easily too small."""
    if not np.isfinite(numbers).all():
        what = "float16 holds none above 65,504, so read in bfloat16 or float32"
        if dtype != "float16":
            what = "take its weights as they came, or fetch or convert it again, since it may be damaged"
        raise ValueError(f"the model's numbers are not finite here, and say nothing of the next token: {what}")


def prefix(nll: Array) -> Array:
    """Sums of the first 0, 1, 2 … values, float64 [tokens + 1]."""
    return np.concatenate(([0.0], np.cumsum(nll, dtype=np.float64)))


def rolling_mean(sums: Array, ends: NDArray[np.integer], n: int) -> Array:
    """Mean of the last n values before each end (of all there are while there are fewer), from their prefix sums."""
    begins = np.maximum(ends - n, 0)
    return (sums[ends] - sums[begins]) / np.maximum(ends - begins, 1)


def curve(
    sums: Array, mode: str = "rolling", *, reference: Array | None = None, roll: int = ROLL, first: int = FIRST
) -> tuple[NDArray[np.int64], Array]:
    """Numbers of tokens [points], from `first` on, and a lane's mean NLL in nats/token at each of them.

    `sums`: prefix sums of its NLL.  `mode` is one of MODES; relative means are differences from those of the lane whose
    sums are `reference`, as far as both have read.  Their exponentials are perplexities, or ratios of these.  Both
    arrays are empty while fewer than `first` tokens are read.
    """
    if mode == "relative":
        if reference is None:
            raise ValueError("a relative curve needs the lane that it is relative to: give its sums as reference")
        shared = min(len(sums), len(reference))
        sums = sums[:shared] - reference[:shared]
    ends = np.arange(first, len(sums))
    return ends, sums[ends] / ends if mode == "cumulative" else rolling_mean(sums, ends, roll)


def curve_of_known(
    values: Array, *, roll: int = ROLL, first: int = FIRST
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers of tokens [points], from `first` on, and the mean of the numbers of the last tokens at each of them.

    Those that are NaN are left out; the mean is NaN where there is no other.
    """
    known = ~np.isnan(values)
    sums, counts = prefix(np.where(known, values, 0)), prefix(known)
    ends = np.arange(first, len(sums))
    begins = np.maximum(ends - roll, 0)
    with np.errstate(invalid="ignore"):
        return ends, (sums[ends] - sums[begins]) / (counts[ends] - counts[begins])


def excess(nll: Array, reference: Array) -> tuple[float, float]:
    """Mean difference of NLL in nats/token over the tokens that both have read, and its standard error over blocks.

    The error is NaN while there are fewer than two whole blocks; both are NaN where nothing is shared, and where an NLL
    is no finite number.
    """
    shared = min(len(nll), len(reference))
    nll, reference = np.asarray(nll[:shared], np.float64), np.asarray(reference[:shared], np.float64)
    if not shared or not (np.isfinite(nll) & np.isfinite(reference)).all():
        return float("nan"), float("nan")
    return mean(nll - reference)


def mean(values: Array, block: int = BLOCK) -> tuple[float, float]:
    """Mean of numbers of tokens, and its standard error over blocks; numbers that are NaN are left out.

    The error is NaN while there are fewer than two whole blocks; both are NaN where there is no number.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    return float(values.mean()), standard_error(block_means(values, block))


def mean_of_chunks(values: Any, tokens: Any) -> Array:
    """Mean of what is known of each head, over chunks of so many tokens, [layers, heads]: NaN only where no chunk has a
    number.

    `values` [chunks, layers, heads], NaN where that was not measured; `tokens` [chunks].
    """
    values, tokens = np.asarray(values, np.float64), np.asarray(tokens, np.float64)[:, None, None]
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return (np.where(known, values, 0) * tokens).sum(0) / (known * tokens).sum(0)


def block_means(values: Array, block: int = BLOCK) -> Array:
    """Means of the whole blocks of a number for each token, float64 [blocks]."""
    return np.asarray(values[: len(values) // block * block], np.float64).reshape(-1, block).mean(1)


def standard_error(means: Array) -> float:
    """Of the mean of independent values; NaN for fewer than two."""
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")


def predicted_bytes(layers: int, kv_heads: int, head_dim: int, tokens: int, itemsize: int) -> int:
    """Bytes of the keys and values of so many cached tokens."""
    return 2 * layers * kv_heads * head_dim * tokens * itemsize


def alpha(attention: Any, k: int = 1) -> Any:
    """α_k of each head: the mean attention that token k (counted from 1) gets from the queries that can see it.

    `attention` [..., queries, keys], an array or a tensor: of a whole text of T tokens (Gu et al. 2024, "When Attention
    Sink Emerges").
    """
    tokens = attention.shape[-1]
    return attention[..., k - 1 :, k - 1].sum(-1) / (tokens - k + 1)


def sink_rate(alpha: Array, threshold: float = 0.3) -> tuple[Array, float]:
    """The share of all heads of all samples whose α is above ε: of each layer, [layers], and of the model.

    `alpha` [samples, layers, heads].  Every head of every sample is held against ε by itself, as in the authors' public
    code: a mean over samples before that would count heads that are above in some samples as above in all.
    """
    above = np.asarray(alpha) > threshold
    return above.mean((0, 2)), float(above.mean())


def channel_ranges(keys: Array, first: NDArray[np.bool_]) -> Array:
    """The least and the greatest number of each channel at the first tokens and at all others, [2, 2, ..., dim]; NaN
    where there is no such token.

    `keys` [..., tokens, dim]; `first` [tokens]: which of them are the first ones.  Where those have other ranges, a
    scale that they share with others is too wide for these (Hooper et al. 2024, "KVQuant"; Liu et al. 2024,
    "IntactKV").
    """
    nothing = np.full((*keys.shape[:-2], 1, keys.shape[-1]), np.nan, np.float32)
    parts = [keys[..., of, :] if of.any() else nothing for of in (first, ~first)]
    return np.stack([np.stack((part.min(-2), part.max(-2))) for part in parts])


def widened(ranges: Array) -> Array:
    """How many times as wide the range of each channel is with the first tokens as without, [..., dim].

    `ranges` [2, 2, ..., dim] as `channel_ranges` returns them; 1 where the first tokens do not reach beyond all others,
    NaN where either are none.
    """
    (first_low, first_high), (low, high) = ranges
    with np.errstate(divide="ignore", invalid="ignore"):
        return (np.maximum(first_high, high) - np.minimum(first_low, low)) / (high - low)


def decimate(y: Array, points: int) -> NDArray[np.int64]:
    """Indices of at most `points` values that keep the extremes of every bucket, so that spikes survive.

    Buckets are powers of two long, counted from the beginning: as a curve grows, what was drawn of it stays put.
    """
    count = len(y)
    if count <= points:
        return np.arange(count)
    size = 2 ** int(np.ceil(np.log2(count / max(1, points // 2 - 1))))
    # NaN marks a gap: it counts as neither high nor low.
    padded = np.full(size * -(-count // size), np.nan)
    padded[:count] = y
    rows = padded.reshape(-1, size)
    start = np.arange(len(rows)) * size
    low = start + np.where(np.isnan(rows), np.inf, rows).argmin(1)
    high = start + np.where(np.isnan(rows), -np.inf, rows).argmax(1)
    return np.unique(np.concatenate(([0], low, high, [count - 1])))


def median_size(values: NDArray[np.float32], step: int = 2**20) -> np.float32:
    """The median of numbers of which none is below zero, exactly, whatever their order; takes no copy of them.

    Floats without a sign lie in the order of their bits, so their upper halves are counted first, and then the lower
    halves of those that have the median's upper half.
    """
    bits = values.reshape(-1).view(np.int32)
    parts = [bits[begin : begin + step] for begin in range(0, len(bits), step)]
    uppers = np.cumsum(sum(np.bincount(p >> 16, minlength=2**15) for p in parts))

    def of_rank(rank: int) -> np.float32:
        """The number at this place where all are sorted, counted from 0."""
        upper = int(np.searchsorted(uppers, rank, side="right"))
        before = uppers[upper - 1] if upper else 0
        lowers = np.cumsum(sum(np.bincount(p[p >> 16 == upper] & 0xFFFF, minlength=2**16) for p in parts))
        lower = int(np.searchsorted(lowers, rank - before, side="right"))
        return np.int32(upper << 16 | lower).view(np.float32)

    below, above = (len(bits) - 1) // 2, len(bits) // 2
    return of_rank(below) if below == above else (of_rank(below) + of_rank(above)) / np.float32(2)
