"""What sites of NatImg-FL send, and what is read out of its sum: β, shares and trust."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from secure_natfl.systems import betas
from secure_natfl.systems.betas import BETAS, Answer
from tests.secure_natfl.tensors import draw


def some_answer(teachers=3, rows=40, classes=2, *, seed=0, multi_label=False, loud=1.0):
    shares = draw(teachers, classes, seed=seed + 1).softmax(-1)
    return Answer(
        loud * draw(teachers, rows, classes, seed=seed),
        loud * draw(teachers, rows, 10, seed=seed + 2),
        shares,
        multi_label,
    )


# β


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("loud", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("family", ["entropy", "natural", "class"])
def test_beta_lies_between_0_and_1(family, loud, multi_label):
    answer = some_answer(classes=3, loud=loud, multi_label=multi_label)
    beta = BETAS[family](answer, torch.arange(40) % 10)
    assert beta.shape == ((3, 40, 3) if family == "class" else (3, 40, 1))
    assert torch.isfinite(beta).all()
    assert (beta >= 0).all()
    assert (beta <= 1).all()
    assert BETAS["uniform"] is None


def test_beta_of_the_entropy_is_what_certainty_remains():
    answer = some_answer(classes=3)
    found = betas.entropy(answer, torch.zeros(40, dtype=torch.long))
    p = answer.xray[1, 7].double().softmax(-1)
    literal = 1 - float(-(p * p.log()).sum()) / math.log(3)
    assert float(found[1, 7, 0]) == pytest.approx(literal, abs=1e-6)
    flat = dataclasses.replace(answer, xray=torch.zeros(1, 2, 3))
    assert betas.entropy(flat, torch.zeros(2)).abs().max() < 1e-6
    multi = dataclasses.replace(answer, multi_label=True)
    p = 1 / (1 + np.exp(-answer.xray[1, 7].double().numpy()))
    literal = 1 - np.mean(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))
    found = betas.entropy(multi, torch.zeros(40))
    assert float(found[1, 7, 0]) == pytest.approx(literal, abs=1e-6)


def test_beta_of_natural_images_is_the_root_of_the_labels_probability():
    answer, labels = some_answer(), torch.arange(40) % 10
    p = answer.natural.softmax(-1)
    found = betas.natural(answer, labels)
    for teacher in range(3):
        for row in (0, 13, 39):
            literal = math.sqrt(float(p[teacher, row, labels[row]]))
            assert float(found[teacher, row, 0]) == pytest.approx(literal, abs=1e-6)


def test_beta_of_a_class_is_its_share_among_a_teachers_records():
    answer = some_answer(classes=4)
    found = betas.by_class(answer, torch.zeros(40))
    assert torch.equal(found[2, 5], answer.shares[2])
    assert torch.equal(found[2, 5], found[2, 39])


# What is sent, and what is read


@pytest.mark.parametrize(
    ("beta", "columns"), [("uniform", None), ("natural", 1), ("entropy", 1), ("class", 2)]
)
def test_denominators_travel_only_where_answers_count_differently(world, tiny, beta, columns):
    system = world.system(tiny(f"system.beta={beta}"))
    layout = system.layout(40)
    shapes = {s.name: (s.rows, s.columns) for s in layout.segments}
    assert shapes.pop("numerators") == (40, 2)
    assert shapes == ({} if columns is None else {"denominators": (40, columns)})
    assert system.weighted(some_answer(), world.rows).shape == (3, layout.size)


def literal_mean(parts, beta, multi_label):
    """Σα·β·(z − z̄) / Σα·β, one number after the other."""
    (_, first), *_ = parts
    _, rows, classes = first.xray.shape
    found, weights = np.zeros((rows, classes)), np.zeros((rows, classes))
    for alpha, answer in parts:
        teachers = len(answer.xray)
        values = None if beta is None else beta(answer, torch.arange(rows) % 10)
        for m in range(teachers):
            for i in range(rows):
                z = answer.xray[m, i].double().numpy()
                if not multi_label:
                    z = z - z.mean()
                for c in range(classes):
                    b = 1.0 if values is None else float(values[m, i, min(c, values.shape[2] - 1)])
                    found[i, c] += alpha * b * z[c]
                    weights[i, c] += alpha * b
    return found, weights


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("family", ["uniform", "natural", "entropy", "class"])
def test_what_is_read_is_the_dually_weighted_mean(world, tiny, multi_label, family, monkeypatch):
    """Several sites with different α and numbers of teachers, without noise."""
    system = world.system(tiny(f"system.beta={family}"))
    labels = torch.arange(40) % 10
    naturals = dataclasses.replace(world.federation.naturals, labels=labels.repeat(3))
    system.federation = dataclasses.replace(world.federation, naturals=naturals)
    parts = [
        (alpha, some_answer(m, seed=10 * m, multi_label=multi_label))
        for alpha, m in ((1, 2), (3, 4), (2, 1))
    ]
    total = sum(alpha * system.weighted(answer, world.rows).sum(0) for alpha, answer in parts)
    teachers = float(sum(alpha * len(answer.xray) for alpha, answer in parts))
    found = system.read(world.rows, {"all": total}, {"all": teachers}, {"all": 0.0})
    sums, weights = literal_mean(parts, BETAS[family], multi_label)
    floor = np.maximum(weights, 0.25 * np.sort(weights, axis=0)[19])
    np.testing.assert_allclose(found.logits["all"].numpy(), sums / floor, atol=2e-5)
    assert found.signal_to_noise["all"] == math.inf
    if not multi_label and family != "class":
        np.testing.assert_allclose(found.logits["all"].numpy().sum(-1), 0, atol=1e-4)


def packed(system, denominators):
    layout = system.layout(len(denominators))
    numerators = np.ones((len(denominators), 2))
    parts = {"numerators": numerators, "denominators": np.array(denominators)[:, None]}
    return layout.pack({k: np.asarray(v, dtype=np.float64) for k, v in parts.items()})


def test_starved_rows_get_no_trust_and_no_huge_quotient(world):
    system, rows = world.system(), np.arange(8)
    usual = 10.0
    sums = packed(system, [usual, usual, usual, usual, 30.0, 2.4, -5.0, 400.0])
    found = system.read(rows, {"all": sums}, {"all": 9.0}, {"all": 1.0})
    trust = found.trust["all"]
    assert (trust[[5, 6]] == 0).all()
    assert float(trust.mean()) == pytest.approx(1.0)
    # Relative to an ordinary row: three times as much, and four at most.
    np.testing.assert_allclose((trust / trust[0])[[1, 4, 7]], [1, 3, 4], rtol=1e-5)
    assert found.logits["all"].abs().max() == pytest.approx(1 / 2.5)


def test_trust_is_even_where_every_answer_counts_the_same(world, tiny):
    system = world.system(tiny("system.beta=uniform"))
    sums = np.arange(80, dtype=np.float64)
    found = system.read(world.rows, {"all": sums}, {"all": 8.0}, {"all": 1.0})
    assert torch.equal(found.trust["all"], torch.ones(40))
    np.testing.assert_allclose(found.logits["all"].numpy().ravel(order="F"), sums / 8, rtol=1e-6)


def test_the_ratio_of_signal_to_noise_is_told_from_the_released_energy(world):
    system, rng = world.system(), np.random.default_rng(0)
    rows = np.arange(4000)
    numerators = rng.normal(0, 3.0, (4000, 2)) + rng.normal(0, 1.5, (4000, 2))
    parts = {"numerators": numerators, "denominators": np.ones((4000, 1))}
    sums = system.layout(4000).pack(parts)
    found = system.read(rows, {"all": sums}, {"all": 1.0}, {"all": 1.5})
    assert found.signal_to_noise["all"] == pytest.approx(2.0, rel=0.05)
    drowned = system.read(rows, {"all": sums}, {"all": 1.0}, {"all": 50.0})
    assert drowned.signal_to_noise["all"] == 0.0


def test_later_rounds_are_appended(world):
    system = world.system()
    one, two = (
        system.read(rows, {"all": packed(system, d)}, {"all": 9.0}, {"all": 0.0})
        for rows, d in ((np.array([3, 1]), [1.0, 2.0]), (np.array([7]), [4.0]))
    )
    both = one.followed_by(two)
    assert both.rows.tolist() == [3, 1, 7]
    assert torch.equal(both.logits["all"], torch.cat([one.logits["all"], two.logits["all"]]))
    assert len(both.trust["all"]) == 3
