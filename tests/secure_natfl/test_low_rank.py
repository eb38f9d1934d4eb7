"""Low-rank updates: exact where they should be, and none of the public reference code's defects."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from secure_natfl.methods.low_rank import (
    Factors,
    SharedBasis,
    decomposed,
    energy_at,
    flattened,
    orthonormal,
    rank_by_aic,
    rank_by_energy,
    reduced,
)

RNG = np.random.default_rng(0)


def of_rank(rank: int, rows: int, columns: int, generator: np.random.Generator = RNG) -> np.ndarray:
    left, right = (generator.standard_normal((n, rank)) for n in (rows, columns))
    return left @ right.T


@given(
    rows=st.integers(4, 40),
    columns=st.integers(4, 40),
    rank=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_matrix_of_low_rank_comes_back_whole(rows: int, columns: int, rank: int, seed: int):
    matrix = of_rank(rank, rows, columns, np.random.default_rng(seed))
    found = decomposed(matrix, rank_by_energy(1 - 1e-12))
    if found is None:
        assert rank * (rows + columns + 1) >= rows * columns
    else:
        assert len(found.values) <= rank
        np.testing.assert_allclose(found.matrix, matrix, atol=1e-4)


def test_factors_multiply_as_diagonal_and_the_published_order_cannot():
    # u·σ·v of the public code: a vector σ [r] takes u to a vector, and the next product fails.
    left, values, right = np.linalg.svd(of_rank(3, 12, 20), full_matrices=False)
    left, values, right = left[:, :3], values[:3], right[:3]
    with pytest.raises(ValueError, match="not aligned"):
        np.dot(np.dot(left, values), right)
    np.testing.assert_allclose(
        Factors(left, values, right).matrix, left @ np.diag(values) @ right, atol=1e-12
    )


@pytest.mark.parametrize("values", [[1.0] * 7, [3.0, 0.0, 0.0], [0.0, 0.0], [1e-300, 1e-300], [5]])
@pytest.mark.parametrize("share", [1e-9, 0.5, 0.95, 1.0])
def test_a_rank_is_never_zero(values: list[float], share: float):
    # The public loop keeps rank 0 where its running sum never reaches the share.
    found = rank_by_energy(share)(np.array(values, dtype=np.float64), 10, 10)
    assert 1 <= found <= len(values)
    assert 1 <= rank_by_aic(np.array(values, dtype=np.float64), 10, 10) <= len(values)


def test_the_share_of_energy_is_kept_by_no_larger_rank_than_needed():
    values = np.array([4.0, 2.0, 1.0, 0.5])
    shares = np.cumsum(values**2) / (values**2).sum()
    for rank, share in enumerate(shares, start=1):
        assert rank_by_energy(float(share) - 1e-9)(values, 9, 9) == rank
    with pytest.raises(ConfigError, match="share"):
        rank_by_energy(0.0)


def test_the_share_grows_from_round_to_round():
    found = [energy_at(t, 4, 0.95, 0.98) for t in range(4)]
    np.testing.assert_allclose(found, [0.9575, 0.965, 0.9725, 0.98])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_akaike_finds_the_rank_where_a_direction_of_noise_costs_more_than_it_takes(rank: int):
    rows, columns = 20, 200
    rest = rows - rank, columns - rank
    takes = (rest[0] ** 0.5 + rest[1] ** 0.5) ** 2 / (rest[0] * rest[1]) * rows * columns
    assert takes < 2 * (rows + columns - 2 * rank - 1)
    noisy = of_rank(rank, rows, columns, np.random.default_rng(rank))
    noisy += 0.05 * np.random.default_rng(9).standard_normal((rows, columns))
    assert rank_by_aic(np.linalg.svd(noisy, compute_uv=False), rows, columns) == rank


def test_akaike_takes_an_exact_fit():
    assert rank_by_aic(np.linalg.svd(of_rank(4, 30, 30), compute_uv=False), 30, 30) == 4


def test_a_kernel_is_one_matrix_and_not_a_batch_of_small_ones():
    # Batched k × k decompositions, as HtFLlib has them, send more than the kernel itself.
    kernel = of_rank(2, 32, 16 * 9).reshape(32, 16, 3, 3)
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    assert left.size + values.size + right.size > kernel.size
    assert flattened(kernel).shape == (32, 144)
    found, numbers = reduced({"conv": flattened(kernel)}, rank_by_energy(0.999999))
    assert numbers <= 2 * (32 + 144 + 1) < kernel.size / 10
    np.testing.assert_allclose(found["conv"].reshape(kernel.shape), kernel, atol=1e-2)


def test_what_factors_do_not_shorten_is_sent_whole():
    whole = {"bias": flattened(RNG.standard_normal(7)), "full": RNG.standard_normal((6, 6))}
    found, numbers = reduced(whole, rank_by_energy(1.0))
    assert numbers == 7 + 36
    assert all(np.array_equal(found[name], whole[name]) for name in whole)


SHAPES = {"conv": (16, 8, 3, 3), "bias": (16,), "small": (3, 4), "head": (10, 64)}


def updates(sites: int, rank: int) -> list[dict[str, np.ndarray]]:
    """Updates of several sites whose mean has rank `rank` × sites at most."""
    return [
        {name: of_rank(rank, *flattened(np.zeros(shape)).shape) for name, shape in SHAPES.items()}
        for _ in range(sites)
    ]


def played(
    basis: SharedBasis, ones: list[dict[str, np.ndarray]], right: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Both sums of a round, and what the server rebuilds: (left basis, update)."""
    lefts = [basis.left_sums(one, right) for one in ones]
    sums = {name: sum(left[name] for left in lefts) for name in SHAPES}
    left = {s.name: orthonormal(sums[s.name]) for s in basis.factored}
    rights = [basis.right_sums(one, left) for one in ones]
    rebuilt = basis.rebuilt(left, {name: sum(r[name] for r in rights) for name in left})
    raw = {s.name: sums[s.name] for s in basis.shapes if not s.rank}
    return left, rebuilt | raw


def test_the_summable_form_is_exact_for_a_shared_subspace():
    shared = {name: orthonormal(RNG.standard_normal((flattened(np.zeros(s)).shape[0], 2)))
              if name in ("conv", "head") else None for name, s in SHAPES.items()}  # fmt: skip
    ones = updates(3, 2)
    for one in ones:
        for name, space in shared.items():
            if space is not None:
                one[name] = space @ (space.T @ one[name])
    basis = SharedBasis.of(SHAPES, 2)
    _, found = played(basis, ones, basis.drawn(np.random.default_rng(1)))
    for name in SHAPES:
        np.testing.assert_allclose(found[name], sum(one[name] for one in ones), atol=1e-8)


def test_the_sums_of_all_and_the_update_of_one_agree():
    ones = updates(4, 3)
    basis = SharedBasis.of(SHAPES, 3)
    right = basis.drawn(np.random.default_rng(2))
    _, apart = played(basis, ones, right)
    _, joined = played(basis, [{n: sum(one[n] for one in ones) for n in SHAPES}], right)
    for name in SHAPES:
        np.testing.assert_allclose(apart[name], joined[name], atol=1e-9)


def test_what_was_said_and_what_was_not_add_up_to_the_updates():
    ones = updates(3, 5)
    basis = SharedBasis.of(SHAPES, 2)
    left, found = played(basis, ones, basis.drawn(np.random.default_rng(3)))
    unsaid = [basis.unsaid(one, left) for one in ones]
    for shape in basis.factored:
        whole = sum(one[shape.name] for one in ones)
        rest = sum(one[shape.name] for one in unsaid)
        np.testing.assert_allclose(found[shape.name] + rest, whole, atol=1e-9)
        assert np.linalg.norm(rest) > 0.1


def test_error_feedback_brings_a_constant_update_across_in_time():
    basis = SharedBasis.of({"head": (20, 30)}, 1)
    target = of_rank(6, 20, 30)
    received, memory = np.zeros_like(target), np.zeros_like(target)
    right, errors = basis.drawn(np.random.default_rng(4)), []
    for _ in range(60):
        update = {"head": target + memory}
        left, found = _single(basis, update, right)
        memory = basis.unsaid(update, left)["head"]
        received += found["head"]
        errors.append(np.linalg.norm(memory))
        right = basis.drawn(np.random.default_rng(len(errors)))
    # All that was asked for has arrived but the memory, which does not grow with the rounds.
    np.testing.assert_allclose(received + memory, 60 * target, atol=1e-6)
    assert max(errors[30:]) < 1.5 * max(errors[:30])


def _single(
    basis: SharedBasis, update: dict[str, np.ndarray], right: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    left = {n: orthonormal(p) for n, p in basis.left_sums(update, right).items()}
    return left, basis.rebuilt(left, basis.right_sums(update, left))


def test_neither_phase_is_longer_than_the_update_itself():
    basis = SharedBasis.of(SHAPES, 3)
    update = updates(1, 9)[0]
    right = basis.drawn(np.random.default_rng(5))
    first = basis.left_sums(update, right)
    left = {s.name: orthonormal(first[s.name]) for s in basis.factored}
    second = basis.right_sums(update, left)
    for shape in basis.factored:
        length = np.linalg.norm(update[shape.name])
        assert np.linalg.norm(first[shape.name]) <= length + 1e-9
        assert np.linalg.norm(second[shape.name]) <= length + 1e-9


def test_layouts_are_declared_by_shapes_and_rank_alone():
    basis = SharedBasis.of(SHAPES, 4)
    assert [(s.name, s.rank) for s in basis.shapes] == [
        ("conv", 4),
        ("bias", 0),
        ("small", 0),
        ("head", 4),
    ]
    assert basis.right_layout is not None
    assert basis.left_layout.size + basis.right_layout.size == basis.numbers
    assert basis.numbers == 4 * (16 + 72) + 16 + 12 + 4 * (10 + 64)
    assert SharedBasis.of({"bias": (5,), "scale": ()}, 2).right_layout is None
    with pytest.raises(ConfigError, match="rank 0"):
        SharedBasis.of(SHAPES, 0)


def test_a_basis_is_orthonormal_even_of_nothing():
    for columns in (np.zeros((6, 3)), np.ones((6, 3)), RNG.standard_normal((6, 3))):
        found = orthonormal(columns)
        np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-12)
