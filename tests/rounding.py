"""What quantization makes of keys and values, as plainly as it can be said: a number is the nearest multiple of a step.

Keys have a step for each channel of a group of tokens, values one for each token (up to 64 channels).
"""

import math

import torch

TIE = 1e-2
"""Share of a step within which rounding of the numbers themselves may decide where they go."""
NOISE = 2e-5
"""By how much a number may differ between two ways to compute it, beside 1 and its own size."""


def due(policy, before, read):
    """Where the groups begin that are quantized after more than `before` and up to `read` tokens have been read."""
    if policy.cache == "own":
        return []
    begins = range(policy.exact, max(policy.exact, read), policy.group)
    return [begin for begin in begins if before < begin + policy.residual <= read]


def rounded(slots, bits, theirs=()):
    """Slots of one group, quantized, and how often a tie was decided as in `theirs` {position: (key, value)}."""
    if not slots:
        return [], 0
    known = [dict(theirs).get(s.position, (None, None)) for s in slots]
    keys, ties = nearest([s.key for s in slots], by_channel, bits, [key for key, _ in known])
    values, more = nearest([s.value for s in slots], by_token, bits, [value for _, value in known])
    return [s._replace(key=k, value=v) for s, k, v in zip(slots, keys, values, strict=True)], ties + more


def nearest(tokens, rule, bits, theirs):
    """Numbers of some tokens on the steps of a rule, and how often a tie was decided as in `theirs`, None where those
    are not known."""
    x, ties = torch.stack(tokens), 0
    new, least = rule(x, bits)
    for p, other in enumerate(theirs):
        if other is None:
            continue
        differ = (other - new[p]).abs() > NOISE * (1 + new[p].abs()) + 1e-3 * least[p]
        for c in differ.nonzero().flatten().tolist():
            near_tie(float(x[p, c]), float(other[c]), float(least[p, c]))
            ties += 1
        new[p] = torch.where(differ, other, new[p])
    return new, ties


def by_channel(keys, bits):
    """Keys [tokens, dim] on steps that the tokens share, and the least step of each number."""
    whole, least = [], []
    for channel in keys.T:
        numbers, width = multiples(channel.tolist(), bits)
        whole.append(numbers)
        least.append([width] * len(numbers))
    return torch.tensor(whole).T.to(keys.dtype), torch.tensor(least).T


def by_token(values, bits):
    """Values [tokens, dim] on steps that up to 64 channels of a token share, and the least step of each number."""
    size = 64 if values.shape[1] % 64 == 0 else values.shape[1]
    whole, least = [], []
    for token in values:
        parts = [multiples(part.tolist(), bits) for part in token.split(size)]
        whole.append([n for numbers, _ in parts for n in numbers])
        least.append([width for numbers, width in parts for _ in numbers])
    return torch.tensor(whole).to(values.dtype), torch.tensor(least)


def multiples(numbers, bits):
    """The nearest multiples of the narrowest step that reaches from the least to the greatest; and how narrow it could
    have been."""
    most, farthest = 2**bits - 1, 32767 if bits == 8 else 127
    low, high = min(numbers), max(numbers)
    width = max((high - low) / most, abs(low) / farthest)
    step = step_of(width)
    if abs(round(low / step)) > farthest:
        # Nearly wide enough is not enough for a zero point that would not fit.
        step *= 2 ** (1 / 8)
    zero = round(low / step)
    return [step * max(zero, min(zero + most, round(n / step))) for n in numbers], width


def step_of(width):
    """The next power of the eighth root of 2, one byte of them."""
    power = -128 if width == 0 else math.ceil(8 * math.log2(width) - 1e-3)
    return 2.0 ** (max(-128, min(127, power)) / 8)


def near_tie(number, other, width):
    """Raises AssertionError but where rounding may have decided what a number becomes."""
    step, noise = step_of(width), NOISE * (1 + abs(number))
    share = TIE / 10 + noise / (255 * width)
    wider = step_of(width * (1 - share)) != step_of(width * (1 + share))
    half = abs(number / step % 1 - 0.5) * step < max(TIE * step, noise)
    assert wider or half, f"{number} in steps of {step} is {other}"
    assert abs(other - number) <= 0.55 * 2 ** (1 / 8) * step + noise, f"{other} is not the nearest step to {number}"
