import math
from dataclasses import replace

import pytest
import torch

from attacks.gradients.differentiation import batched, looped
from attacks.gradients.engine import Plan, search
from attacks.gradients.optimisers import Adam
from protocols.errors import ConfigError


class Bowl:
    """A badly conditioned quadratic, with a lower second minimum for rows that start there."""

    key = "bowl"

    def __init__(self, size: int = 12) -> None:
        self.scale = torch.logspace(0, 3, size)
        self.goal = torch.linspace(-1, 1, size)

    def __call__(self, point: torch.Tensor, *, functional: bool) -> torch.Tensor:
        return ((point - self.goal).square() * self.scale).sum()


class Valleys:
    """Two valleys along the first value: around −1 with height 1, around 1 with height 0."""

    key = "valleys"

    def __call__(self, point: torch.Tensor, *, functional: bool) -> torch.Tensor:
        x = point[0]
        return (x * x - 1).square() + 0.5 * (1 - x.clamp(-1, 1)) + point[1:].square().sum()


def starts(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_lbfgs_finds_the_minimum_of_every_row():
    found = search(Bowl(), starts(5, 12), Plan(steps=150, cull=False))
    assert found.values.max().item() < 1e-6
    assert torch.allclose(found.points, Bowl().goal.expand(5, -1), atol=1e-3)
    assert found.point.shape == (12,)


def test_rows_do_not_see_each_other():
    rows = starts(4, 12)
    plan = Plan(steps=30, cull=False)
    together = search(Bowl(), rows, plan).points
    alone = torch.cat([search(Bowl(), row[None], plan).points for row in rows])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_the_best_row_survives_culling_by_its_own_objective():
    rows = torch.zeros(8, 3)
    rows[:, 0] = -1.1
    rows[5, 0] = 0.9
    found = search(Valleys(), rows, Plan(steps=64))
    assert found.point[0].item() == pytest.approx(1, abs=1e-2)
    assert torch.isfinite(found.values).sum().item() == 1
    assert found.restarts == 8


def test_adam_is_that_of_torch():
    point = torch.nn.Parameter(starts(1, 6)[0].clone())
    theirs = torch.optim.Adam([point], lr=0.1)
    ours, rows = Adam(rate=0.1), point.detach().clone()[None]
    for _ in range(20):
        theirs.zero_grad()
        Bowl(6)(point, functional=False).backward()
        theirs.step()
        values, gradients = looped(Bowl(6), rows)
        rows = ours.step(rows, values, gradients, 0.0)
    assert torch.allclose(rows[0], point, atol=1e-5)


@pytest.mark.parametrize("optimiser", ["adam", "lbfgs"])
def test_a_row_that_is_nan_is_lost_alone(optimiser):
    rows = starts(4, 12)
    rows[2] = torch.nan
    found = search(Bowl(), rows, Plan(optimiser=optimiser, steps=300, cull=False))
    assert torch.isinf(found.values[2])
    assert math.isfinite(found.value)
    assert torch.isfinite(found.point).all()


def test_all_ways_differentiate_alike():
    rows = starts(11, 12)
    one = looped(Bowl(), rows)
    for chunk in (None, 4):
        for ours, theirs in zip(batched(Bowl(), chunk, rows), one, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5)


def test_values_stay_in_their_box():
    plan = Plan(optimiser="adam", steps=80, rate=0.5, signed=True, box=(-0.5, 0.5))
    found = search(Bowl(), starts(3, 12).clamp(-0.5, 0.5), plan)
    assert found.points.abs().max().item() <= 0.5
    assert torch.allclose(found.point, Bowl().goal.clamp(-0.5, 0.5), atol=0.05)


@pytest.mark.parametrize("optimiser", ["adam", "lbfgs"])
def test_a_search_continues_where_it_was_cut_off(tmp_path, optimiser):
    class CutError(Exception):
        pass

    def cut(done, steps, left):
        assert 0 < done <= steps
        assert left >= 0
        if done == 20:
            raise CutError

    plan, rows = Plan(optimiser=optimiser, steps=40, cull=False, rate=0.02), starts(3, 12)
    whole = search(Bowl(), rows, plan)
    file = tmp_path / "search.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attacks.gradients.engine._SAVE_EVERY", -1.0)
        with pytest.raises(CutError):
            search(
                Bowl(),
                rows,
                plan,
                state=file,
                progress=cut,
            )
        counted = []
        resumed = search(Bowl(), rows, plan, state=file, progress=lambda *at: counted.append(at[0]))
    assert counted[0] == 20  # ten steps were kept
    assert torch.allclose(resumed.points, whole.points, rtol=1e-4, atol=1e-6)
    assert search(Bowl(), rows, plan, state=file).steps == 40
    # Another search's file is left unread.
    other = search(Bowl(), rows + 1, replace(plan, steps=10), state=file)
    assert other.steps == 10


def test_a_damaged_state_is_refused(tmp_path):
    file = tmp_path / "search.safetensors"
    file.write_bytes(b"not one")
    with pytest.raises(ConfigError, match="not the state of a search"):
        search(Bowl(), starts(2, 12), Plan(steps=5), state=file)


def test_few_steps_give_no_row_up_unseen():
    found = search(Bowl(), starts(4, 12), Plan(steps=1))
    assert torch.isfinite(found.values).all()


def test_a_search_ends_in_time():
    found = search(Bowl(2000), starts(64, 2000), Plan(steps=10**7, seconds=0.5))
    assert 0 < found.steps < 10**6
    assert found.seconds < 5


def test_no_starts_are_refused():
    with pytest.raises(ConfigError, match="starts of shape"):
        search(Bowl(), torch.zeros(0, 12), Plan())
