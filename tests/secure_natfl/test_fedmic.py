"""FedMIC: what is sent, what stays, who may learn from whom, and that a killed round goes on."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from protocols.accounting import ADD_OR_REMOVE_ONE
from protocols.dp_sgd import DpSgd
from protocols.errors import ConfigError, PrivacyError
from protocols.ledger import Ledger, ReleaseKey
from protocols.sampler import seeded_random
from secure_natfl.config import Config
from secure_natfl.federation import Federation, Site, build
from secure_natfl.methods.plain_models import started
from secure_natfl.run_folder import RunFolder
from secure_natfl.seeds import Seeds
from secure_natfl.summed.run import SummedRun
from secure_natfl.summed.terms import agree_sums
from secure_natfl.systems.fedmic import FedMic, make
from secure_natfl.systems.summed import Summed, Vector
from secure_natfl.toml_config import load

SMALL = "secure_natfl.methods.small_network:small"
NOISY = {"mechanism": "dp-sgd", "layers": "network", "steps": 3}


def configured(privacy: dict[str, Any] | None = None, kind: str = "plain", **system: Any) -> Config:
    hospital = {
        "name": "children",
        "kind": "phantom",
        "hospital": "children",
        "images": 60,
        "sites": 4,
        "architectures": [SMALL],
    }
    return Config.model_validate(
        {
            "data": {"size": 16, "hospitals": [hospital]},
            "proxies": {"images": 40, "per_round": 10},
            "models": {"central": SMALL, "pretrain_epochs": 0, "batch": 16},
            "system": {"kind": "fedmic", "rounds": 3, **system},
            "aggregation": {"kind": kind},
            "privacy": privacy or {"mechanism": "none"},
        }
    )


@pytest.fixture(scope="module")
def federation() -> Federation:
    return build(configured(), lambda name: bytes(32))


@pytest.fixture(scope="module")
def asked() -> Federation:
    """With public images, which training under noise reads."""
    return build(configured(NOISY), lambda name: bytes(32))


def made(federation: Federation, **system: Any) -> FedMic:
    return make(configured(**system), federation, Seeds.of_study(0))


def sums(system: FedMic, number: int, phase: str, sites: tuple[Site, ...]) -> dict[str, Summed]:
    alphas = system.weights()
    vectors = [alphas[s.name] * system.contribute(s, number, phase, None) for s in sites]
    weight = float(sum(alphas[s.name] for s in sites))
    return {"all": Summed(np.sum(vectors, axis=0), weight, tuple(s.name for s in sites), 0.0)}


def play(system: FedMic, rounds: int = 1) -> None:
    for number in range(rounds):
        cohort = set(system.cohort(number))
        sites = tuple(s for s in system.federation.sites if s.name in cohort)
        for phase in system.phases(number):
            system.absorb(sums(system, number, phase.name, sites), number, phase.name)
        for site in system.federation.sites:
            assert system.personalise(site, number) is not None


def weights(network: torch.nn.Module) -> Vector:
    return np.concatenate([p.detach().double().numpy().ravel() for p in network.parameters()])


def test_what_is_sent_is_a_tenth_of_the_weights_or_less_and_the_same_in_every_round(federation):
    system = made(federation)
    first = [(p.name, p.layout) for p in system.phases(0)]
    play(system)
    assert [(p.name, p.layout) for p in system.phases(1)] == first
    numbers = sum(layout.size for _, layout in first)
    assert numbers * 10 < system.traits()["teacher parameters"]
    assert numbers == system.traits()["numbers sent per round"]
    assert system.options.phases == len(first) == 2


def test_both_sums_add_up_to_the_best_update_in_the_shared_basis(federation):
    system = made(federation, alpha="equal")
    before = {n: p.detach().clone() for n, p in system._shared(system.students["all"]).items()}
    play(system)
    mean: dict[str, Any] = {}
    for site in federation.sites:
        for name, matrix in system.thin.at("site", site.name, "update").items():
            mean[name] = mean.get(name, 0) + matrix / len(federation.sites)
    left = system.thin.at("left", "all")
    for name, parameter in system._shared(system.students["all"]).items():
        moved = (parameter.detach() - before[name]).double().numpy().reshape(mean[name].shape)
        wanted = mean[name]
        if name in left:
            wanted = left[name] @ left[name].T @ wanted
            assert 0 < np.linalg.norm(wanted) < np.linalg.norm(mean[name])
        np.testing.assert_allclose(moved, wanted, atol=1e-6)


def test_what_was_not_said_is_added_to_the_next_update(federation):
    system = made(federation)
    play(system)
    site = federation.sites[0]
    memory, left = system.thin.at("site", site.name, "memory"), system.thin.at("left", "all")
    assert set(memory) == set(left)
    for name, rest in memory.items():
        assert np.linalg.norm(rest) > 1e-6
        np.testing.assert_allclose(left[name].T @ rest, 0, atol=1e-9)
    without = made(federation)
    without.restore(system.state())
    without.thin.keep(
        {name: np.zeros_like(m) for name, m in memory.items()}, "site", site.name, "memory"
    )
    for one in (system, without):
        one.contribute(site, 1, "left", None)
    updates = [one.thin.at("site", site.name, "update") for one in (system, without)]
    for name, rest in memory.items():
        np.testing.assert_allclose(updates[0][name] - updates[1][name], rest, atol=1e-12)


def test_a_group_that_was_not_opened_learns_nothing_and_forgets_nothing(federation):
    system = made(federation)
    before = weights(system.students["all"])
    vectors = {s.name: system.contribute(s, 0, "left", None) for s in federation.sites}
    assert all(vector.any() for vector in vectors.values())
    system.absorb({}, 0, "left")
    for site in federation.sites:
        assert not system.contribute(site, 0, "right", None).any()
        update = system.thin.at("site", site.name, "update")
        for name, rest in system.thin.at("site", site.name, "memory").items():
            np.testing.assert_array_equal(rest, update[name])
    system.absorb({}, 0, "right")
    np.testing.assert_array_equal(weights(system.students["all"]), before)


def test_a_site_outside_the_cohort_sends_nothing_and_still_learns(federation):
    system = made(federation, participation=0.75)
    cohort = system.cohort(0)
    assert len(cohort) == 3
    before = {name: weights(pair.teacher) for name, pair in system.pairs.items()}
    play(system)
    sent = {s.name for s in federation.sites if system.thin.at("site", s.name, "update")}
    assert sent == set(cohort)
    assert not any(np.array_equal(weights(p.teacher), before[n]) for n, p in system.pairs.items())


def test_a_site_answers_with_a_teacher_that_no_other_site_has(federation):
    system = made(federation)
    play(system)
    first, second = (weights(system.answering(site)) for site in federation.sites[:2])
    assert not np.allclose(first, second, atol=1e-4)
    shared = [weights(system.central(site)) for site in federation.sites[:2]]
    np.testing.assert_array_equal(*shared)


@pytest.mark.parametrize("compression", ["power_secure", "off"])
def test_a_round_that_was_cut_off_goes_on_as_if_it_had_not_been(federation, compression: str):
    whole = made(federation, compression=compression)
    play(whole, 2)
    cut = made(federation, compression=compression)
    play(cut)
    for phase in cut.phases(1):
        cut = resumed(federation, cut)
        opened = sums(cut, 1, phase.name, federation.sites)
        cut = resumed(federation, cut)
        cut.absorb(opened, 1, phase.name)
    cut = resumed(federation, cut)
    for site in federation.sites:
        cut.personalise(site, 1)
    for name, value in whole.state().items():
        torch.testing.assert_close(cut.state()[name], value, rtol=0, atol=0)


def resumed(federation: Federation, system: FedMic) -> FedMic:
    state = {name: value.clone() for name, value in system.state().items()}
    fresh = make(system.config, federation, Seeds.of_study(0))
    fresh.restore(state)
    return fresh


def test_the_published_form_takes_more_numbers_as_its_share_of_energy_grows(federation):
    sent = {}
    for share in (0.3, 0.9):
        system = made(federation, compression="svd_plain", energy_start=share, energy_end=share)
        play(system)
        found = system.traits()
        sent[share] = found["numbers sent per round"], found["numbers received per round"]
    assert all(few < many for few, many in zip(sent[0.3], sent[0.9], strict=True))
    assert max(sent[0.9]) < system.traits()["student parameters"]


# Through the protection.


def opened(path: Path, aggregation: str) -> list[str]:
    """Digests of all opened sums of one round of the preset under an aggregation."""
    keys = ["run.seed=0", "run.baselines=false", "system.rounds=1", "system.local_epochs=1"]
    config = load("fedmic-smoke", [*keys, f"aggregation={{{aggregation}}}"])
    folder = RunFolder.open(path, config, "# test\n", resume=False)
    try:
        results = SummedRun(config, folder, Console(file=io.StringIO())).play()
    finally:
        if folder._lock is not None:
            folder._lock.close()
    return [digest for one in results.rounds for digest in one["aggregate_sha256"]]


@pytest.mark.parametrize(
    "aggregation",
    [
        'kind="ckks"',
        pytest.param('kind="ckks", custody="decryptor"', marks=pytest.mark.nightly),
        pytest.param('kind="ring"', marks=pytest.mark.nightly),
        pytest.param('kind="slots", unsafe=true', marks=pytest.mark.nightly),
    ],
)
def test_every_aggregation_opens_both_sums_as_the_same_integers(tmp_path: Path, aggregation: str):
    plain = opened(tmp_path / "plain", 'kind="plain"')
    assert len(set(plain)) == 2
    assert opened(tmp_path / "other", aggregation) == plain


# Under noise.


def noisy(asked: Federation, tmp_path: Any, scramble: str) -> tuple[FedMic, Vector, Vector]:
    """Both vectors of one site, whose teacher or student was disturbed before; seeded noise.

    A teacher is no number any more: whatever were computed from it would not be one either.
    """
    system = make(configured(NOISY), asked, Seeds.of_study(0))
    site = asked.sites[0]
    parts = {"teacher": [system.pairs[site.name].teacher, system.pairs[site.name].bridge],
             "student": [system.students["all"]], "nothing": []}  # fmt: skip
    with torch.no_grad():
        for module in parts[scramble]:
            for parameter in module.parameters():
                parameter.mul_(1.5 if scramble == "student" else torch.nan)
    with Ledger(
        tmp_path / scramble,
        "site",
        "0" * 64,
        relation=ADD_OR_REMOVE_ONE,
        budget_epsilon=None,
        delta=1e-5,
    ) as ledger:

        def begin(size: int) -> Any:
            assert size == system.trained_parameters(site)
            plan = DpSgd(
                clip_norm=0.15,
                noise_multiplier=1.0,
                rate=1.0,
                steps=3,
                size=size,
                expected=float(site.patients),
            )
            return plan.begin(ledger, ReleaseKey("session", 0), seeded_random(b"study"))

        first = system.contribute(site, 0, "left", begin)
    system.absorb({"all": Summed(first, 1.0, (site.name,), 0.0)}, 0, "left")
    return system, first, system.contribute(site, 0, "right", None)


def test_no_noise_covers_the_teacher_so_nothing_that_is_sent_depends_on_it(asked, tmp_path):
    plain, *usual = noisy(asked, tmp_path, "nothing")
    _, *without_teacher = noisy(asked, tmp_path, "teacher")
    _, *other_student = noisy(asked, tmp_path, "student")
    for one, two in zip(usual, without_teacher, strict=True):
        assert np.isfinite(two).all()
        assert alike(one, two)
    assert not alike(usual[0], other_student[0])
    site = asked.sites[0]
    student, teacher = (weights(n) for n in (plain.central(site), plain.answering(site)))
    assert plain.personalise(site, 0) is not None
    np.testing.assert_array_equal(weights(plain.central(site)), student)
    assert not np.array_equal(weights(plain.answering(site)), teacher)


def test_without_noise_the_student_does_learn_from_the_teacher(federation):
    """The control of the test above: there the teacher's weights show in what is sent."""
    site, sent = federation.sites[0], []
    for factor in (1.0, 1.5, torch.nan):
        system = made(federation)
        with torch.no_grad():
            for parameter in system.pairs[site.name].teacher.parameters():
                parameter.mul_(factor)
        sent.append(system.contribute(site, 0, "left", None))
    assert not alike(sent[0], sent[1])
    assert not np.isfinite(sent[2]).all()


def alike(one: Vector, two: Vector) -> bool:
    """The same but for the order in which a processor adds up."""
    return np.allclose(one, two, rtol=1e-3, atol=1e-4)


def test_training_under_noise_is_charged_for(asked):
    system = make(configured(NOISY), asked, Seeds.of_study(0))
    with pytest.raises(PrivacyError, match="without a charge"):
        system.contribute(asked.sites[0], 0, "left", None)


# What is refused, and with which networks it starts.


def test_factors_of_single_clients_are_a_simulation(federation):
    for config in (
        configured(compression="svd_plain", kind="ckks"),
        configured({"mechanism": "client-gaussian"}, compression="svd_plain"),
    ):
        with pytest.raises(ConfigError, match="do not add up"):
            make(config, federation, Seeds.of_study(0))


def test_a_rank_that_saves_nothing_is_refused(federation):
    with pytest.raises(ConfigError, match="shorter at rank 999"):
        made(federation, rank=999)


def test_masks_are_refused(federation):
    site = federation.sites[0]
    masks = replace(site.task, form="mask")
    with pytest.raises(Exception, match="asks for masks"):
        made(replace(federation, tasks={"main": masks}))


def test_batch_normalisation_is_replaced_and_a_student_has_weights_alone(federation):
    config = configured()
    models = config.models.model_copy(update={"central": "test_efficientnet"})
    system = make(config.model_copy(update={"models": models}), federation, Seeds.of_study(0))
    student = system.students["all"]
    kinds = {type(module).__name__ for module in student.modules()}
    assert "GroupNorm" in kinds
    assert not any("BatchNorm" in kind for kind in kinds)
    assert not list(student.buffers())
    assert set(system._shared(student)) == {
        name for name, _ in student.named_parameters() if ".natural." not in name
    }
    play(system)


def test_teachers_start_where_every_baseline_starts(federation):
    system, config = made(federation), configured()
    start = started(config, federation, SMALL, federation.task, Seeds.of_study(0))
    for site in federation.sites:
        np.testing.assert_array_equal(weights(system.answering(site)), weights(start))


def test_sums_of_one_round_are_opened_whole_or_not_at_all(federation: Federation) -> None:
    """Without one site in the second sum, the two would differ by numbers of its update."""
    config = configured()
    agreed = agree_sums(config, federation, make(config, federation, Seeds.of_study(0)))
    assert len(agreed.agreed) == 2
    for opening in range(agreed.openings):
        (group,) = agreed.groups(opening)
        assert group.least == len(group.participants) == 4
