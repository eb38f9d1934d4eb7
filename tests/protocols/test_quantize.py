import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protocols.errors import PrivacyError, ProtocolError
from protocols.quantize import Grid, Layout, Segment, clip_rows

LAYOUT = Layout((Segment("logits", 3, 2), Segment("weights", 3, 1)))


def squared_norms(rows: np.ndarray) -> list[int]:
    return [sum(int(v) ** 2 for v in row) for row in rows]


def test_packing_is_class_major() -> None:
    logits = np.array([[1, 10], [2, 20], [3, 30]])
    vector = LAYOUT.pack({"weights": np.array([[7], [8], [9]]), "logits": logits})
    assert vector.tolist() == [1, 2, 3, 10, 20, 30, 7, 8, 9]
    assert LAYOUT.size == vector.size


def test_unpacking_undoes_packing() -> None:
    matrices = {"logits": np.arange(6.0).reshape(3, 2), "weights": np.ones((3, 1))}
    back = LAYOUT.unpack(LAYOUT.pack(matrices))
    assert list(back) == ["logits", "weights"]
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(back[name], matrix)


@pytest.mark.parametrize(
    "matrices",
    [
        {"logits": np.ones((3, 2))},
        {"logits": np.ones((2, 3)), "weights": np.ones((3, 1))},
        {"logits": np.ones((3, 2)), "weights": np.ones((3, 1)), "more": np.ones((1, 1))},
    ],
)
def test_matrices_that_do_not_fit_are_refused(matrices: dict[str, np.ndarray]) -> None:
    with pytest.raises(ProtocolError, match="do not fit the layout"):
        LAYOUT.pack(matrices)


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ProtocolError, match="layout of 9 values"):
        LAYOUT.unpack(np.ones(8))


@pytest.mark.parametrize("rows", [(), (Segment("a", 1, 1), Segment("a", 2, 1))])
def test_a_layout_needs_distinct_segments(rows: tuple[Segment, ...]) -> None:
    with pytest.raises(ProtocolError):
        Layout(rows)


@pytest.mark.parametrize(("name", "rows", "columns"), [("", 1, 1), ("a", 0, 1), ("a", 1, 0)])
def test_a_segment_needs_a_name_and_values(name: str, rows: int, columns: int) -> None:
    with pytest.raises(ProtocolError):
        Segment(name, rows, columns)


def test_quantising_rounds_half_to_even() -> None:
    values = Grid(0.5).quantise(np.array([0.25, 0.75, -0.25, 0.26, -1.0]))
    assert values.tolist() == [0, 2, 0, 1, -2]
    assert values.dtype == np.int64


@settings(deadline=None)
@given(arrays(np.float64, 20, elements=st.floats(-1e6, 1e6)), st.floats(1e-3, 1e3))
def test_the_rounding_error_is_half_a_step(values: np.ndarray, step: float) -> None:
    grid = Grid(step)
    error = np.abs(grid.dequantise(grid.quantise(values)) - values)
    assert (error <= step / 2 + 1e-9 * np.abs(values)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(PrivacyError, match="NaN or infinity"):
        Grid(1.0).quantise(np.array([0.0, bad]))


def test_values_beyond_the_exact_floats_are_refused() -> None:
    with pytest.raises(PrivacyError, match="too large"):
        Grid(1.0).quantise(np.array([2.0**53]))


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_a_grid_needs_a_step(step: float) -> None:
    with pytest.raises(PrivacyError, match="grid step"):
        Grid(step)


@settings(deadline=None)
@given(
    arrays(np.int64, (4, 6), elements=st.integers(-(2**53), 2**53)),
    st.integers(1, 2**20),
)
def test_clipping_bounds_the_norm_exactly(rows: np.ndarray, norm: int) -> None:
    assert max(squared_norms(clip_rows(rows, norm))) <= norm**2


@settings(deadline=None)
@given(arrays(np.int64, (3, 5), elements=st.integers(-1000, 1000)), st.integers(100, 2000))
def test_clipping_keeps_short_rows_and_directions(rows: np.ndarray, norm: int) -> None:
    clipped = clip_rows(rows, norm)
    for row, out, square in zip(rows, clipped, squared_norms(rows), strict=True):
        if square <= norm**2:
            assert out.tolist() == row.tolist()
        else:
            exact = row * (norm / math.sqrt(square))
            # Towards zero, and within the one step that the rounded-up norm costs.
            assert (np.abs(out) <= np.abs(exact) + 1e-9).all()
            assert (np.abs(exact - out) <= 2).all()


def test_both_integer_widths_clip_alike() -> None:
    rows = np.random.default_rng(0).integers(-1000, 1000, (5, 40))
    # One huge row sends all of them through Python integers.
    huge = np.vstack([rows, np.full((1, 40), 2**52)])
    np.testing.assert_array_equal(clip_rows(huge, 300)[:5], clip_rows(rows, 300))


@settings(deadline=None)
@given(st.integers(10, 400))
def test_clipping_before_quantising_would_break_the_bound(size: int) -> None:
    """The mutant: a float clip whose result the grid then rounds up, value by value."""
    clip = 0.55 * math.sqrt(size)
    values = np.full((1, size), 5.0)
    mutant = Grid(1.0).quantise(values * (clip / np.linalg.norm(values)))
    assert squared_norms(mutant)[0] > clip**2
    assert squared_norms(clip_rows(Grid(1.0).quantise(values), int(clip)))[0] <= int(clip) ** 2
