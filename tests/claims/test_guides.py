"""Guides are followed word by word: what they tell to write is accepted, what they name exists."""

import csv
import io
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from typer.main import get_group
from typer.testing import CliRunner

from secure_natfl.check import check
from secure_natfl.cli import app
from secure_natfl.toml_config import load

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "guides"
GUIDES = sorted(FOLDER.glob("*.md"))


def block(guide: str, language: str, first: str = "") -> str:
    """The guide's first block of a language that begins with these words."""
    text = (FOLDER / guide).read_text("utf-8")
    return first + text.partition(f"```{language}\n{first}")[2].partition("```")[0]


def test_own_images_are_checked_as_the_guide_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder and a manifest of the guide's form, and its configuration to the letter."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    header, *rows = csv.reader(io.StringIO(block("own-data.md", "csv")))
    assert (header, len(rows)) == (["file", "label", "patient"], 3)
    random = np.random.default_rng(3)
    (tmp_path / "hospital" / "images").mkdir(parents=True)
    with (tmp_path / "hospital" / "manifest.csv").open("w", newline="") as file:
        written = csv.writer(file)
        written.writerow(header)
        for place in range(120):
            name = f"images/{place:04}.png"
            noise = random.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "hospital" / name)
            written.writerow([name, rows[place % 2][1], f"p-{place // 2}"])
    (tmp_path / "mine.toml").write_text(block("own-data.md", "toml", "[run]"), "utf-8")
    monkeypatch.chdir(tmp_path)
    found = check(load("mine.toml", ["proxies.images=60", "proxies.per_round=30"]))
    assert len(found.sites) == 3
    assert {site.unit for site in found.sites} == {"patient"}
    assert all(float(site.epsilon) <= 8.01 for site in found.sites)


def test_the_meaning_of_epsilon_is_computed() -> None:
    text = (FOLDER / "choosing-epsilon.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\d.]+) \| (0\.\d+) \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for epsilon, stated in rows:
        exact = 1 / (1 + math.exp(-float(epsilon)))
        assert float(stated) == pytest.approx(exact, abs=0.5 * 10 ** (2 - len(stated)))


def test_accuracies_are_those_of_the_results() -> None:
    results = (ROOT / "docs" / "results" / "privacy-utility.md").read_text("utf-8")
    measured = [
        re.findall(r"\| (0\.\d{3}) \(", row)
        for row in re.findall(r"^\| ours-dp-sgd (\|.+)$", results, re.MULTILINE)
    ][:2]
    guide = (FOLDER / "choosing-epsilon.md").read_text("utf-8")
    stated = [
        re.findall(r"0\.\d{3}", row)
        for row in re.findall(r"^\| (?:guangzhou|nih) \|(.+)$", guide, re.MULTILINE)
    ]
    assert stated == [[*row[:5], row[6]] for row in measured]


def test_the_picture_of_the_data_flow_is_one_drawing_that_loads_nothing() -> None:
    text = (FOLDER / "data-flow.svg").read_text("utf-8")
    drawing = ElementTree.fromstring(text)  # noqa: S314 (our own file)
    names = {element.tag.rpartition("}")[2] for element in drawing.iter()}
    assert {"title", "desc"} <= names
    assert not names & {"script", "image", "use", "foreignObject", "style"}
    assert re.findall(r"https?://[\w./]+", text) == ["http://www.w3.org/2000/svg"]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_links_lead_somewhere_and_commands_exist(guide: Path) -> None:
    text = guide.read_text("utf-8")
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    assert [link for link in links if not (guide.parent / link).exists()] == []
    known = set(get_group(app).commands)
    assert set(re.findall(r"natfl ([a-z]+)", text)) <= known
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"docs/guides/{guide.name}" in readme
    # tests/deploy follows the commands below `natfl deploy`.
    for name in sorted(known & set(re.findall(r"natfl ([a-z]+) [^\n`]*--", text)) - {"deploy"}):
        options = set(re.findall(rf"natfl {name} [^\n`]*?(--[a-z-]+)", text))
        shown = CliRunner().invoke(app, [name, "--help"], terminal_width=200).output
        assert [option for option in sorted(options) if option not in shown] == []
