"""FedAvg, FedProx, FedBN and their private form: the arithmetic of averaging, term by term."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from protocols.dp_sgd import DpSgd
from protocols.ledger import Ledger, ReleaseKey
from secure_natfl.federation import build
from secure_natfl.seeds import Seeds
from secure_natfl.summed.weight_vectors import vector_of
from secure_natfl.systems.cohorts import declared_weights
from secure_natfl.systems.fedavg import Averaging, make
from secure_natfl.systems.summed import Summed
from secure_natfl.toml_config import load


@pytest.fixture(scope="module")
def configured():
    def made(*changes):
        config = load("fedavg-smoke", ["run.seed=0", *changes])
        table = config.data.hospitals[0].model_copy(update={"images": 60})
        data = config.data.model_copy(update={"hospitals": [table]})
        return config.model_copy(update={"data": data})

    return made


@pytest.fixture(scope="module")
def federation(configured):
    return build(configured(), lambda name: name.encode().ljust(32, b"k"))


@pytest.fixture
def system(configured, federation):
    def made(*changes):
        return make(configured(*changes), federation, Seeds.of_study(0))

    return made


def _sum(vectors, alphas):
    total = sum(alpha * vector for alpha, vector in zip(alphas, vectors, strict=True))
    return Summed(total, float(sum(alphas)), ("a", "b", "c"), 0.0)


def test_the_shared_network_moves_by_the_weighted_mean_of_what_changed(system, federation):
    made = system()
    before = vector_of(made._shared["all"])
    deltas = [made.contribute(site, 0, "update", None) for site in federation.sites]
    assert all(np.abs(delta).max() > 0 for delta in deltas)
    # Training reads the shared network and leaves it alone.
    assert np.array_equal(vector_of(made._shared["all"]), before)
    made.absorb({"all": _sum(deltas, (2, 1, 1))}, 0, "update")
    expected = before + (2 * deltas[0] + deltas[1] + deltas[2]) / 4
    assert np.allclose(vector_of(made._shared["all"]), expected, atol=1e-6)
    images = federation.sites[0].test.images
    answers = [made.answering(site)(images) for site in federation.sites]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], made.central(federation.sites[0])(images))


def test_the_same_seeds_train_the_same_update_and_another_round_another(system, federation):
    site = federation.sites[0]
    first = system().contribute(site, 0, "update", None)
    assert np.array_equal(first, system().contribute(site, 0, "update", None))
    assert not np.array_equal(first, system().contribute(site, 1, "update", None))


def test_the_proximal_term_keeps_sites_near_the_shared_network(system, federation):
    site = federation.sites[0]
    moved = {}
    for mu in (0.0, 100.0):
        made = system(f"system.proximal={mu}", "system.local_epochs=10")
        names = [name for name, _ in made._template.named_parameters()]
        delta = made.contribute(site, 0, "update", None)
        parts = made._layout.unpack(delta)
        moved[mu] = sum(float((parts[name] ** 2).sum()) for name in names if name in parts)
    assert moved[100.0] < moved[0.0] / 2


def test_fedbn_sends_no_normalisation_and_each_site_keeps_its_own(system, federation):
    made, plain = system("system.keep_norms=true"), system()
    kept = {s.name for s in plain._layout.segments} - {s.name for s in made._layout.segments}
    assert kept
    assert all("bn" in name for name in kept)
    assert {name.rsplit(".", 1)[1] for name in kept} == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
    }
    deltas = [made.contribute(site, 0, "update", None) for site in federation.sites]
    made.absorb({"all": _sum(deltas, (1, 1, 1))}, 0, "update")
    name = sorted(kept)[0]
    own = [made._own[site.name][name] for site in federation.sites]
    assert not torch.equal(own[0], own[1])
    assert made.central(federation.sites[0]) is None
    again = system("system.keep_norms=true")
    again.restore({key: tensor.clone() for key, tensor in made.state().items()})
    images = federation.sites[1].test.images
    assert torch.equal(
        made.answering(federation.sites[1])(images), again.answering(federation.sites[1])(images)
    )


def test_group_normalisation_has_no_statistics_and_the_report_says_so(configured, federation):
    config = configured("system.keep_norms=true")
    sites = tuple(replace(site, architecture="test_efficientnet_gn") for site in federation.sites)
    made = Averaging(config, replace(federation, sites=sites), Seeds.of_study(0))
    (said,) = [part for part in made.parts() if "FedBN" in part]
    assert "GroupNorm" in said
    assert "scale and shift alone" in said
    assert "without" not in next(
        part for part in Averaging(config, federation, Seeds.of_study(0)).parts() if "FedBN" in part
    )


def test_a_noisy_mean_never_leaves_a_variance_below_zero(system):
    made = system()
    noisy = np.full(made._layout.size, -1e3)
    made.absorb({"all": Summed(noisy, 1.0, ("a",), 1.0)}, 0, "update")
    for name, tensor in made._shared["all"].items():
        assert name.endswith("running_var") == bool((tensor > 0).all())


def test_weights_follow_declared_sizes_up_to_the_cap(configured, federation):
    table = configured().system
    sizes = {site.name: site.patients for site in federation.sites}
    found = declared_weights(table, federation, lambda site: site.group)
    least = min(sizes.values())
    assert found == {name: min(4, round(size / least)) for name, size in sizes.items()}
    equal = table.model_copy(update={"alpha": "equal"})
    assert set(declared_weights(equal, federation, lambda site: site.group).values()) == {1}


@pytest.mark.parametrize("layers", ["head", "last"])
def test_under_dp_sgd_only_what_was_trained_under_noise_is_sent(configured, tmp_path, layers):
    config = configured(
        "privacy.mechanism=dp-sgd",
        f"privacy.layers={layers}",
        "privacy.steps=2",
        "proxies.images=40",
    )
    federation = build(config, lambda name: name.encode().ljust(32, b"k"))
    made, site = make(config, federation, Seeds.of_study(0)), federation.sites[0]
    size = made.trained_parameters(site)
    plan = DpSgd(
        clip_norm=0.15,
        noise_multiplier=1.0,
        rate=1.0,
        steps=2,
        size=size,
        expected=float(site.patients),
    )
    relation = plan.event().relation
    with Ledger(
        tmp_path / "ledger.db", site.name, "p", relation=relation, budget_epsilon=None, delta=1e-5
    ) as ledger:
        asked, random = [], Seeds.of_study(0).protective(os.urandom, "noise")

        def begin(parameters):
            asked.append(parameters)
            return plan.begin(ledger, ReleaseKey("s", 0), random)

        delta = made.contribute(site, 0, "update", begin)
    assert asked == [size]
    names = [segment.name for segment in made._layout.segments]
    assert names[-2:] == ["network.xray.weight", "network.xray.bias"]
    assert (len(names) == 2) == (layers == "head")
    assert not any("running" in name for name in names)
    assert delta.shape == (made._layout.size,)
    assert np.abs(delta).max() > 0
