"""Every page in a real browser: nobody is shut out, nothing is fetched, phone and paper work."""

import io
import math
import runpy
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from secure_natfl.audit.conduct import audit
from secure_natfl.config import Config
from secure_natfl.execute import execute
from secure_natfl.leakage import execute as leakage
from secure_natfl.report.render import report_html, site_html
from secure_natfl.study.conduct import Wish, conduct
from tests.secure_natfl.chromium import BROWSER, Chromium, chromium
from tests.secure_natfl.test_study_page import played as played

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: not run")

SAMPLES = runpy.run_path(str(Path(__file__).with_name("report_samples.py")))
NAMES = ("sample", "sample site", "run", "attacks", "evidence")
OPEN_ALL = "document.querySelectorAll('details').forEach(part => part.open = true)"
RULES = """axe.run(document, {resultTypes: ["violations"]}).then(found => found.violations.map(
  rule => `${rule.id}: ${rule.nodes.map(node => node.target).join(", ")}`))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of samples, and every page of a run that was played, attacked and audited."""
    run = tmp_path_factory.mktemp("seen") / "D"
    quiet = Console(file=io.StringIO())
    execute(
        tiny("run.baselines=false", "system.rounds=1", "speed.threads=1"),
        run,
        "natfl run tiny",
        quiet,
    )
    wish = leakage.Wish.read("C2,G1", "fast", None, 60.0)
    leakage.execute(run, wish, "natfl attack D", quiet)
    assert audit(run).page == run / "evidence" / "evidence.html"
    samples = {
        "sample": report_html(SAMPLES["sample_report"]()),
        "sample site": site_html(SAMPLES["sample_site"]()),
    }
    return {name: _written(run.parent / f"{name}.html", text) for name, text in samples.items()} | {
        "run": run / "report.html",
        "attacks": run / "attacks" / "attacks.html",
        "evidence": run / "evidence" / "evidence.html",
    }


@pytest.fixture(scope="module")
def axe() -> str:
    """The accessibility rules of axe-core, in the language of browsers."""
    return resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")


def _written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def violations(tab: Chromium, axe: str) -> Any:
    """What axe-core holds against the open page with all its details unfolded."""
    tab.run(OPEN_ALL)
    tab.run(f"{axe}; 0")
    return tab.run(RULES)


def look(tab: Chromium, page: Path, axe: str) -> None:
    """Light on a desk and dark on a phone: accessible, silent, alone, never scrolling sideways."""
    for width, theme in ((1280, "light"), (360, "dark")):
        tab.open(page, width=width, theme=theme)
        assert violations(tab, axe) == []
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.messages == []
        assert [url for url in tab.requests if not url.startswith("data:")] == [page.as_uri()]


@pytest.mark.parametrize("name", NAMES)
def test_page_shuts_nobody_out_and_asks_for_nothing(
    tab: Chromium, pages: dict[str, Path], axe: str, name: str
) -> None:
    look(tab, pages[name], axe)


def test_study_page_shuts_nobody_out_and_asks_for_nothing(
    tab: Chromium, axe: str, played: Callable[..., Any]
) -> None:
    study, folder, _ = played({2.0: 0.5, 8.0: 1.0, math.inf: 1.5})
    wish = Wish(folder.path, "natfl study smoke-study", resume=True)
    look(tab, conduct(study, wish, Console(quiet=True)).page, axe)


FAULTS = {
    "color-contrast": ("--muted: #565d66", "--muted: #b5bcc4"),
    "landmark-one-main": ('<main id="main" tabindex="-1">', '<div id="main">'),
    "region": ("<nav aria-label", "<p>outside</p><nav aria-label"),
    "image-alt": ("<footer>", '<footer><img src="data:,">'),
    "link-name": ("</footer>", '<a href="#main"></a></footer>'),
    "html-has-lang": ('<html lang="en">', "<html>"),
}


def test_each_kind_of_violation_would_be_seen(
    tab: Chromium, pages: dict[str, Path], axe: str, tmp_path: Path
) -> None:
    text = pages["sample site"].read_text("utf-8")
    for old, new in FAULTS.values():
        assert old in text
        text = text.replace(old, new, 1)
    tab.open(_written(tmp_path / "page.html", text))
    assert {found.partition(":")[0] for found in violations(tab, axe)} >= FAULTS.keys()


def test_messages_requests_and_overflow_would_be_seen(
    tab: Chromium, pages: dict[str, Path], tmp_path: Path
) -> None:
    wide = '<p style="width: 500px">wide</p><img src="https://127.0.0.1:9/a.png" alt=""></main>'
    text = pages["sample site"].read_text("utf-8").replace("</main>", wide)
    tab.open(_written(tmp_path / "page.html", text), width=360)
    assert tab.run("document.documentElement.scrollWidth") > 360
    assert any("Content Security Policy" in message for message in tab.messages)
    free = text.replace("Content-Security-Policy", "X-Nothing")
    tab.open(_written(tmp_path / "free.html", free))
    deadline = time.monotonic() + 10
    while "https://127.0.0.1:9/a.png" not in tab.requests:
        assert time.monotonic() < deadline
        tab.run("0")


@pytest.mark.parametrize("name", ["sample", "attacks", "evidence"])
def test_page_prints(tab: Chromium, pages: dict[str, Path], name: str) -> None:
    """On paper the details are unfolded, nothing is cut off at the right, and ink is dark."""
    tab.open(pages[name], width=672, theme="dark", paper=True)
    assert tab.run("document.documentElement.scrollWidth") <= 672
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.picture("pdf").startswith(b"%PDF-")
