"""FedMD, FedDF, DS-FL and FedAUX as systems: who learns what from whom, and that rounds go on."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from protocols.errors import ConfigError, NatflError
from secure_natfl.config import Config
from secure_natfl.execute import execute
from secure_natfl.federation import Federation, build
from secure_natfl.methods.plain_models import taught
from secure_natfl.report.model import Report
from secure_natfl.seeds import Seeds
from secure_natfl.summed.terms import agree_sums
from secure_natfl.summed.weight_vectors import vector_of
from secure_natfl.systems.distilled import Consensus, Ensemble, make
from secure_natfl.systems.summed import Summed
from secure_natfl.training import features_of

SMALL = "secure_natfl.methods.small_network:small"
METHODS = ["fedmd", "feddf", "ds-fl", "fedaux"]


def configured(method: str = "fedmd", *, privacy: Any = None, **changes: Any) -> Config:
    hospital = {
        "name": "children",
        "kind": "phantom",
        "hospital": "children",
        "images": 60,
        "sites": 3,
        "architectures": [SMALL],
        **changes.pop("hospital", {}),
    }
    proxies = {"images": 60, "per_round": 20} | changes.pop("proxies", {})
    system = {"rounds": 2, "distill_epochs": 2, "distill_rate": 3e-3} | changes
    return Config.model_validate(
        {
            "run": {"seed": 0, "baselines": False},
            "data": {"size": 16, "hospitals": [hospital]},
            "proxies": proxies,
            "models": {"central": SMALL, "pretrain_epochs": 0, "batch": 16},
            "system": {"kind": "distilled", "method": method, **system},
            "aggregation": {"kind": "plain"},
            "privacy": privacy or {"mechanism": "none", "clip": 8.0},
        }
    )


def federation_of(config: Config) -> Federation:
    return build(config, lambda name: name.encode().ljust(32, b"k"))


@pytest.fixture(scope="module")
def federation() -> Federation:
    return federation_of(configured())


def made(federation: Federation, method: str, **changes: Any) -> Consensus | Ensemble:
    return make(configured(method, **changes), federation, Seeds.of_study(0))


def said(system, number, phase):
    sites = system.federation.sites
    vectors = [system.contribute(site, number, phase.name, None) for site in sites]
    assert all(vector.shape == (phase.layout.size,) for vector in vectors)
    names = tuple(site.name for site in sites)
    return {"all": Summed(np.sum(vectors, axis=0), float(len(sites)), names, 0.0)}


def play(system, number=0):
    for phase in system.phases(number):
        system.absorb(said(system, number, phase), number, phase.name)
    for site in system.federation.sites:
        system.personalise(site, number)


def mean_weights(networks):
    return np.mean([vector_of(taught(network)) for network in networks], axis=0)


@pytest.mark.parametrize("method", METHODS)
def test_no_image_is_asked_twice_and_the_answers_are_rows_by_classes(federation, method):
    system = made(federation, method)
    phases = system.phases(0)
    assert len(phases) == system.options.phases == configured(method).system.phases
    asked = [system.asked(number, "answers") for number in range(2)]
    assert [len(rows) for rows in asked] == [20, 20]
    assert not set(asked[0]) & set(asked[1])
    segment = phases[-1].layout.segments[0]
    assert (segment.rows, segment.columns) == (20, len(federation.task.classes))
    if len(phases) == 2:
        assert len(system.asked(0, "update")) == 0
    if method == "fedaux":
        assert not set(system._elsewhere) & (set(asked[0]) | set(asked[1]))


@pytest.mark.parametrize("method", METHODS)
def test_a_round_that_was_cut_off_goes_on_as_if_it_had_not_been(federation, method):
    def resumed(system):
        fresh = made(federation, method)
        fresh.restore({name: tensor.clone() for name, tensor in system.state().items()})
        return fresh

    whole = made(federation, method)
    play(whole)
    cut = resumed(whole)
    play(whole, 1)
    for phase in cut.phases(1):
        cut = resumed(cut)
        opened = said(cut, 1, phase)
        cut = resumed(cut)
        cut.absorb(opened, 1, phase.name)
    cut = resumed(cut)
    for site in federation.sites:
        cut.personalise(site, 1)
    state = cut.state()
    assert set(state) == set(whole.state())
    for name, tensor in whole.state().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_fedmd_lets_unlike_networks_meet_and_each_goes_back_to_its_own_images():
    config = configured(hospital={"architectures": [SMALL, "test_efficientnet_gn"]})
    federation = federation_of(config)
    system = make(config, federation, Seeds.of_study(0))
    play(system)
    numbers = {len(vector_of(taught(system.answering(site)))) for site in federation.sites}
    assert len(numbers) == 2
    assert all(system.central(site) is None for site in federation.sites)


def test_sites_come_closer_to_the_consensus_by_fitting_it(federation):
    system = made(federation, "ds-fl", distill_epochs=20)
    phase = system.phases(0)[0]
    system.absorb(said(system, 0, phase), 0, phase.name)
    images, target = system.images(0), system._released["all"]

    def off(network):
        return float(system.rule.losses(features_of(network, images), target).mean())

    for site in federation.sites:
        before = off(system.own[site.name])
        system.personalise(site, 0)
        assert off(system.own[site.name]) < before
    # The server's own network started from the public one, and has learned the same.
    assert off(system.central(federation.sites[0])) < off(system.started(SMALL))


def test_the_student_is_the_mean_of_the_sites_before_it_learns_from_their_answers(federation):
    system = made(federation, "feddf", distill_epochs=20)
    update, answers = system.phases(0)
    system.absorb(said(system, 0, update), 0, update.name)
    mean = mean_weights(system.local.values())
    np.testing.assert_allclose(vector_of(taught(system.shared["all"])), mean, atol=1e-6)
    images = system.images(0)
    ensemble = torch.stack([features_of(network, images) for network in system.local.values()])

    def off():
        student = features_of(system.shared["all"], images)
        return float(system.rule.losses(student, ensemble.mean(0)).mean())

    opened = said(system, 0, answers)
    elsewhere = np.random.default_rng(0).normal(0, 0.1, update.layout.size)
    system.absorb({"all": Summed(elsewhere, 1.0, ("a",), 0.0)}, 0, update.name)
    before = off()
    system.absorb(opened, 0, answers.name)
    assert off() < before
    assert not system.local
    first, last = (system.answering(federation.sites[i]) for i in (0, -1))
    assert first is last is system.central(federation.sites[0])


def test_a_group_that_was_not_opened_leaves_its_networks_as_they_were(federation):
    system = made(federation, "fedaux")
    before = vector_of(taught(system.shared["all"]))
    for phase in system.phases(0):
        said(system, 0, phase)
        system.absorb({}, 0, phase.name)
    np.testing.assert_array_equal(vector_of(taught(system.shared["all"])), before)
    system = made(federation, "ds-fl")
    system.absorb({}, 0, "answers")
    assert system.personalise(federation.sites[0], 0) is None


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("fedmd", {"hospital": {"target": "mask"}}, ("one row of classes", "fedavg")),
        ("fedmd", {"privacy": {"mechanism": "dp-sgd"}}, ("dp-sgd", "client-gaussian")),
        ("feddf", {"hospital": {"architectures": [SMALL, "test_vit"]}}, ("cannot be averaged",)),
        ("fedaux", {"proxies": {"images": 40}}, ("all 40 public images are asked", "per_round")),
        (
            "fedmd",
            {"privacy": {"mechanism": "client-gaussian"}},
            ("no crowd", "privacy.override"),
        ),
        ("ds-fl", {"hospital": {"sites": 2}}, ("2 participants", "floors are 3")),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(method, changes, expected):
    config = configured(method, **changes)
    federation = federation_of(config)
    with pytest.raises(NatflError) as refused:
        agree_sums(config, federation, make(config, federation, Seeds.of_study(0)))
    line = str(refused.value)
    assert "\n" not in line
    for part in expected:
        assert part in line


def test_another_table_is_refused(federation):
    other = configured().model_copy(update={"system": configured().system.model_copy()})
    table = Config.model_validate(other.model_dump() | {"system": {"kind": "fedavg"}})
    with pytest.raises(ConfigError, match="fedavg"):
        make(table, federation, Seeds.of_study(0))


def test_a_run_is_reported_with_what_covers_it_and_what_does_not(tmp_path):
    config = configured("fedaux", rounds=1, proxies={"images": 30})
    execute(config, tmp_path / "run", "natfl run test", Console(file=io.StringIO()))
    report = Report.model_validate_json((tmp_path / "run" / "report.json").read_bytes())
    assert report.system == "distilled"
    assert report.traits["method"] == "fedaux"
    assert report.proxy is not None
    assert all(float(client.epsilon) == np.inf for client in report.clients)
    assert "certainty has no noise of its own" in report.reconstruction
    assert "most that one patient moves a certainty regression, in L2" in report.traits


def test_noise_hides_a_site_in_both_sums_certainty_and_all(federation):
    config = configured("fedaux", privacy={"mechanism": "client-gaussian", "override": True})
    system = make(config, federation, Seeds.of_study(0))
    schedule = agree_sums(config, federation, system)
    assert [one.name for one in schedule.agreed] == ["update", "answers"]
    for one in schedule.agreed:
        assert one.terms.noise["all"] > 0
        assert one.terms.noise_plan.epsilon <= config.privacy.epsilon
    assert schedule.agreed[1].layout.size == 20 * (len(federation.task.classes) + 1)
    assert schedule.costly(federation.sites[0].name) == {0, 1, 2, 3}
