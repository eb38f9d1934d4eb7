"""From finished cells of known quality to tables, recommendation and page: nothing is trained."""

import csv
import math
import re

import numpy as np
import pytest
from rich.console import Console

from protocols.errors import DataError
from secure_natfl.report import formats
from secure_natfl.study.advice import MARGIN, advise, worst_of
from secure_natfl.study.analysis import Analysis
from secure_natfl.study.conduct import Wish, conduct
from secure_natfl.study.file import read_study
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import plan_of
from secure_natfl.study.page import attack_figures
from secure_natfl.study.subgroups import Subgroups

IMAGES = 160
COSTS = {"kind": "", "seconds": 99.0, "cpu_seconds": 1.0, "upload_bytes": 1000}


def arrays(cell, signal, model):
    """A fold of one hospital: as many images in each, half of them positive."""
    rng = np.random.default_rng([cell.config.data.fold, cell.config.run.seed])
    labels = np.arange(IMAGES) % 2
    score = signal * labels + rng.normal(size=IMAGES)
    p = 1 / (1 + np.exp(-score))
    keys = np.arange(IMAGES) + cell.config.data.fold * IMAGES
    return {
        "children:keys": keys,
        "children:units": keys // 2,
        "children:targets": np.stack([1 - labels, labels], 1).astype(np.float32),
        "children:known": np.ones((IMAGES, 2), np.float32),
        "children:multi_label": np.array(False),
        "children:patients": np.array(True),
        f"children:{model}": np.stack([1 - p, p], 1)[None].astype(np.float32),
    }


@pytest.fixture
def played(tmp_path):
    """The smoke study with cells whose signal is given by ε; `local` for local training."""

    def made(signals, local=1.0, study=None):
        study = study or read_study("smoke-study")
        plan = plan_of(study)
        folder = StudyFolder.open(tmp_path / "S", study, "", resume=False)
        for setting in plan.settings:
            for cell in (c for seed in setting.seeds for c in plan.of(setting, seed)):
                federated = cell.kind == "federation"
                signal = signals[setting.epsilon] if federated else local
                if signal is not None:
                    model = "central" if federated else "local_only"
                    costs = COSTS | ({"epsilon": setting.epsilon} if federated else {})
                    costs |= {"upload_bytes": 2000} if setting.arm == "uniform" else {}
                    costs |= {"cpu_seconds": 3.0} if setting.epsilon == 8 else {}
                    folder.finish(cell, arrays(cell, signal, model), costs)
        return study, folder, Analysis(folder, plan, Subgroups([]))

    return made


def test_the_smallest_epsilon_that_loses_little_is_taken(played):
    _, _, analysis = played({2.0: 0.3, 8.0: 2.0, math.inf: 2.05})
    advice = advise(analysis, worst_of(analysis))
    (choice,) = advice.choices
    assert choice.shown
    assert choice.chosen.setting.epsilon == 8
    assert any("the federation is better there" in reason for reason in advice.reasons)


def test_where_every_epsilon_loses_much_it_says_so(played):
    _, _, analysis = played({2.0: 0.2, 8.0: 0.4, math.inf: 3.0}, local=3.0)
    advice = advise(analysis, worst_of(analysis))
    (choice,) = advice.choices
    assert not choice.shown
    assert choice.chosen.setting.epsilon == 8
    assert any(f"at most {MARGIN}" in r and "No finite ε" in r for r in advice.reasons)
    assert any("training alone is better there" in reason for reason in advice.reasons)


def test_tests_pair_the_same_images(played):
    _, _, analysis = played({2.0: 0.5, 8.0: 1.0, math.inf: 1.0}, local=1.0)
    found = {(t.setting.label, t.name): t.difference for t in analysis.tests()}
    # Local training has the very predictions of the central model at ε = 8.
    same = found["natural, ε = 8", "central − local_only"]
    assert (same.value, same.lower, same.upper) == (0, 0, 0)
    assert found["natural, ε = 2", "central − local_only"].upper < 0
    assert found["uniform, ε = 8", "central: uniform − natural"].value == 0


def test_a_hospital_that_took_no_part_is_compared_with_the_best_of_all_local_models(tmp_path):
    study = read_study("smoke-study")
    late = {"name": "late", "kind": "phantom", "hospital": "county"}
    late["architectures"] = ["test_efficientnet"]
    hospitals = [*study.common["data.hospitals"], late]
    common, arms = study.common | {"data.hospitals": hospitals}, {"a": {"study.left_out": ["late"]}}
    study = study.model_copy(update={"common": common, "arms": arms, "subgroups": ["view"]})
    plan = plan_of(study)
    folder = StudyFolder.open(tmp_path / "S", study, "", resume=False)
    for cell in plan.cells():
        found = {}
        for hospital in ("children", "late"):
            for site, signal in enumerate([1.0] if cell.kind == "federation" else [0.1, 1.5, 0.3]):
                model = "central" if cell.kind == "federation" else "local_only"
                one = arrays(cell, signal, model)
                key = f"{hospital}:{model}"
                one = {name.replace("children", hospital): part for name, part in one.items()}
                one[key] = np.concatenate([found[key], one[key]]) if site else one[key]
                found |= one
            if model == "local_only":
                found[f"{key}:sites"] = np.array(["x", "y", "z"])
        folder.finish(cell, found, COSTS)
    analysis = Analysis(folder, plan, Subgroups([]))
    scores = {(s.hospital, s.site): s.auroc for s in analysis.scores() if s.model == "local_only"}
    best = max(scores["late", site].value for site in "xyz")
    central = next(
        s.auroc for s in analysis.scores() if (s.hospital, s.model) == ("late", "central")
    )
    found = {(t.hospital, t.name): t.difference for t in analysis.tests()}
    assert found["late", "central − best local model"].value == pytest.approx(central.value - best)
    assert ("children", "central − best local model") not in found
    assert list(analysis.gaps()) == []
    worst = worst_of(analysis)
    assert {one.hospital for one in worst} == {"children"}


def test_a_setting_counts_once_all_its_folds_are_in(played):
    _, _, analysis = played({2.0: None, 8.0: 1.0, math.inf: 1.0})
    assert {setting.epsilon for setting in analysis.settings} == {8.0, math.inf}
    advice = advise(analysis, worst_of(analysis))
    assert advice.reasons[0].startswith("4 of 6 settings")


def test_the_page_shows_curve_and_fronts_of_attacks_bytes_and_cpu_time(played):
    study, folder, analysis = played({2.0: 0.5, 8.0: 1.0, math.inf: 1.5})
    lines = ["arm,privacy.epsilon,advantage", "natural,2,0.01", "natural,8,0.03", "uniform,inf,0.4"]
    (folder.path / "attacks.csv").write_text("\n".join(lines), encoding="utf-8")
    assert attack_figures(folder.path, analysis.plan.settings)["uniform, ε = ∞"] == 0.4
    wish = Wish(folder.path, "natfl study smoke-study", resume=True)
    page = conduct(study, wish, Console(quiet=True)).page.read_text(encoding="utf-8")
    assert 'id="figure-epsilon-central"' in page
    for front in ("advantage", "bytes", "seconds"):
        assert f'id="figure-front-{front}"' in page
    # What a cell computed, and not how long a busy machine took for it.
    spelt = re.findall(r"natural, ε\s=\s8</th>(?:<td.*?</td>){1}<td class=\"n\">(.*?)</td>", page)
    assert spelt[0] == formats.duration(3.0)
    assert formats.duration(99.0) not in page
    assert not re.search(r"#fa00\d\d|https?://(?!www\.w3\.org)", page)
    assert "<script" not in page
    table = (folder.path / "table.tex").read_text()
    # Six settings, and what ε is of.
    assert table.count(r"\varepsilon") == 7
    assert r"one unit replaced, $\delta$ = 1e-5, against the server" in table


@pytest.fixture
def two_mechanisms():
    """Heads trained under noise on two seeds, shard teachers on one."""
    study = read_study("smoke-study")
    common = {key: v for key, v in study.common.items() if not key.startswith("privacy.")}
    heads = {"privacy.mechanism": "dp-sgd", "privacy.delta": 1e-6}
    shards = {"privacy.mechanism": "shard-teachers", "study.seeds": [0]}
    shards |= {"privacy.delta": 1e-5, "privacy.shards": 5}
    return study.model_copy(
        update={"common": common, "arms": {"heads": heads, "shards": shards}, "seeds": [0, 1]}
        | {"grid": {"privacy.epsilon": [2.0, 8.0]}}
    )


def test_epsilon_of_one_relation_is_never_weighed_against_that_of_another(played, two_mechanisms):
    study, folder, analysis = played({2.0: 1.9, 8.0: 2.0}, study=two_mechanisms)
    advice = advise(analysis, worst_of(analysis))
    heads, shards = advice.choices
    assert [one.chosen.setting.arm for one in (heads, shards)] == ["heads", "shards"]
    assert [one.chosen.setting.epsilon for one in (heads, shards)] == [2, 2]
    assert "one unit added or removed, δ = 1e-6, against everybody but the site" in heads.why[0]
    assert "one unit replaced, δ = 1e-5" in shards.why[0]
    wish = Wish(folder.path, "natfl study two", resume=True)
    page = conduct(study, wish, Console(quiet=True)).page.read_text(encoding="utf-8")
    (one,) = re.findall(r'<figure id="figure-epsilon-central">.*?</figure>', page, re.DOTALL)
    (two,) = re.findall(r'<figure id="figure-epsilon-central1">.*?</figure>', page, re.DOTALL)
    assert "added or removed" in one
    assert ">shards<" not in one
    assert "one unit replaced" in two
    assert ">heads<" not in two
    # Local training is one and the same, but its means are over other seeds.
    assert "Trained for heads<" in page
    assert "Trained for shards<" in page


def test_the_tables_say_what_epsilon_is_of(played, two_mechanisms):
    grid = {"privacy.epsilon": [2.0, "inf"]}
    signals = {2.0: 1.9, math.inf: 2.0}
    study, folder, _ = played(signals, study=two_mechanisms.model_copy(update={"grid": grid}))
    assert conduct(study, Wish(folder.path, "natfl study two", resume=True), Console(quiet=True))
    said = {
        ("heads", "2"): ("add_or_remove_one", "1e-06", "all", "patient"),
        ("shards", "2"): ("replace_one", "1e-05", "1", "patient"),
        ("heads", "inf"): ("", "", "", ""),
        ("shards", "inf"): ("", "", "", ""),
    }
    columns = ("relation", "delta", "colluders", "protected_unit")
    for name in ("costs.csv", "results.csv"):
        with (folder.path / name).open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        found = {(r["arm"], r["epsilon"]): tuple(r[c] for c in columns) for r in rows}
        assert found == said, name


@pytest.mark.parametrize("line", ["nobody,8,0.1", "natural,8,1.5", "natural,8,", "natural,9,0.1"])
def test_an_attack_figure_of_no_setting_is_refused(played, line):
    _, folder, analysis = played({2.0: None, 8.0: None, math.inf: None}, local=None)
    text = f"arm,privacy.epsilon,advantage\n{line}\n"
    (folder.path / "attacks.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        attack_figures(folder.path, analysis.plan.settings)
