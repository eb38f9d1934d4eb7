"""`natfl attack` on a finished run: what it reads, refuses, draws, writes, and says."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from attacks.rows import Budget
from attacks.threat import ThreatError
from attacks.verdicts import Verdict
from protocols.errors import ConfigError, RunFolderError
from protocols.messages import Contribution, OpeningRequest
from protocols.transcript import Transcript
from secure_natfl.cli import app
from secure_natfl.execute import execute as play_run
from secure_natfl.leakage.answer_lab import RunAnswers
from secure_natfl.leakage.attacked import AttackedRun
from secure_natfl.leakage.execute import Wish, execute
from secure_natfl.leakage.poisoning_lab import RunSumLab
from secure_natfl.leakage.record import AttackReport
from secure_natfl.leakage.rows import all_rows
from secure_natfl.leakage.table import admit
from secure_natfl.progress import Stages
from secure_natfl.study.file import read_study
from secure_natfl.study.grid import plan_of
from secure_natfl.study.page import attack_figures

POISONED = ("unbounded", "clipped", "protected")


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A run of the small federation, played whole."""
    path = tmp_path_factory.mktemp("run") / "D"
    config = tiny("run.baselines=false", "speed.threads=1")
    play_run(config, path, "natfl run tiny", quiet())
    return path


@pytest.fixture(scope="module")
def attacked(folder):
    return AttackedRun.open(folder, Stages(quiet()))


@pytest.fixture(scope="module")
def report(folder):
    wish = Wish.read("C2,C2b,G1", "fast", None, 60.0)
    return execute(folder, wish, "natfl attack D --attacks C2,C2b,G1", quiet())


def test_the_report_is_written_with_criteria_controls_and_what_was_not_tested(folder, report):
    written = AttackReport.model_validate_json((folder / "attacks/attacks.json").read_text())
    assert written == report
    assert [row.criteria.id for row in written.rows] == ["C2", "C2b", "G1"]
    for row in written.rows:
        assert row.arms[0].verdict is Verdict.CONTROL, row.criteria.id
        assert row.criteria.margin > 0
    assert {"C1", "L1", "G3"} <= {one.what.split(":")[0] for one in written.not_tested}
    assert written.transcript_sha256 == Transcript(folder / "transcript").head
    stated = json.loads((folder / "attacks/criteria.json").read_text())
    assert [one["id"] for one in stated] == ["C2", "C2b", "G1"]


def test_one_time_keys_give_nothing_away_and_a_shared_key_everything(report):
    """Keys are fresh, so that a verdict is wrong once in 40 times; the share says it all.

    0.05 is five standard deviations of a share of 2,048 coefficients.
    """
    by_arm = {(row.criteria.id, arm.arm): arm for row in report.rows for arm in row.arms}
    assert by_arm["C2", "slots"].score == by_arm["C2b", "tampered"].score == 1
    for row in ("C2", "C2b"):
        assert by_arm[row, "protected"].score == pytest.approx(1 / 3, abs=0.05)


def test_pages_show_verdicts_and_pictures_and_load_nothing(folder, report):
    page = (folder / "attacks" / "attacks.html").read_text()
    assert page.count('alt="Reconstruction') >= 8
    assert "PRIVATE IMAGES" in page
    assert (folder / "attacks").stat().st_mode & 0o077 == 0
    section = (folder / "report.html").read_text()
    assert 'id="attacks"' in section
    assert 'alt="Reconstruction' not in section
    for text in (page, section):
        assert "NO LEAK DETECTED" in text
        assert not re.search(r"https?:|@import", re.sub(r'src="data:[^"]*"', "", text))


def test_a_second_call_plays_nothing_again(folder, report):
    wish = Wish.read("C2,C2b,G1", "fast", None, 1e-6)
    again = execute(folder, wish, "natfl attack D", quiet())
    assert [row.arms for row in again.rows] == [row.arms for row in report.rows]


def test_a_later_call_for_another_row_keeps_what_was_found(folder, report, tmp_path):
    """A row stays in the table and in Holm's family; what is left of it is not played."""
    run = copy(folder, tmp_path)
    shutil.rmtree(run / "attacks")
    for names in ("C2", "C2b"):
        wish = Wish.read(names, "fast", None, 60.0)
        both = execute(run, wish, f"natfl attack D --attacks {names}", quiet())
    assert [row.criteria.id for row in both.rows] == ["C2", "C2b"]
    assert all(arm.effect is not None for row in both.rows for arm in row.arms)
    left = {one.what.split(":")[0] for one in both.not_tested}
    assert "G1" in left
    assert not {"C2", "C2b"} & left
    page = (run / "attacks" / "attacks.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in page for name in ("C2", "C2b"))


def test_the_command_prints_the_table_for_people_and_for_machines(folder, report, tmp_path):
    run = copy(folder, tmp_path)
    shown = CliRunner().invoke(app, ["attack", str(run), "--attacks", "C2"])
    assert shown.exit_code == 0
    assert re.search(r"As this run protects itself: \d leak, \d without", shown.stdout)
    assert shown.stdout.rstrip().endswith("attacks/attacks.html")
    printed = CliRunner().invoke(app, ["attack", str(run), "--attacks", "C2", "--json"])
    found = AttackReport.model_validate_json(printed.stdout)
    both = [[(arm.arm, arm.effect) for arm in one.rows[0].arms] for one in (found, report)]
    assert both[0] == both[1]
    refused = CliRunner().invoke(app, ["attack", str(run), "--attacks", "C9"])
    assert isinstance(refused.exception, ConfigError)


def test_every_family_is_there(attacked):
    rows, without = all_rows(attacked, "full")
    names = {row.id for row in rows}
    assert {"G1", "G2", "G3", "G4", "G5a", "G5b", "L1", "L2", "L3", "L4", "L5", "L6"} <= names
    assert {"A1", "A9", "A12", "C1", "C2", "C2b", "C3", "P1", "P2"} <= names
    assert max(Counter(row.id for row in rows).values()) == 1
    assert without == ()


def test_the_guide_puts_an_attack_on_the_front_of_a_study(folder, tmp_path):
    """The guide's own lines make, of what the attack wrote, a figure that a study takes up."""
    run = copy(folder, tmp_path)
    budget = Budget(targets=8, seconds=60, restarts=1, iterations=1)
    found = execute(run, Wish(("L2",), "fast", budget, None), "natfl attack copy", quiet())
    guide = Path(__file__).resolve().parents[2] / "docs/guides/studies.md"
    shell, script = (
        guide.read_text("utf-8").partition("### Attack advantage")[2].split("```")[at]
        for at in (1, 3)
    )
    (tmp_path / "line.py").write_text(script.removeprefix("python\n"), "utf-8")
    said = re.search(r"echo (\S+) >", shell)[1]
    line = subprocess.run(
        [sys.executable, "line.py", "copy", "natural", "8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "attacks.csv").write_text(f"{said}\n{line.stdout}", "utf-8")
    (area,) = (one.score for one in found.rows[0].arms if one.arm == "protected")
    assert 0 < area < 1
    settings = plan_of(read_study("smoke-study")).settings
    expected = max(0.0, 2 * area - 1)
    assert attack_figures(tmp_path, settings) == {"natural, ε = 8": pytest.approx(expected)}


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_changed_message_is_refused_in_one_line(folder, tmp_path):
    run = copy(folder, tmp_path)
    with Transcript(run / "transcript") as transcript:
        entry = next(one for one in transcript.entries if one.kind == Contribution.kind)
    file = run / "transcript" / "messages" / entry.sha256
    file.write_bytes(file.read_bytes()[:-70] + bytes(70))
    with pytest.raises(RunFolderError, match="bytes were changed") as refused:
        AttackedRun.open(run, Stages(quiet()))
    assert "\n" not in str(refused.value)


def test_a_central_model_that_is_not_the_runs_is_refused(folder, tmp_path):
    """Other weights of the same shapes, from which later rounds' heads would be taught."""
    run = copy(folder, tmp_path)
    file = run / "state" / "round-000" / "central.safetensors"
    save_file({name: one + 1 for name, one in load_file(file).items()}, file)
    with pytest.raises(RunFolderError, match="a finished step was changed") as refused:
        _ = RunAnswers(AttackedRun.open(run, Stages(quiet())), 2).speakers
    assert "\n" not in str(refused.value)


def test_a_transcript_that_was_written_anew_is_refused(folder, tmp_path):
    """Chain and hashes are right; the signature is not."""
    run = copy(folder, tmp_path)
    shutil.rmtree(run / "transcript")
    with Transcript(folder / "transcript") as old, Transcript(run / "transcript") as new:
        for entry in old.entries:
            blob = old.read(entry)
            if entry.kind == Contribution.kind:
                blob = blob[:-100] + bytes(36) + blob[-64:]
            new.append(blob, entry.sender, entry.receivers)
    with pytest.raises(RunFolderError, match="transcript was tampered with"):
        AttackedRun.open(run, Stages(quiet()))


def test_what_is_no_finished_run_is_refused(folder, tmp_path):
    with pytest.raises(RunFolderError, match="no finished run is here"):
        AttackedRun.open(tmp_path, Stages(quiet()))
    run = copy(folder, tmp_path)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("rounds = 2", "rounds = 1"))
    with pytest.raises(RunFolderError, match=r"config\.toml is not what this run was started with"):
        AttackedRun.open(run, Stages(quiet()))


def test_images_of_another_run_are_refused(folder):
    """Phantoms of another number of patients: the signed terms are not theirs."""
    run = AttackedRun.open(folder, Stages(quiet()))
    table = run.config.data.hospitals[0].model_copy(update={"images": 90})
    data = run.config.data.model_copy(update={"hospitals": [table]})
    other = replace(run, config=run.config.model_copy(update={"data": data}))
    with pytest.raises(RunFolderError, match="images are not those of this run"):
        _ = other.terms


def test_a_row_is_refused_where_the_run_shows_less_than_it_needs(attacked, tmp_path):
    """A transcript that ends before the first request to open a sum."""
    rows, _ = all_rows(attacked, "fast")
    with Transcript(tmp_path / "transcript") as cut:
        for entry in attacked.transcript.entries:
            if entry.kind == OpeningRequest.kind:
                break
            cut.append(attacked.transcript.read(entry), entry.sender, entry.receivers)
        early = replace(attacked, transcript=cut)
        with pytest.raises(ThreatError, match=r"C2: attack refused .*weighted sums"):
            admit(early, rows, asked=True)
        admitted, left = admit(early, rows, asked=False)
    assert {"C2", "L1", "A1"} <= {one.what.split(":")[0] for one in left}
    assert {"G1", "C1"} <= {row.id for row in admitted}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("", "slow", None, None), "no such tier"),
        (("", "fast", None, 0.0), "0 seconds"),
        (("", "fast", "missing", None), "no such folder"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(words, says, tmp_path):
    attacks, tier, truth, seconds = words
    with pytest.raises(ConfigError, match=says):
        Wish.read(attacks, tier, truth and tmp_path / truth, seconds)


@pytest.fixture(scope="module")
def lab(attacked):
    return RunAnswers(attacked, 1)


def test_attacked_sites_and_shadows_share_no_patient(attacked, lab):
    pool = lab.pool
    names = [
        f"{site.hospital}/{name}"
        for site in attacked.federation.sites
        for name in (*site.train_patients, *site.test_patients)
    ]
    halves = [{names[row] for row in pool.half(shadow=shadow)} for shadow in (True, False)]
    assert not halves[0] & halves[1]
    assert min(map(len, halves)) > 20
    asked = [names[row] for row in pool.patients(shadow=False)]
    assert sorted(asked) == sorted(halves[1])


def test_sites_come_of_each_hospital_that_has_enough_and_else_of_all(lab):
    """300 records in each half: 200 of one hospital, 80 of another, 20 of a third."""
    hospital = np.tile(np.repeat([0, 1, 2], [200, 80, 20]), 2)
    count = len(hospital)
    pool = replace(
        lab.pool,
        features=torch.zeros(count, 1),
        targets=torch.eye(2).repeat(count // 2, 1),
        known=torch.ones(count, 2),
        hospital=hospital,
        hospitals=("a", "b", "c"),
        patient=np.arange(count),
        shadow=np.arange(count) < count // 2,
        multi_label=False,
    )
    random = np.random.default_rng(0)
    sites = [pool.site(100, random, shadow=False) for _ in range(200)]
    origins = Counter(pool.origin(rows) for rows in sites)
    assert set(origins) == {0, 1, 3}
    assert min(origins.values()) > 40  # 67 each: 4 standard deviations
    assert {len(rows) <= 53 for rows in sites if pool.origin(rows) == 1} == {True}
    assert min(map(len, sites)) >= 50


def test_arms_show_the_same_sites_under_the_noise_that_knowledge_names(lab):
    """Noise of 6 sites × 80 numbers: its deviation is known to 5 %, one in 10^4."""
    seen = {
        arm: lab.sites(arm, 6, np.random.default_rng(0), shadow=False)
        for arm in ("clear", "clipped", "noised", "protected")
    }
    shares = [truth.shares for _, truth in seen.values()]
    assert all((one == shares[0]).all() for one in shares)
    assert lab.knowledge("clear").noise == lab.knowledge("clipped").noise == 0
    clipped = seen["clipped"][0].answers
    noise = (seen["noised"][0].answers - clipped).std()
    assert noise == pytest.approx(lab.knowledge("noised").noise, rel=0.15)
    neighbours = (clipped + np.roll(clipped, 1, 0)) / 2
    assert lab.arms.honest == 2
    left = (seen["protected"][0].answers - neighbours).std()
    assert left == pytest.approx(lab.knowledge("protected").noise, rel=0.15)
    norms = np.linalg.norm(clipped.reshape(6, -1), axis=1)
    assert norms.max() <= lab.knowledge("clipped").clip * 1.001


def test_a_feigned_dropout_gives_the_victims_answers_and_the_run_refuses_it(lab):
    sums = RunSumLab(lab)
    for one in sums.incidents("feigned dropout", 4, np.random.default_rng(0)):
        difference = one.published.totals[0] - one.published.totals[1]
        assert difference == pytest.approx(one.answers)
    for one in sums.incidents("protected", 4, np.random.default_rng(0)):
        assert one.published.weights.tolist() == [[1, 1, 1], [0, 0, 1]]
        assert one.published.noise > 0


def test_a_malicious_client_sends_what_its_arm_lets_through(lab):
    """Without a bound all of a shout; within the joint clip at most that; in between the range."""
    sums = RunSumLab(lab)
    random = np.random.default_rng(0)
    said = lab.drawn(3, random, shadow=False).rounds[0]
    shout = {arm: sums._malicious(arm, said, lambda one: -1e6 * one) for arm in POISONED}
    assert shout["unbounded"] == pytest.approx(-1e6 * said.clear[-1])
    clip, mechanism = lab.knowledge("clipped").clip, lab.arms.mechanism
    assert np.linalg.norm(shout["clipped"]) == pytest.approx(clip, rel=0.01)
    most = mechanism.limit * mechanism.step / mechanism.shards
    assert np.abs(shout["protected"]).max() == pytest.approx(most)
    accuracies = [
        sums.central_accuracy("clipped", lambda one: -one, 1, shadow=False) for _ in range(2)
    ]
    assert accuracies[0] == accuracies[1]
    assert 0 <= accuracies[0] <= 1


def test_every_trial_of_poisoning_has_sites_of_its_own(lab):
    """Two seeds, and the attacker's rehearsal; another play of one seed has its sites again."""
    one, other, own = (
        RunSumLab(lab).said(seed, shadow=shadow).clear
        for seed, shadow in ((1, False), (2, False), (1, True))
    )
    assert np.abs(one - other).max() > 0.01
    assert np.abs(one - own).max() > 0.01
    assert (RunSumLab(lab).said(1, shadow=False).clear == one).all()
