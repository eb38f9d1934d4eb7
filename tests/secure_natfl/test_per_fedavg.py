"""Per-FedAvg's gradient against closed forms, and against the public code's restore."""

import copy
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from protocols.errors import ModelError
from secure_natfl.methods.per_fedavg import Meta, adapt, batches, meta_gradient, pairs

ALPHA, BETA = 0.1, 0.05


class Bowl(nn.Module):
    """f(θ; rows) = mean over rows of ½(θ − cᵢ)ᵀA(θ − cᵢ): gradient A(θ − c̄), Hessian A."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        root = torch.randn(4, 4, generator=draw, dtype=torch.float64)
        self.curvature = root @ root.T
        self.centres = torch.randn(9, 4, generator=draw, dtype=torch.float64)
        self.theta = nn.Parameter(torch.randn(4, generator=draw, dtype=torch.float64))

    def loss(self, rows: Tensor) -> Tensor:
        off = self.theta - self.centres[rows]
        return 0.5 * torch.einsum("ni,ij,nj->n", off, self.curvature, off).mean()

    def gradient(self, theta: Tensor, rows: Tensor) -> Tensor:
        return self.curvature @ (theta - self.centres[rows].mean(0))


DRAWS = [torch.tensor(rows) for rows in ([0, 1, 2], [3, 4, 5], [6, 7, 8])]


def test_first_order_gradient_is_that_at_the_own_step_and_the_weights_come_back() -> None:
    bowl = Bowl()
    start = bowl.theta.detach().clone()
    meta_gradient(bowl, bowl.loss, DRAWS, Meta(ALPHA))
    own = start - ALPHA * bowl.gradient(start, DRAWS[0])
    assert torch.equal(bowl.theta.detach(), start)
    assert bowl.theta.grad is not None
    torch.testing.assert_close(bowl.theta.grad, bowl.gradient(own, DRAWS[1]))


def test_hessian_free_gradient_is_the_whole_one() -> None:
    bowl = Bowl()
    start = bowl.theta.detach().clone()
    meta_gradient(bowl, bowl.loss, DRAWS, Meta(ALPHA, "hessian-free"))
    own = start - ALPHA * bowl.gradient(start, DRAWS[0])
    whole = (torch.eye(4).double() - ALPHA * bowl.curvature) @ bowl.gradient(own, DRAWS[1])
    assert torch.equal(bowl.theta.detach(), start)
    assert bowl.theta.grad is not None
    torch.testing.assert_close(bowl.theta.grad, whole)


def test_hessian_free_gradient_of_a_network_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    inputs, labels = torch.randn(12, 5).double(), torch.randint(3, (12,))

    def loss(rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(inputs[rows]), labels[rows])

    same = torch.arange(12)
    meta_gradient(network, loss, [same, same, same], Meta(0.5, "hessian-free"))
    found = [p.grad for p in network.parameters()]
    names = [name for name, _ in network.named_parameters()]

    def after(*weights: Tensor) -> Tensor:
        def at(values: tuple[Tensor, ...]) -> Tensor:
            given = dict(zip(names, values, strict=True))
            return nn.functional.cross_entropy(
                torch.func.functional_call(network, given, (inputs,)), labels
            )

        step = torch.autograd.grad(at(weights), weights, create_graph=True)
        return at(tuple(w - 0.5 * g for w, g in zip(weights, step, strict=True)))

    weights = tuple(p.detach().clone().requires_grad_() for p in network.parameters())
    exact = torch.autograd.grad(after(*weights), weights)
    for mine, true in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-3, atol=1e-7)


def public_step(bowl: Bowl) -> tuple[Tensor, Tensor]:
    """A batch as the public code plays it: the copy to go back to is made after the own step.

    Returns how far its restore moves the weights, and where the batch ends.
    """
    torch.optim.Adam(bowl.parameters(), lr=ALPHA).zero_grad()
    first = torch.optim.Adam(bowl.parameters(), lr=ALPHA)
    bowl.loss(DRAWS[0]).backward()
    first.step()
    kept = copy.deepcopy(bowl)
    before = bowl.theta.detach().clone()
    bowl.load_state_dict(kept.state_dict())
    moved = (bowl.theta.detach() - before).abs().max()
    second = torch.optim.Adam(bowl.parameters(), lr=BETA)
    second.zero_grad()
    bowl.loss(DRAWS[1]).backward()
    second.step()
    return moved, bowl.theta.detach()


def test_the_public_code_s_restore_does_nothing_and_ours_undoes_the_own_step() -> None:
    start = Bowl().theta.detach().clone()
    moved, end = public_step(Bowl())
    assert moved == 0
    assert (end - start).abs().max() > ALPHA  # both of its Adam steps remain in the weights
    bowl = Bowl()
    optimiser = torch.optim.SGD(bowl.parameters(), lr=BETA)
    meta_gradient(bowl, bowl.loss, DRAWS, Meta(ALPHA))
    optimiser.step()
    own = start - ALPHA * bowl.gradient(start, DRAWS[0])
    torch.testing.assert_close(bowl.theta.detach(), start - BETA * bowl.gradient(own, DRAWS[1]))


def test_a_start_learned_for_adapting_beats_one_learned_for_answering() -> None:
    """Two sites whose optima differ and whose curvatures differ: the stiff one adapts by itself."""
    stiff, soft = 9.0, 0.1
    sites = [(stiff, -1.0), (soft, 1.0)]

    def learned(meta: bool) -> float:
        theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        holder = nn.ParameterList([theta])
        optimiser = torch.optim.SGD([theta], lr=0.05)
        rows = torch.zeros(1)
        for _ in range(400):
            total = torch.zeros(1, dtype=torch.float64)
            for curve, best in sites:

                def loss(_: Tensor, curve: float = curve, best: float = best) -> Tensor:
                    return 0.5 * curve * (theta - best).square().sum()

                if meta:
                    meta_gradient(holder, loss, [rows] * 3, Meta(0.1, "hessian-free"))
                    assert theta.grad is not None
                    total += theta.grad
                else:
                    total += torch.autograd.grad(loss(rows), theta)[0]
            theta.grad = total / 2
            optimiser.step()
        found = float(theta.detach())
        after = [(found - 0.1 * c * (found - b), c, b) for c, b in sites]
        return sum(0.5 * c * (t - b) ** 2 for t, c, b in after)

    assert learned(meta=True) < 0.5 * learned(meta=False)


def test_adapt_takes_plain_steps_and_shows_each_of_them() -> None:
    bowl = Bowl()
    expected = bowl.theta.detach().clone()
    rows = torch.arange(9)
    for done in adapt(bowl, bowl.loss, iter([rows] * 3), 3, ALPHA):
        if done:
            expected = expected - ALPHA * bowl.gradient(expected, rows)
        torch.testing.assert_close(bowl.theta.detach(), expected)


@pytest.mark.parametrize(("examples", "batch"), [(2, 8), (7, 3), (40, 8)])
def test_the_own_step_and_the_gradient_after_it_share_no_image(examples: int, batch: int) -> None:
    for own, after, bend in islice(pairs(examples, batch, torch.Generator().manual_seed(1)), 20):
        assert len(own) == len(after) == len(bend) == min(batch, examples // 2)
        assert not set(own.tolist()) & set(after.tolist())


def test_one_image_is_too_few() -> None:
    with pytest.raises(ModelError, match="one training image"):
        next(pairs(1, 8, torch.Generator()))


def test_batches_go_on_for_ever_and_hold_what_there_is() -> None:
    found = list(islice(batches(5, 8, torch.Generator().manual_seed(0)), 3))
    assert [len(rows) for rows in found] == [5, 5, 5]
    assert [len(rows) for rows in islice(batches(5, 2, torch.Generator()), 4)] == [2, 2, 2, 2]
