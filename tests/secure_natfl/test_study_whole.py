"""Studies of whole runs: systems that learn from sums, in the clear and protected, for real."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from protocols.errors import ConfigError
from secure_natfl.run_folder import RunFolder
from secure_natfl.study import runner
from secure_natfl.study.cell import play
from secure_natfl.study.cell_run import Job
from secure_natfl.study.conduct import Wish, conduct
from secure_natfl.study.file import AGAINST, CLEAR, StudyFile, read_study
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import plan_of
from secure_natfl.study.whole_check import check_whole
from secure_natfl.study.whole_run import ClearRun, record_of
from secure_natfl.study.whole_scores import Contrast, interval, means

TINY = """
name = "tiny"
folds = 0
seeds = [0, 1]
models = ["central", "personalised"]

[set]
data.size = 16
system.rounds = 1
system.local_epochs = 1
system.alpha = "equal"
aggregation.kind = "plain"
privacy.clip = 8.0

[[set.data.hospitals]]
name = "children"
kind = "phantom"
hospital = "children"
images = 60
sites = 3
architectures = ["secure_natfl.methods.small_network:small"]

[arms.clear]
study.preset = "fedavg-smoke"
study.in_the_clear = true
models.central = "secure_natfl.methods.small_network:small"

[arms.protected]
study.like = "clear"
study.in_the_clear = false

[arms.encrypted]
study.like = "protected"
study.seeds = [0]
aggregation.kind = "ckks"

[arms.clipped]
study.like = "clear"
study.in_the_clear = false
study.seeds = [0]
privacy.clip = 1e-3

[arms.hidden-site]
study.like = "protected"
study.refused = true
privacy.mechanism = "client-gaussian"
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def made(text: str = TINY) -> StudyFile:
        Path("tiny.toml").write_text(text, encoding="utf-8")
        return read_study("tiny.toml")

    return made


def rows(name: str) -> list[dict[str, str]]:
    with Path("out", name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_arms_of_whole_runs_from_file_to_page(tiny, monkeypatch):
    study = tiny()
    plan = plan_of(study)
    assert [cell.kind for cell in plan.cells()].count("clear run") == 2
    folder = StudyFolder.open(Path("out"), study, "", resume=False)
    for cell in plan.cells():
        assert play(Job(cell, folder)) == ""
    monkeypatch.setattr(runner, "workers", lambda: 1)
    quiet = Console(quiet=True)
    page = conduct(study, Wish(Path("out"), "natfl study tiny.toml", resume=True), quiet).page
    text = page.read_text(encoding="utf-8")
    assert "NOT PRIVATE" in text
    assert "All images are phantoms" in text
    (refused,) = rows("refusals.csv")
    assert refused["arm"] == "hidden-site"
    assert "no crowd" in refused["reason"]
    costs = {row["arm"]: row for row in rows("costs.csv")}
    # Encrypted, the same integers are opened; in the clear nothing of the grid is taken up.
    assert costs["encrypted"]["same_integers"] == "as protected: true"
    assert costs["protected"]["same_integers"] == ""
    assert int(costs["encrypted"]["upload_bytes"]) > int(costs["protected"]["upload_bytes"])
    assert costs["protected"]["clipped"] == "0"
    assert costs["clipped"]["clipped"] == costs["clipped"]["sent"] == "3"
    assert {row["epsilon_worst_site"] for row in costs.values()} == {"inf"}
    tests = [row for row in rows("tests.csv") if row["hospital"] == "all sites"]
    assert {row["against"] for row in tests if row["arm"] == "encrypted"} == {"protected"}
    assert {row["difference"] for row in tests if row["arm"] == "encrypted"} == {"0.0"}
    assert all(row["low_95"] for row in tests if row["arm"] == "protected")
    results = rows("results.csv")
    assert {row["metric"] for row in results} == {"accuracy", "auroc"}
    assert {row["site"] for row in results} == {"", "children-1", "children-2", "children-3"}
    assert {row["private"] for row in results} == {"False"}


class Watched(ClearRun):
    """Keeps what was opened, what was taken up in its place, and what the sites had computed."""

    dies = False

    def _read(self, agreed, outcome, sums):
        if self.dies:
            raise KeyboardInterrupt
        found = super()._read(agreed, outcome, sums)
        self.seen = sums["all"], found["all"].values, self._as_computed
        return found


def played(config, path, kind=Watched):
    folder = RunFolder.open(Path(path), config, "", resume=Path(path, "run.json").exists())
    run = kind(config, folder, quiet())
    try:
        return run, run.play()
    finally:
        folder._lock.close()


def test_in_the_clear_is_neither_clipped_nor_on_a_grid(tiny):
    """The server takes up the sum of the vectors as they were computed, to the last bit."""
    config = plan_of(tiny()).cells()[0].config
    clip = config.privacy.model_copy(update={"clip": 1e-3})
    run, results = played(config.model_copy(update={"privacy": clip}), "run")
    opened, taken_up, computed = run.seen
    assert np.array_equal(taken_up, np.sum(list(computed.values()), axis=0))
    assert np.linalg.norm(opened) <= 3 * 1e-3 < np.linalg.norm(taken_up)
    assert results.rounds[0]["clipped"] == 0


def test_a_run_in_the_clear_that_died_with_its_integers_stored_goes_on_alike(tiny):
    class Dying(Watched):
        dies = True

    config = plan_of(tiny()).cells()[0].config
    whole, results = played(config, "whole")
    with pytest.raises(KeyboardInterrupt):
        played(config, "cut", Dying)
    again, taken_up = played(config, "cut")
    assert np.array_equal(again.seen[1], whole.seen[1])
    models = ("central", "personalised")
    assert record_of(taken_up, models) == record_of(results, models)


def test_an_arm_is_like_another_and_compared_with_it(tiny):
    study = tiny()
    assert study.arms["encrypted"][AGAINST] == "protected"
    assert study.arms["encrypted"]["models.central"] == study.arms["clear"]["models.central"]
    assert study.arms["encrypted"][CLEAR] is False
    settings = {setting.arm: setting for setting in plan_of(study).settings}
    assert settings["clear"].clear
    assert [settings[arm].against for arm in ("clear", "protected")] == ["clear", "clear"]
    assert not settings["encrypted"].clear
    cells = [plan_of(study).run_of(settings["protected"], seed) for seed in (0, 1)]
    assert [cell.config.data.split_seed for cell in cells] == [0, 1]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('study.like = "protected"\nstudy.ref', "study.ref", "hidden-site has no base"),
        ('like = "clear"\nstudy.in_the_clear = false', 'like = "later"', "name an arm above it"),
        ("folds = 0", "folds = 2", "of whole runs: set folds = 0"),
        ('kind = "ckks"', 'kind = "ring"\nstudy.in_the_clear = true', "neither encryption nor"),
        ("client-gaussian", "none", "hidden-site: nothing refuses this arm"),
        ('fedavg-smoke"', "smoke\"\nprivacy.mechanism='none'", "natimg-fl is studied fold by"),
        ('"personalised"]', '"noise_proxies"]', "whole runs have no noise_proxies"),
    ],
)
def test_what_a_study_of_whole_runs_cannot_be(tiny, before, after, said):
    assert TINY.count(before) > 0
    with pytest.raises(ConfigError, match=said) as caught:
        check_whole(plan_of(tiny(TINY.replace(before, after))))
    assert "\n" not in str(caught.value)


def test_systems_of_sums_are_not_studied_by_folds(tiny):
    text = TINY.replace("folds = 0", "folds = 2").replace("study.in_the_clear", "#")
    with pytest.raises(ConfigError, match=r"fedavg is studied by whole runs.*set folds = 0"):
        plan_of(tiny(text.replace("study.refused", "#")))


def test_a_mean_counts_each_site_by_its_images_and_each_seed_once():
    def at(hospital, site, images, value):
        where = {"hospital": hospital, "site": site, "images": images}
        return where | {"model": "central", "metric": "dice", "value": value}

    found = means([at("a", "a-1", 1, 0.0), at("a", "a-2", 3, 1.0), at("b", "b", 4, 0.5)])
    assert found["a", "central", "dice"] == 0.75
    assert found["", "central", "dice"] == 0.625
    mean = interval([0.0, 0.2, 0.4])
    # Student's t for two degrees of freedom is 4.303; the standard error is 0.2/√3.
    assert mean is not None
    assert math.isclose(mean.high - mean.value, 4.3027 * 0.2 / math.sqrt(3), rel_tol=1e-4)
    assert interval([0.3]) is None


def test_alike_is_said_of_the_interval_or_of_the_mean_alone(tiny):
    setting = plan_of(tiny()).settings[0]

    def said(apart):
        found = interval(apart)
        where = (setting, "other", "", "central", "dice", len(apart))
        return Contrast(*where, float(np.mean(apart)), found, None).alike

    assert said([0.001, 0.001, 0.002]) == "interval"
    assert said([-0.05, 0.05, 0.003]) == "mean"
    assert said([0.03, 0.02, 0.03]) == "no"
    assert said([0.001]) == "one seed"


def quiet() -> Console:
    return Console(quiet=True)
