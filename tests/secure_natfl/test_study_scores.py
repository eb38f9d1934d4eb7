"""Folds, out-of-fold AUROC, the price of a search, fronts: each against a count by hand."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from protocols.accounting import ADD_OR_REMOVE_ONE, REPLACE_ONE, Event, compose
from protocols.errors import ConfigError
from protocols.ledger import Ledger, ReleaseKey
from secure_natfl.federation import build
from secure_natfl.models import Network
from secure_natfl.pretraining import cache_folder, pretrained, public_features
from secure_natfl.study.cell import keys_of
from secure_natfl.study.figures import front_of
from secure_natfl.study.file import read_study
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import plan_of
from secure_natfl.study.predictions import Truth
from secure_natfl.study.price import prices
from secure_natfl.study.scores import curve, difference, interval, resamples
from secure_natfl.toml_config import load
from secure_natfl.training import features_of


@pytest.fixture
def truth():
    rng = np.random.default_rng(1)
    n = 60
    labels = rng.integers(0, 2, n)
    return Truth(
        keys=np.arange(n),
        units=np.repeat(np.arange(n // 2), 2),
        fold=np.repeat(np.arange(3), n // 3),
        targets=np.stack([1 - labels, labels], 1).astype(np.float32),
        known=np.ones((n, 2), np.float32),
        multi_label=False,
        unit="patient",
    )


def probabilities(truth, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    score = signal * truth.targets[:, 1] + rng.normal(size=len(truth.keys))
    # Models of different folds have scales of their own, and ties.
    score = np.round(score, 1) + 10 * truth.fold
    return np.stack([-score, score], 1)


def test_pairs_are_counted_within_folds(truth):
    p, weights = probabilities(truth), resamples(truth.units)
    found = curve(p, truth, weights)
    for row in (0, 1, 17):
        right = pairs = 0.0
        for i, j in itertools.product(range(60), repeat=2):
            if truth.fold[i] == truth.fold[j] and truth.targets[i, 1] > truth.targets[j, 1]:
                count = weights[row, i] * weights[row, j]
                pairs += count
                right += count * ((p[i, 1] > p[j, 1]) + 0.5 * (p[i, 1] == p[j, 1]))
        assert found[row] == pytest.approx(right / pairs)
    # Ranked over all folds at once, the folds' scales would hide the signal.
    assert found[0] > roc_auc_score(truth.targets[:, 1], p[:, 1]) + 0.05


def test_a_patients_images_are_drawn_together(truth):
    weights = resamples(truth.units)
    assert (weights[:, ::2] == weights[:, 1::2]).all()
    assert (weights.sum(1) == 60).all()


def test_one_class_has_no_auroc(truth):
    alone = replace(truth, targets=np.tile(np.array([0, 1], np.float32), (60, 1)))
    assert curve(probabilities(alone), alone, resamples(alone.units)) is None


def test_differences_are_paired(truth):
    weights = resamples(truth.units)
    good, bad = (curve(probabilities(truth, 0, s), truth, weights) for s in (1.0, 0.0))
    apart = difference(good, bad)
    assert apart.value == pytest.approx(good[0] - bad[0])
    assert 0 < apart.lower < apart.value < apart.upper
    nothing = difference(good, good)
    assert (nothing.value, nothing.lower, nothing.upper) == (0, 0, 0)
    found = interval(good)
    assert found.low < found.value < found.high


def test_folds_of_a_site_hold_each_patient_back_once(tiny_config):
    held_back: dict[str, list[str]] = {}
    for fold in range(3):
        config = tiny_config("data.folds=3", f"data.fold={fold}")
        for site in build(config, lambda name: b"k" * 32).sites:
            assert not set(site.train_patients) & set(site.test_patients)
            held_back.setdefault(site.name, []).extend(sorted(set(site.test_patients)))
            everybody = set(site.train_patients) | set(site.test_patients)
    for patients in held_back.values():
        assert len(set(patients)) == len(patients)
    assert set(held_back[site.name]) == everybody


def test_a_fold_that_there_is_not(tiny_config):
    with pytest.raises(ConfigError, match="no fold 3 of 3"):
        tiny_config("data.folds=3", "data.fold=3")
    with pytest.raises(ConfigError, match="no fold 1 of 0"):
        tiny_config("data.fold=1")


@pytest.fixture
def tiny_config():
    def made(*changes: str):
        few = ("proxies.images=60", "proxies.per_round=20")
        return load("smoke", ["data.hospitals=" + HOSPITALS, *few, *changes])

    return made


HOSPITALS = (
    '[{ name = "children", kind = "phantom", hospital = "children", images = 60, sites = 2, '
    'architectures = ["test_efficientnet"] }]'
)


def test_public_features_are_those_of_the_network_and_computed_once(world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = {"size": 32, "weights": "none", "epochs": 1}
    naturals = world.federation.naturals
    network = pretrained("test_efficientnet", naturals, classes=2, **settings)
    given = {"architecture": "test_efficientnet", **settings}
    first = public_features(network, naturals, **given)
    assert (first == features_of(network.backbone, naturals.images)).all()
    (kept,) = cache_folder().glob("*.features.safetensors")
    written = kept.stat().st_mtime_ns
    assert (public_features(network, naturals, **given) == first).all()
    assert kept.stat().st_mtime_ns == written
    assert isinstance(network, Network)


def test_keys_tell_images_apart_in_any_order(world):
    images = world.federation.naturals.images[:50]
    keys = keys_of(images)
    assert len(set(keys.tolist())) == 50
    assert (keys_of(images.flip(0)) == keys[::-1]).all()


def test_the_price_is_that_of_the_worst_fold(tmp_path):
    study = read_study("smoke-study")
    plan = plan_of(study)
    folder = StudyFolder.open(tmp_path / "S", study, "", resume=False)
    cells = {cell.id: cell for cell in plan.cells() if cell.kind == "federation"}
    costs = (0.1, 0.2, 0.4)
    # Two settings, three folds; one exact cell; one ledger of a cell that is planned no more.
    charged = [(c, noise(costs[c.config.data.fold])) for c in list(cells.values())[:6]]
    charge(folder, "gone", noise(0.05))
    charge(folder, list(cells)[7], noise(math.inf))
    for cell, event in charged:
        charge(folder, cell.id, event)
    (price,) = prices(folder, cells, study.folds, 1e-5)
    worst = [noise(0.05), *(e for c, e in charged if c.config.data.fold != 0)]
    assert (price.hospital, price.noised, price.exact) == ("children", 7, 1)
    assert price.epsilon == pytest.approx(compose(worst, 1e-5).epsilon)


def test_a_patient_pays_at_every_cut_of_the_hospital_and_each_has_folds_of_its_own(tmp_path):
    """Whoever was at children-1 of two sites was at some site of three in the other arm."""
    study = read_study("smoke-study").model_copy(update={"folds": 2, "grid": {}})
    arms = {"two": {"data.hospitals.children.sites": 2}, "three": {}}
    plan = plan_of(study.model_copy(update={"arms": arms}))
    folder = StudyFolder.open(tmp_path / "S", study, "", resume=False)
    two, three = (
        [plan.federation(setting, 0, fold) for fold in range(2)] for setting in plan.settings
    )
    charge(folder, two[0].id, noise(0.01), site="children-1")
    charge(folder, two[0].id, noise(0.1), site="children-2")
    charge(folder, two[1].id, noise(0.2), site="children-1")
    charge(folder, three[0].id, noise(0.4), site="children-3")
    charge(folder, three[1].id, noise(0.3), site="children-1")
    other = replace(noise(0.7), relation=ADD_OR_REMOVE_ONE)
    charge(folder, three[1].id, other, site="children-2")
    cells = {cell.id: cell for cell in plan.cells()}
    added, replaced = prices(folder, cells, 2, 1e-5)
    # Held back in fold 0 of the cut in two, and in fold 1 of the cut in three.
    assert replaced.epsilon == pytest.approx(compose([noise(0.2), noise(0.4)], 1e-5).epsilon)
    assert (replaced.relation, replaced.noised) == (REPLACE_ONE, 4)
    assert (added.relation, added.noised) == (ADD_OR_REMOVE_ONE, 1)
    # Of whole runs nothing is held back.
    (_, whole) = prices(folder, cells, 0, 1e-5)
    every = [noise(rho) for rho in (0.1, 0.2, 0.3, 0.4)]
    assert whole.epsilon == pytest.approx(compose(every, 1e-5).epsilon)


def noise(rho: float) -> Event:
    return Event("m", REPLACE_ONE, rho, max(rho, 0.5), 0, 0, 0)


def charge(folder: StudyFolder, cell: str, event: Event, site: str = "children-1") -> None:
    path = folder.ledgers / cell / site
    path.mkdir(parents=True)
    common = {"relation": event.relation, "budget_epsilon": None, "delta": 1e-5}
    with Ledger(path / "ledger.db", site, "p", **common) as ledger:
        ledger.charge(ReleaseKey(cell, 0), event)


def test_the_front_holds_what_nothing_beats():
    spots = [("cheap", 1.0, 0.6), ("good", 5.0, 0.9), ("beaten", 5.0, 0.8), ("dear", 9.0, 0.9)]
    assert front_of(spots) == {"cheap", "good"}
