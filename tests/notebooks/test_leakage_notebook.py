"""The leakage notebook, executed for real, and its two files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binom

HERE = Path(__file__).parents[2] / "notebooks"
SCRIPT, NOTEBOOK = HERE / "leakage_attack.py", HERE / "leakage_attack.ipynb"
PICTURES = {"gradients", "shares", "keys"}
# The criteria of rows G4 and L1 (attacks/gradients/table.py, attacks/answers/table.py).
IMAGE_CONTROL, IMAGE_MARGIN = 0.2, 0.05
SHARE_CONTROL, SHARE_MARGIN = 0.25, 0.1
PLAY = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['figures']))"


def surroundings(folder):
    """The tested form, with caches and pictures of its own."""
    return os.environ | {
        "NATFL_FAST": "1",
        "NATFL_RUN": "",
        "NATFL_FIGURES": str(folder / "figures"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(folder),
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE.parent),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def figures(folder):
    """What the source prints at its end, played as a plain script."""
    command = [sys.executable, "-c", PLAY, str(SCRIPT)]
    played = subprocess.run(
        command, env=surroundings(folder), cwd=folder, capture_output=True, text=True, check=False
    )
    assert played.returncode == 0, played.stderr
    return json.loads(played.stdout.splitlines()[-1])


def test_undefended_gradients_give_the_image_and_defended_ones_do_not(figures):
    assert figures["SSIM gain of transformer, undefended"] > IMAGE_CONTROL
    assert figures["SSIM gain of image, undefended"] > IMAGE_CONTROL
    assert figures["G4 gain, undefended"] > IMAGE_CONTROL
    for arm in ("dp-sgd", "nothing shown"):
        assert figures[f"G4 gain, {arm}"] <= IMAGE_MARGIN, arm
    for scene in ("transformer", "image"):
        assert figures[f"SSIM gain of {scene}, dp-sgd"] <= IMAGE_MARGIN, scene


def test_clear_answers_give_the_case_mix_and_a_small_budget_stops_it(figures):
    assert figures["L1 saved, clear answers"] > SHARE_CONTROL
    assert figures["L1 saved, coalition, ε = 0.1"] <= SHARE_MARGIN


def test_slots_give_the_key_and_an_encrypted_image_and_exact_integers_neither(figures):
    assert figures["C2 key coefficients, slots"] == 8192
    assert figures["SSIM from an encrypted upload, slots"] > 0.99
    assert figures["C2 key coefficients, slots, rounded"] < binom.isf(1e-6, 8192, 1 / 3)
    assert figures["C2 share of key, exact integers"] < binom.isf(1e-6, 2048, 1 / 3) / 2048
    assert figures["C2 key believed, exact integers"] < 0.01


def test_every_figure_is_drawn(figures, folder):
    drawn = {file.stem: file.read_bytes() for file in (folder / "figures").iterdir()}
    assert set(drawn) == PICTURES
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())


def cells_of(script):
    """(kind, text) of each cell of a file in percent format."""
    for cell in script.split("\n# %%")[1:]:
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            lines = body.strip().splitlines()
            yield "markdown", "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
        else:
            yield "code", body.strip()


def test_both_files_hold_the_same_cells_and_no_outputs():
    """After a change of the source: jupytext --to ipynb notebooks/leakage_attack.py."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    held = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    assert held == list(cells_of(SCRIPT.read_text("utf-8")))
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) <= 15
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.nightly
def test_of_a_run_in_the_clear_it_claims_neither_key_nor_epsilon(folder):
    """No key of the run, which has none; no panel at another ε; no noise of the run."""
    run = folder / "plain"
    options = ("aggregation.kind=plain", "privacy.mechanism=none", "run.baselines=false")
    words = [part for one in options for part in ("--set", one)]
    command = [sys.executable, "-m", "secure_natfl", "run", "smoke", *words, "--out", str(run)]
    around = surroundings(folder) | {"NATFL_RUN": str(run)}
    subprocess.run(command, env=around, cwd=folder, capture_output=True, check=True)
    played = subprocess.run(
        [sys.executable, "-c", PLAY, str(SCRIPT)],
        env=around, cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures = json.loads(played.stdout.splitlines()[-1])
    assert not [name for name in figures if "exact integers" in name]
    assert not [name for name in figures if re.search(r"ε = [0-9]", name)]
    assert "plain/none has no sum of exact integers under a key" in played.stdout


@pytest.mark.nightly
def test_the_notebook_runs_in_a_kernel(folder, monkeypatch):
    client = pytest.importorskip("nbclient", reason="needs the extra [notebook]")
    pytest.importorskip("ipykernel", reason="needs the extra [notebook]")
    import nbformat

    for name, value in surroundings(folder).items():
        monkeypatch.setenv(name, value)
    played = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(played, timeout=600, kernel_name="python3").execute()
    outputs = [one for cell in played.cells for one in cell.get("outputs", ())]
    assert sum("image/png" in one.get("data", {}) for one in outputs) == len(PICTURES)
