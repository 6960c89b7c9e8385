"""Functions with the same bits on every processor, against the C library's and BLAS."""

import math

import numpy as np
import pytest

from pipeline.data.geometry import arctan2, arctan2_of, cos_sin, cos_sin_of, invert, move_boxes, product, transform


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


def test_functions_of_arrays_have_the_bits_of_those_of_numbers() -> None:
    draw = np.random.default_rng(0)
    special = [0.0, -0.0, 1.0, -1.0, math.pi, -math.pi / 2, 1e-300, 1e5]
    y = np.array([*draw.normal(size=5000), *np.repeat(special, len(special))])
    x = np.array([*draw.normal(size=5000), *np.tile(special, len(special))])
    want = np.array([arctan2(*point) for point in zip(y.tolist(), x.tolist(), strict=True)])
    assert arctan2_of(y, x).tobytes() == want.tobytes()
    want = np.array([cos_sin(angle) for angle in (9 * y).tolist()])
    assert np.stack(cos_sin_of(9 * y), 1).tobytes() == want.tobytes()


def test_many_motions_and_boxes_have_the_bits_of_one() -> None:
    draw = np.random.default_rng(0)
    places, turns, boxes = draw.normal(size=(9, 3)), draw.normal(size=(9, 4)), draw.normal(size=(9, 9))
    matrices = transform(places, turns)
    for number, matrix in enumerate(matrices):
        assert matrix.tobytes() == transform(places[number], turns[number]).tobytes()
        assert invert(matrices)[number].tobytes() == invert(matrix).tobytes()
        assert product(matrices, matrices[::-1])[number].tobytes() == product(matrix, matrices[::-1][number]).tobytes()
        alone = move_boxes(boxes[number : number + 1], matrix)[0]
        assert move_boxes(boxes, matrices)[number].tobytes() == alone.tobytes()
