"""PPPML-HMI on phantoms' lungs: what is sent, what is read, what is refused, exact ring sums."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from protocols.accounting import ADD_OR_REMOVE_ONE
from protocols.dp_sgd import Descent, DpSgd
from protocols.errors import ConfigError, ModelError, PrivacyError
from protocols.ledger import Ledger, ReleaseKey
from protocols.mechanisms import NoNoise
from protocols.sampler import seeded_random
from secure_natfl.config import Config
from secure_natfl.federation import Federation, Site, build
from secure_natfl.methods.meta_training import cut, weights_of
from secure_natfl.run_folder import RunFolder
from secure_natfl.seeds import Seeds
from secure_natfl.summed.run import SummedRun
from secure_natfl.summed.terms import agree_sums
from secure_natfl.surgery import trainable
from secure_natfl.systems.pppml_hmi import PppmlHmi, make
from secure_natfl.systems.summed import Summed

SIZE, SEEDS = 16, Seeds.of_study(3)


def config_of(**changes: Any) -> Config:
    hospital = {
        "kind": "phantom",
        "name": "county",
        "hospital": "county",
        "target": "mask",
        "images": 30,
        "sites": 3,
        "architectures": ["unet-4"],
    } | changes.pop("hospital", {})
    tables: dict[str, Any] = {
        "run": {"seed": 3, "baselines": False},
        "data": {"size": SIZE, "hospitals": [hospital]},
        "models": {"central": "unet-4", "pretrain_epochs": 0, "batch": 16},
        "system": {"kind": "pppml-hmi", "rounds": 1, "own_steps": 3},
        "aggregation": {"kind": "plain"},
        "privacy": {"mechanism": "none"},
    }
    for name, table in changes.items():
        tables[name] = tables.get(name, {}) | table
    return Config.model_validate(tables)


def built(config: Config) -> Federation:
    return build(config, lambda _: b"key of a test site")


@pytest.fixture(scope="module")
def federation() -> Federation:
    return built(config_of())


def system_of(federation: Federation, **system: Any) -> PppmlHmi:
    return make(config_of(system=system), federation, SEEDS)


def test_what_is_sent_is_the_change_that_a_gradient_after_an_own_step_makes(
    federation: Federation,
) -> None:
    """One step of SGD over all images: −β∇f(θ − α∇f(θ; B₁); B₂), and the hook reads ∇ off it."""
    config = config_of(system={"optimiser": "sgd", "learning_rate": 0.5}, models={"batch": 256})
    system, site = make(config, federation, SEEDS), federation.sites[0]
    sent = system.contribute(site, 0, "update", None)
    assert sent.shape == (system.phases(0)[0].layout.size,)
    gradient = torch.cat([g.reshape(-1) for g in system.gradient_of(site, 0)])
    torch.testing.assert_close(gradient.double().numpy(), -sent / 0.5, rtol=1e-4, atol=1e-7)
    other = make(
        config_of(
            system={"optimiser": "sgd", "learning_rate": 0.5, "inner_rate": 1e-9},
            models={"batch": 256},
        ),
        federation,
        SEEDS,
    ).contribute(site, 0, "update", None)
    assert np.linalg.norm(sent - other) > 0.01 * np.linalg.norm(other)


def test_training_repeats_itself_and_sites_and_rounds_differ(federation: Federation) -> None:
    system, (first, second, _) = system_of(federation), federation.sites
    sent = system.contribute(first, 0, "update", None)
    assert np.array_equal(sent, system_of(federation).contribute(first, 0, "update", None))
    assert not np.array_equal(sent, system.contribute(first, 1, "update", None))
    assert not np.array_equal(sent, system.contribute(second, 0, "update", None))


def test_no_test_image_is_read(federation: Federation) -> None:
    """The public code picks models and fine-tuning steps by the test images that it reports."""
    spoilt = replace(federation, sites=tuple(_spoilt(site) for site in federation.sites))
    for site, other in zip(federation.sites, spoilt.sites, strict=True):
        ours, theirs = system_of(federation), system_of(spoilt)
        sent = ours.contribute(site, 0, "update", None)
        assert np.array_equal(sent, theirs.contribute(other, 0, "update", None))
        assert ours.personalise(site, 0) == theirs.personalise(other, 0)
        assert torch.equal(ours.own[site.name], theirs.own[other.name])


def _spoilt(site: Site) -> Site:
    return replace(site, test=replace(site.test, images=site.test.images * torch.nan))


def test_a_patient_with_several_scans_trains_or_chooses_never_both(federation: Federation) -> None:
    site = federation.sites[0]
    names = tuple(f"patient {i // 3}" for i in range(len(site.train)))
    site = replace(site, records=replace(site.records, patients=names))
    parts = cut(site, 3, 0)
    assert parts.chooses is not None
    assert len(parts.fit) + len(parts.chooses) == len(site.train)
    assert len(parts.patients) == len(parts.fit)
    for name in set(parts.patients):
        assert parts.patients.count(name) == names.count(name)
    fit = {image.numpy().tobytes() for image in parts.fit.images}
    assert not fit & {image.numpy().tobytes() for image in parts.chooses.images}


def test_too_few_patients_to_divide_all_train(federation: Federation) -> None:
    site = federation.sites[0]
    assert cut(site, len(site.train) + 1, 0).chooses is None
    assert len(cut(site, 0, 0).fit) == len(site.train)


def test_own_steps_are_as_many_as_validation_finds_best(federation: Federation) -> None:
    site = federation.sites[0]
    wild = system_of(federation, inner_rate=1e4)
    wild.personalise(site, 0)
    assert wild.traits()[f"own steps kept at {site.name}"] == 0
    assert torch.equal(wild.own[site.name], wild.shared[site.group])
    blind = system_of(federation, inner_rate=1e-4, validation_folds=0)
    assert blind.personalise(site, 0) is None
    assert blind.traits()[f"own steps kept at {site.name}"] == 3
    assert not torch.equal(blind.own[site.name], blind.shared[site.group])


def test_the_server_moves_the_shared_weights_by_the_weighted_mean(federation: Federation) -> None:
    system = system_of(federation)
    before = system.shared["all"].clone()
    step = np.linspace(-1, 1, len(before))
    system.absorb({"all": Summed(6 * step, 4.0, ("a", "b", "c"), 0.0)}, 0, "update")
    torch.testing.assert_close(system.shared["all"], before + 1.5 * torch.from_numpy(step).float())
    system.absorb({}, 0, "update")
    torch.testing.assert_close(system.shared["all"], before + 1.5 * torch.from_numpy(step).float())


def test_a_restored_system_goes_on_as_the_first(federation: Federation) -> None:
    first, site = system_of(federation), federation.sites[0]
    step = 1e-3 * np.ones(first.phases(0)[0].layout.size)
    first.absorb({"all": Summed(step, 1.0, (), 0.0)}, 0, "update")
    first.personalise(site, 0)
    second = system_of(federation)
    second.restore({name: value.clone() for name, value in first.state().items()})
    assert second.traits() == first.traits()
    images = site.test.images
    for network in ("answering", "central"):
        a, b = (getattr(one, network)(site)(images) for one in (first, second))
        assert torch.equal(a, b)
    sent = [one.contribute(site, 1, "update", None) for one in (first, second)]
    assert np.array_equal(*sent)


def test_a_classifier_s_batch_statistics_are_gone_and_all_of_it_is_sent() -> None:
    """In the public code 33 layers' running statistics are neither exchanged nor kept."""
    target = {"target": "labels", "architectures": ["test_resnet"]}
    config = config_of(hospital=target, models={"central": "test_resnet"})
    federation = built(config)
    system, site = make(config, federation, SEEDS), federation.sites[0]
    network = system.central(site)
    assert network is not None
    assert not [n for n, _ in network.named_buffers() if "running" in n]
    assert network(site.test.images).shape == (len(site.test), 2)
    sent = system.contribute(site, 0, "update", None)
    assert len(sent) == sum(p.numel() for p in trainable(network).values())
    resting = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert resting == {"network.natural.weight", "network.natural.bias"}
    assert np.isfinite(sent).all()
    assert np.abs(sent).max() > 0


def test_float32_masks_lose_a_small_update_and_the_ring_s_integers_do_not() -> None:
    """The public code adds a float32 mask of deviation 1e4 once, and subtracts it at the end."""
    random = np.random.default_rng(5)
    updates = random.normal(0, 1e-3, (3, 4096))
    true = updates.mean(0)
    mask = random.normal(0, 1e4, 4096).astype(np.float32)
    carried = mask.copy()
    for one in updates:
        carried += (one / 3).astype(np.float32)
    lost = np.linalg.norm((carried - mask) - true) / np.linalg.norm(true)
    assert lost > 0.3
    mechanism = NoNoise.for_sites(shards={"a": 1}, clip_norm=1.0, size=4096)["a"]
    assert np.linalg.norm(updates, axis=1).max() < mechanism.clip_norm
    modulus = 2**40
    integers = np.rint(updates / mechanism.step).astype(np.int64)
    secret = random.integers(0, modulus, 4096)
    ring = secret.copy()
    for row in integers:
        ring = (ring + row) % modulus
    opened = (ring - secret + modulus // 2) % modulus - modulus // 2
    assert np.array_equal(opened, integers.sum(0))
    # All that is lost is the rounding of each update to half a step of the grid.
    assert np.abs(opened * mechanism.step - updates.sum(0)).max() <= 1.5 * mechanism.step
    assert 1.5 * mechanism.step < 0.1 * 1e-3


def digest_of(kind: dict[str, str], folder: Path) -> list[str]:
    ledgers = {"folder": str(folder / "ledgers")}
    config = config_of(aggregation=kind, ledger=ledgers, system={"own_steps": 0})
    run = RunFolder.open(folder / "run", config, "", resume=False)
    (summary,) = SummedRun(config, run, Console(file=StringIO())).play().rounds
    return summary["aggregate_sha256"]


def test_every_protected_run_opens_the_very_sum_of_a_run_in_clear(tmp_path: Path) -> None:
    clear = digest_of({"kind": "plain"}, tmp_path / "plain")
    protected = {"ring": "decryptor", "ckks": "threshold"}
    for kind, custody in protected.items():
        assert digest_of({"kind": kind, "custody": custody}, tmp_path / kind) == clear


def test_two_sites_are_refused_before_anything_is_sent(federation: Federation) -> None:
    config = config_of(hospital={"sites": 2}, aggregation={"kind": "ring"})
    two = built(config)
    with pytest.raises(ConfigError, match="2"):
        agree_sums(config, two, make(config, two, SEEDS))


def test_sites_with_different_networks_cannot_be_averaged(federation: Federation) -> None:
    config = config_of(hospital={"architectures": ["unet-4", "unet-8"]})
    with pytest.raises(ConfigError, match="unet-8"):
        make(config, built(config), SEEDS)


def test_a_network_for_another_task_is_refused() -> None:
    config = config_of(hospital={"architectures": ["unet-4"], "target": "labels"})
    with pytest.raises(ModelError, match="for masks"):
        make(config, built(config), SEEDS)


DP = {"mechanism": "dp-sgd", "layers": "network", "steps": 2}


def test_noise_needs_all_layers_two_gradients_a_step_and_a_charge(federation: Federation) -> None:
    for change in ({"layers": "head"}, {"steps": 3}):
        with pytest.raises(ConfigError, match="two noisy gradients"):
            make(config_of(privacy=DP | change), federation, SEEDS)
    system = make(config_of(privacy=DP), federation, SEEDS)
    with pytest.raises(PrivacyError, match="without a charge"):
        system.contribute(federation.sites[0], 0, "update", None)


@pytest.mark.parametrize(
    ("target", "network"),
    [
        ("labels", "secure_natfl.methods.small_network:small"),
        pytest.param("mask", "unet-4", marks=pytest.mark.nightly),
    ],
)
def test_sites_train_under_noise_by_units_and_the_own_step_is_paid_for(
    target: str, network: str, tmp_path: Path
) -> None:
    hospital = {"target": target, "architectures": [network]}
    config = config_of(privacy=DP, hospital=hospital)
    federation = built(config)
    system, site = make(config, federation, SEEDS), federation.sites[0]
    size = system.trained_parameters(site)
    plan = DpSgd(clip_norm=1.0, noise_multiplier=0.05, rate=1.0, steps=2, size=size, expected=6.0)
    account = {"delta": 1e-5, "relation": ADD_OR_REMOVE_ONE, "budget_epsilon": None}
    with Ledger(tmp_path / "ledger.db", site.name, "digest", **account) as ledger:
        asked = []

        def begin(size: int) -> Descent:
            asked.append(size)
            return plan.begin(ledger, ReleaseKey("session", 0), seeded_random(b"study"))

        sent = system.contribute(site, 0, "update", begin)
        assert ledger.spent().epsilon > 0
    assert asked == [size] == [len(sent)]
    assert np.isfinite(sent).all()
    assert np.abs(sent).max() > 0
    assert torch.equal(system.shared["all"], weights_of(system.central(site)))
