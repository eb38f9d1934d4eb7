"""The command line as a person uses it, in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from secure_natfl.cli import app

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--set", "speed.threads=1")
"""One thread: two are slower beside other work on a machine of two cores."""


TRAINED = ("--set", "privacy.mechanism=dp-sgd", "--set", "privacy.epsilon=1")
TEACHERS = ("--set", "privacy.mechanism=shard-teachers")
TRAINED += ("--set", "privacy.steps=5", "--set", "privacy.rate=0.5")

EACH = """
import json, sys
from secure_natfl.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        print(end.code)
"""


def natfl(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secure_natfl", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Caches and state apart from the user's own."""
    base = tmp_path_factory.mktemp("homes")
    return {"XDG_CACHE_HOME": str(base / "cache"), "XDG_STATE_HOME": str(base / "state")}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, homes):
    folder = tmp_path_factory.mktemp("smoke")
    done = natfl("run", "smoke", "--out", "D", *QUICK, cwd=folder, **homes)
    assert done.returncode == 0, done.stderr
    return folder / "D", done.stdout


def test_run_ends_with_the_path_of_the_report(smoke):
    folder, printed = smoke
    assert printed.rstrip().endswith("Report: D/report.html")
    for name in ("report.html", "report.json", "config.toml", "metrics.parquet"):
        assert (folder / name).stat().st_size > 0, name
    assert not list(folder.rglob("*.part"))


def test_report_says_what_was_promised(smoke):
    report = json.loads((smoke[0] / "report.json").read_text())
    assert report["system"] == "natimg-fl"
    assert (report["aggregation"]["kind"], report["aggregation"]["custody"]) == (
        "ckks",
        "threshold",
    )
    assert report["absent"] == []
    assert len(report["aggregate_sha256"]) == 2
    privacy = report["privacy"]
    assert privacy["mechanism"] == "dp-sgd"
    assert 7.9 < privacy["epsilon"] == privacy["epsilon_isolated"] <= 8.0
    assert privacy["unit"] == "patient"
    assert privacy["relation"] == "add_or_remove_one"
    assert (privacy["t"], privacy["d"]) == (None, None)
    assert 1e-5 <= privacy["delta"] <= 1.01e-5
    assert report["simulated"] is True
    assert report["seeded"] is False
    assert {client["architecture"] for client in report["clients"]} == {
        "test_efficientnet",
        "test_byobnet",
        "test_convnext2",
    }
    assert set(report["baselines"]) == {"local_only", "pooled", "plain_mean", "noise_proxies"}
    assert all(b["simulation_only"] for b in report["baselines"].values())
    assert report["wire"]["fp32_bytes"] == 4 * 300 * 2
    assert 42_000 < report["wire"]["upload_bytes"] < 46_000
    assert 0 < report["seconds"]["protection"] < report["seconds"]["total"]
    assert set(report["central"]["scores"]) == {"children"}


def test_every_site_has_its_own_report(smoke):
    for number in (1, 2, 3):
        site = json.loads((smoke[0] / "sites" / f"children-{number}" / "report.json").read_text())
        assert len(site["ledger_lines"]) == 2
        assert site["ledger_lines"][-1]["spent_epsilon"] == pytest.approx(
            site["ledger"]["spent_epsilon"]
        )


def test_the_folder_of_a_run_is_not_written_over(smoke, homes):
    again = natfl("run", "smoke", "--out", "D", *QUICK, cwd=smoke[0].parent, **homes)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    other = natfl(
        "run",
        "smoke",
        "--out",
        "D",
        "--resume",
        "--set",
        "privacy.epsilon=4",
        cwd=smoke[0].parent,
        **homes,
    )
    assert other.returncode == 2
    assert "another configuration" in other.stderr


def test_resuming_a_finished_run_changes_no_aggregate(smoke, homes):
    before = json.loads((smoke[0] / "report.json").read_text())
    done = natfl("run", "smoke", "--out", "D", "--resume", *QUICK, cwd=smoke[0].parent, **homes)
    assert done.returncode == 0, done.stderr
    after = json.loads((smoke[0] / "report.json").read_text())
    assert after["aggregate_sha256"] == before["aggregate_sha256"]
    assert after["central"] == before["central"]
    assert after["baselines"] == before["baselines"]
    assert [ledger["lines"] for ledger in after["privacy"]["ledger"]] == [2, 2, 2]


def test_init_writes_a_configuration_that_check_accepts(tmp_path, homes):
    assert natfl("init", "mine.toml", cwd=tmp_path, **homes).returncode == 0
    text = (tmp_path / "mine.toml").read_text()
    assert text.count("#") > 20
    done = natfl("check", "mine.toml", "--json", cwd=tmp_path, **homes)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 7.99 < found["epsilon"] <= 8.0
    assert len(found["sites"]) == 6
    assert not (tmp_path / "sites").exists()
    again = natfl("init", "mine.toml", cwd=tmp_path, **homes)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "smok"], "did you mean 'smoke'"),
        (["check", "smoke", "--set", "privacy.epsilom=3"], "did you mean 'epsilon'"),
        (["check", "smoke", "--set", "privacy.epsilon=0"], "privacy.epsilon"),
        (["check", "smoke", "--set", "privacy.delta=0.5"], "not below 1/"),
        (["check", "smoke", "--set", "models.central=resnet_18"], "timm knows no such"),
        (["check", "smoke", "--set", "proxies.per_round=301"], "lower per_round to 300"),
        (["check", "smoke", *TEACHERS, "--set", "privacy.colluders=3"], "participants"),
        (["run", "smoke", "--resume"], "--out"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, says, tmp_path, homes):
    done = natfl(*arguments, cwd=tmp_path, **homes)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_guarantee_that_cannot_be_given_is_refused_with_what_would_work(tmp_path, homes):
    """Eight commands, one after another in one process: most of each is loading."""
    preset = (ROOT / "secure_natfl" / "presets" / "smoke.toml").read_text()
    # 30 images at three sites: four training patients at one of them.
    (tmp_path / "few.toml").write_text(preset.replace("images = 360", "images = 30"))
    smoke = ("check", "smoke")
    refused = [
        ([*smoke, "--set", "ledger.budget_epsilon=2"], "a budget of ε = 8.000"),
        ([*smoke, *TRAINED, "--set", "ledger.budget_epsilon=0.5"], "releases would fit"),
        ([*smoke, *TRAINED, "--set", "privacy.rate=1.5"], "less than or equal to 1"),
        ([*smoke, *TRAINED, "--set", "privacy.epsilon=-1"], "greater than 0"),
        ([*smoke, *TRAINED, "--set", "privacy.delta=0.02"], "set it to at most 0.002"),
        ([*smoke, *TRAINED, "--set", "privacy.rate=0.01"], "set the rate to 0.0"),
        ([*smoke, "--set", "privacy.mechanism=client-gaussian"], "privacy.override = true"),
        (["check", "few.toml", *TRAINED], "(6 are asked for at least)"),
    ]
    played = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps([arguments for arguments, _ in refused])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **homes},
        check=True,
    )
    lines = played.stderr.strip().splitlines()
    assert len(lines) == len(refused)
    for line, (arguments, says) in zip(lines, refused, strict=True):
        assert says in line, arguments
        assert line.startswith("error: ")
    assert played.stdout.split() == ["2"] * len(refused)


def test_a_run_that_trains_under_noise_reports_its_guarantee(tmp_path, homes):
    short = ("--set", "system.rounds=1", "--set", "run.baselines=false")
    done = natfl("run", "smoke", "--out", "D", *TRAINED, *short, *QUICK, cwd=tmp_path, **homes)
    assert done.returncode == 0, done.stderr
    privacy = json.loads((tmp_path / "D" / "report.json").read_text())["privacy"]
    assert (privacy["mechanism"], privacy["relation"]) == ("dp-sgd", "add_or_remove_one")
    assert 0.99 < privacy["epsilon"] == privacy["epsilon_isolated"] <= 1.0
    assert privacy["guarantee"]["parameters"]["steps"] == 5
    assert [site["lines"] for site in privacy["ledger"]] == [1, 1, 1]


def test_info_tells_versions_and_presets(tmp_path, homes):
    done = natfl("info", "--json", cwd=tmp_path, **homes)
    found = json.loads(done.stdout)
    assert {"demo", "smoke", "xray-hospitals", "fedavg-smoke"} <= set(found["presets"])
    assert found["secure_natfl"] == "0.1.0"


def test_the_readme_names_every_command_and_option():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if "`natfl " in line]
    commands = typer.main.get_command(app).commands
    for name, command in commands.items():
        (row,) = [row for row in rows if row.startswith(f"| `natfl {name}")]
        for option in command.params:
            for spelling in (o for o in option.opts if o.startswith("--")):
                assert spelling in row, f"{name} {spelling}"
    assert len(commands) == len([row for row in rows if row.startswith("| `natfl ")])
