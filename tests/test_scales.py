"""The scales and zero points of quantized caches, and how their codes lie in bytes."""

import numpy as np
import pytest
import torch

from analysis.engine.layers.quantized import Quantization, Scales, coded, decoded, packed, step, unpacked


def test_a_step_is_a_power_of_the_eighth_root_of_two():
    """To the last bit of float32, from the least code to the largest."""
    expected = np.exp2((np.arange(256) - 128) / 8).astype(np.float32)
    np.testing.assert_array_equal(step(torch.arange(256, dtype=torch.uint8)).numpy(), expected)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_that_are_packed_come_out_again(bits):
    codes = torch.randint(0, 2**bits, (3, 5, 16), dtype=torch.uint8)
    whole = packed(codes, bits)
    assert whole.shape == (3, 5, 16 * bits // 8) and whole.dtype == torch.uint8
    assert torch.equal(unpacked(whole, bits), codes)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_zero_point_is_never_farther_than_its_bits_reach(bits, sign):
    """A scale may be too narrow by a little: a zero point that wrapped around would turn the sign of a number, and one
    that was only cut off would leave what is far from 0 three steps off."""
    q = Quantization(bits, 0, 1, 1)
    most = torch.iinfo(q.zeros).max
    steps = step(torch.arange(40, 200, dtype=torch.uint8)).double()
    # From a scale that is wide enough to one that no slack makes it.
    for much in torch.linspace(1 - 1e-5, 1 + 1e-4, 23, dtype=torch.float64):
        x = (sign * most * much * steps).float()
        each, zeros = Scales.of(x, x, q).steps
        assert (zeros.abs() <= most).all()
        assert ((decoded(coded(x, each, zeros, q), each, zeros, torch.float32) - x).abs() <= 0.51 * each).all()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_group_is_half_a_step_off_at_most_wherever_it_begins(bits):
    """And a fiftieth of one, by which 255 steps that are just too narrow are too short."""
    q, generator = Quantization(bits, 0, 1, 1), torch.Generator().manual_seed(0)
    for much in (1 - 1e-5, 1 + 5e-5, 1 + 8.6e-5, 1 + 1e-4):
        low = torch.randint(-100, 100, (1000,), generator=generator) + torch.rand(1000, generator=generator) - 0.5
        high = low + q.most * much
        each, zeros = Scales.of(low, high, q).steps
        for x in (low, high, (low + high) / 2):
            off = (decoded(coded(x, each, zeros, q), each, zeros, torch.float32) - x).abs()
            assert (off <= 0.523 * each + 1e-4).all()
