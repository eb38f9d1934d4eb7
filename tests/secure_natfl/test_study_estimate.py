"""How long a study will take: counts by hand, and what finished cells say better."""

import pytest

from secure_natfl.study import estimate
from secure_natfl.study.estimate import Estimate
from secure_natfl.study.file import read_study
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import plan_of
from secure_natfl.study.preflight import check_plan

SPEED = 50.0


@pytest.fixture(scope="module")
def plan():
    """The smoke study with another model, and with the networks that speak without noise."""
    study = read_study("smoke-study")
    common = study.common | {"privacy.mechanism": "none", "privacy.speaking": "network"}
    del common["privacy.shards"]
    arms = {
        "whole": {"system.downward": "off", "study.models": ["central", "personalised"]},
        "again": {"system.downward": "off", "system.beta": "uniform", "study.models": ["central"]},
        "alone": {"study.models": ["local_only", "pooled"], "system.local_epochs": 3},
    }
    changes = {"common": common, "arms": arms, "grid": {}, "seeds": [0, 1]}
    return plan_of(study.model_copy(update=changes))


@pytest.fixture(scope="module")
def federations(plan):
    return check_plan(plan)


@pytest.fixture
def speed(monkeypatch):
    """Images per second, which are measured on the machine that plays, for every network alike."""
    monkeypatch.setattr(estimate, "_rate", lambda architecture, size: SPEED)


def test_a_cell_is_counted_by_the_images_that_pass_its_networks(plan, federations, speed):
    found = Estimate(plan, federations, None)
    whole, _, alone = plan.settings
    sites = next(iter(federations.values())).sites
    train = sum(len(site.train) for site in sites)
    # 150 images in three folds; 200 public ones, of which a round asks 100.
    assert (len(sites), train + sum(len(site.test) for site in sites)) == (3, 150)
    read = 1.5 + 2e-4 * (150 + 200)
    comparison = plan.comparison(alone, 0, 0)
    assert found.seconds(comparison) == pytest.approx(read + 2 * 3 * train / SPEED)
    # Networks of their own for one epoch, twice as much where they speak, two of distillation.
    federation = plan.federation(whole, 0, 0)
    own, speaking, distilled = train / SPEED, 2 * train / SPEED, 2 * 100 / SPEED
    assert found.seconds(federation) == pytest.approx(read + own * 2 + speaking + distilled)
    # Every seed and fold of a setting is foretold by the one that was counted.
    assert found.seconds(plan.federation(whole, 1, 2)) == found.seconds(federation)
    assert found.total(plan.of(whole, 0)) == pytest.approx(3 * found.seconds(federation))


def test_finished_cells_correct_what_was_counted(plan, federations, speed, tmp_path):
    folder = StudyFolder.open(tmp_path / "S", plan.study, "", resume=False)
    found = Estimate(plan, federations, folder)
    whole, again, _ = plan.settings
    before = {s: found.seconds(plan.federation(s, 0, 0)) for s in (whole, again)}
    for fold, times in enumerate((3, 5)):
        cell = plan.federation(whole, 0, fold)
        folder.finish(cell, {}, {"seconds": times * before[whole]})
        found.learn(cell)
    # Its own setting takes the mean; the others are off by as much as that one was.
    assert found.seconds(plan.federation(whole, 1, 0)) == pytest.approx(4 * before[whole])
    assert found.seconds(plan.federation(again, 0, 0)) == pytest.approx(4 * before[again])


def test_what_was_measured_is_not_counted(plan, federations, speed):
    cell = plan.federation(plan.settings[0], 0, 0)
    found = Estimate(plan, federations, None, {cell.id: 7.0})
    assert found.seconds(plan.federation(plan.settings[0], 1, 1)) == 7.0
