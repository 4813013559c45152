import math

import numpy as np
import pytest

from dattn.metrics import psnr, ssim


def noise(seed, *shape):
    return np.random.default_rng(seed).random(shape)


def slow_ssim(x, y):
    """The definition, window by window, for one channel."""
    offset = np.arange(11) - 5
    line = np.exp(-(offset**2) / (2 * 1.5**2))
    weight = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
            cov = (weight * (a - ma) * (b - mb)).sum()
            top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
            values.append(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return np.mean(values)


def test_psnr_of_a_known_error():
    black = np.zeros((2, 12, 12, 3))
    assert psnr(black + 0.1, black) == pytest.approx(20)
    assert psnr(black + 0.01, black) == pytest.approx(40)
    assert psnr(black, black) == math.inf


def test_psnr_is_of_the_mean_error_over_all_frames():
    clip = np.zeros((2, 12, 12, 3))
    other = clip.copy()
    other[0] = 0.2
    assert psnr(other, clip) == pytest.approx(-10 * math.log10(0.02))


def test_uint8_and_floats_mean_the_same():
    clip, other = (noise(i, 2, 16, 16, 3) * 255 for i in range(2))
    bytes_, others = clip.astype(np.uint8), other.astype(np.uint8)
    assert psnr(bytes_, others) == pytest.approx(psnr(bytes_ / 255.0, others / 255.0))
    assert ssim(bytes_, others) == pytest.approx(ssim(bytes_ / 255.0, others / 255.0))


def test_ssim_is_the_definition():
    x, y = noise(0, 20, 17), noise(1, 20, 17) * 0.5 + 0.2
    assert ssim(x[None, ..., None], y[None, ..., None]) == pytest.approx(slow_ssim(x, y), abs=1e-9)


def test_ssim_averages_frames_and_channels():
    x, y = noise(0, 2, 16, 16, 3), noise(1, 2, 16, 16, 3)
    one_by_one = [slow_ssim(x[f, ..., c], y[f, ..., c]) for f in range(2) for c in range(3)]
    assert ssim(x, y) == pytest.approx(np.mean(one_by_one), abs=1e-9)


def test_ssim_of_constants_depends_on_the_means_alone():
    x, y = np.full((1, 16, 16, 3), 0.3), np.full((1, 16, 16, 3), 0.6)
    assert ssim(x, y) == pytest.approx((2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4))


def test_ssim_is_one_for_equals_symmetric_and_falls_with_noise():
    x, n = noise(0, 1, 32, 32, 3), noise(1, 1, 32, 32, 3) - 0.5
    assert ssim(x, x) == pytest.approx(1)
    assert ssim(x, x + n) == pytest.approx(ssim(x + n, x))
    assert 1 > ssim(x, x + 0.1 * n) > ssim(x, x + 0.5 * n)
    assert ssim(x, 1 - x) < 0


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_different_shapes_are_refused(measure):
    with pytest.raises(ValueError, match=r"\(1, 16, 16, 3\)"):
        measure(np.zeros((1, 16, 16, 3)), np.zeros((1, 16, 12, 3)))


def test_pictures_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(np.zeros((1, 10, 16, 3)), np.zeros((1, 10, 16, 3)))
