"""Functions with the same bits on every processor, against the C library's and BLAS."""

import math

import numpy as np
import pytest

from pipeline.data.geometry import arctan2, cos_sin, product


@pytest.mark.parametrize("span", [1.0, 10.0, 1000.0])
def test_cosine_and_sine_are_those_of_the_c_library_to_the_last_bits(span: float) -> None:
    angles = [*np.random.default_rng(0).uniform(-span, span, 2000).tolist(), *(k * math.pi / 4 for k in range(-9, 10))]
    for angle in angles:
        assert cos_sin(angle) == pytest.approx((math.cos(angle), math.sin(angle)), rel=0, abs=4e-16)


def test_arctangent_is_that_of_the_c_library_to_the_last_bits() -> None:
    draw = np.random.default_rng(0)
    points = (draw.normal(size=(2000, 2)) * np.exp(5 * draw.normal(size=(2000, 1)))).tolist()
    points += [[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0], [1.0, -1.0], [-1.0, -1.0], [0.0, 0.0]]
    for y, x in points:
        assert arctan2(y, x) == pytest.approx(math.atan2(y, x), rel=0, abs=2e-15)


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (7, 3), (2, 4, 3)])
def test_a_product_is_that_of_blas(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=shape), draw.normal(size=(shape[-1], 3))
    np.testing.assert_allclose(product(a, b), a @ b, rtol=0, atol=1e-14)
