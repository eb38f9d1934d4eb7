"""The pages in a real browser: no message, no request, no sideways scrolling on a phone, paper."""

import html
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from secure_natfl.report.render import report_html, site_html

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser on this machine: not run")

SAMPLES = runpy.run_path(str(Path(__file__).with_name("test_report_model.py")))
FRAME = """<!DOCTYPE html><meta charset="utf-8"><body><iframe width="{width}" height="800"
style="border:0" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  page.querySelectorAll("details").forEach(part => part.open = true);
  document.title = "width " + page.documentElement.scrollWidth;
}});</script>"""


def browse(folder: Path, text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    page = folder / "page.html"
    page.write_text(text, "utf-8")
    command = [str(BROWSER), *QUIET, f"--user-data-dir={folder / 'profile'}", *flags]
    return subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )


def pages() -> dict[str, str]:
    return {
        "sample": report_html(SAMPLES["sample_report"]()),
        "plain": report_html(SAMPLES["plain_report"]()),
        "site": site_html(SAMPLES["sample_site"]()),
    }


@pytest.mark.parametrize("name", ["sample", "plain", "site"])
def test_phone_of_360_pixels_never_scrolls_sideways(tmp_path: Path, name: str) -> None:
    framed = FRAME.format(width=360, page=html.escape(pages()[name], quote=True))
    shown = browse(tmp_path, framed, "--dump-dom")
    width = re.search(r"<title>width (\d+)</title>", shown.stdout)
    assert width is not None, shown.stderr
    assert int(width[1]) <= 360


def test_page_is_drawn_without_a_message_on_the_console(tmp_path: Path) -> None:
    shown = browse(tmp_path, pages()["sample"], "--dump-dom")
    assert "Environment and reproduction" in shown.stdout
    assert "CONSOLE" not in shown.stderr


def test_console_messages_would_be_seen(tmp_path: Path) -> None:
    page = pages()["plain"].replace("</main>", '<img src="https://example.org/a.png"></main>')
    assert "Content Security Policy" in browse(tmp_path, page, "--dump-dom").stderr


def test_page_prints(tmp_path: Path) -> None:
    paper = tmp_path / "page.pdf"
    browse(tmp_path, pages()["sample"], f"--print-to-pdf={paper}")
    sheets = len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))
    assert 3 <= sheets <= 16
