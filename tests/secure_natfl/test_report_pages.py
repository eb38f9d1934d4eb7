"""The pages as files: structure, words, colours, escaping, and how they are written."""

import errno
import os
import re
import runpy
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import RunFolderError
from secure_natfl.report.render import report_html, site_html, write_report, write_site_report

SAMPLES = runpy.run_path(str(Path(__file__).with_name("report_samples.py")))
VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert(1)</script>\"&' $x^2$ &lt;/style>"


class Page(HTMLParser):
    """What a page holds: its elements in order, and the text of captions, headings and body."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.parents: list[tuple[str, ...]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.parents.append(tuple(self.open))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.parents.append(tuple(self.open))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, *tags: str) -> list[dict[str, str]]:
        return [attrs for tag, attrs in self.elements if tag in tags]

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def pages() -> dict[str, str]:
    return {
        "sample": report_html(SAMPLES["sample_report"]()),
        "plain": report_html(SAMPLES["plain_report"]()),
        "one class": report_html(SAMPLES["one_class_report"]()),
        "site": site_html(SAMPLES["sample_site"]()),
        "bare site": site_html(SAMPLES["sample_site"](arms={}, curve=[], classes=[])),
    }


PAGES = pages()
each_page = pytest.mark.parametrize("html", PAGES.values(), ids=PAGES.keys())


@each_page
def test_every_element_is_closed_and_landmarks_stand_once(html: str) -> None:
    page = Page(html)
    assert page.open == []
    for landmark in ("header", "nav", "main", "footer", "h1", "title"):
        places = [i for i, (tag, _) in enumerate(page.elements) if tag == landmark]
        outside = [i for i in places if "svg" not in page.parents[i]]
        assert len(outside) == 1, landmark
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("a")[0] == {"class": "skip", "href": "#main"}


@each_page
def test_headings_never_skip_a_level(html: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page(html).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


@each_page
def test_ids_are_unique_and_every_reference_has_its_target(html: str) -> None:
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = [attrs["href"].removeprefix("#") for attrs in page.all("a", "use")]
    for _, attrs in page.elements:
        wanted += attrs.get("aria-labelledby", "").split()
        wanted += re.findall(r"url\(#([^)]+)\)", attrs.get("clip-path", ""))
    assert set(wanted) <= set(ids)


@each_page
def test_every_table_has_caption_and_scoped_headers_in_a_scrolling_box(html: str) -> None:
    page = Page(html)
    tables = html.count("<table")
    assert tables
    assert len(page.all("caption")) == tables
    for attrs in page.all("th"):
        assert attrs.get("scope") in {"col", "row", "rowgroup"}
    boxes = [attrs for attrs in page.all("div") if attrs.get("class") == "scroll"]
    assert len(boxes) == tables
    assert all(box["tabindex"] == "0" and box["aria-labelledby"] for box in boxes)


@each_page
def test_every_figure_has_its_caption_title_description_and_data(html: str) -> None:
    page = Page(html)
    drawings = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert all(len(attrs["aria-labelledby"].split()) == 2 for attrs in drawings)
    assert html.count("<title id=") == html.count("<desc id=") == len(drawings)
    assert html.count("<figcaption>") == html.count("<figure")
    plates = len(re.findall('<figure id="figure-(?!proxy)', html))
    assert html.count("<summary>Figure data</summary>") == plates
    assert all(attrs.get("alt") for attrs in page.all("img"))


@each_page
def test_nothing_is_loaded_and_nothing_runs(html: str) -> None:
    page = Page(html)
    assert not page.all("script", "link", "iframe", "object", "base", "form")
    without_images = re.sub('data:image/png;base64,[^"]+', "", html)
    assert not re.search(r"https?:|//[a-z]|@import|xmlns", without_images)
    policy = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    for _, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs)
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))


@each_page
def test_forbidden_words_do_not_occur(html: str) -> None:
    said = Page(html).words()
    assert not re.search("compliant|fully private", said, re.IGNORECASE)
    assert not re.search(r"\bnan\b|\bNone\b|Undefined", said)


@each_page
def test_figures_take_their_colours_from_the_page(html: str) -> None:
    drawings = "".join(re.findall("<svg.*?</svg>", html, re.DOTALL))
    assert "#fa00" not in drawings
    assert not re.search(r"(fill|stroke): #", drawings)
    declared = set(re.findall(r"^\s+--([a-z-]+):", html, re.MULTILINE))
    assert set(re.findall(r"var\(--([a-z-]+)\)", html)) <= declared


def test_hostile_names_stay_text() -> None:
    changes: dict[str, Any] = {
        "name": HOSTILE,
        "command": HOSTILE,
        "environment": {HOSTILE: HOSTILE},
    }
    fields = SAMPLES["report_fields"]()
    changes["clients"] = [
        {**c, "name": HOSTILE, "hospital": HOSTILE, "architecture": HOSTILE}
        for c in fields["clients"]
    ]
    changes["parts"] = {HOSTILE: True}
    changes["central"] = {**fields["central"], "scores": {HOSTILE: SAMPLES["scores"](0.7)}}
    changes["curves"] = [{"arm": HOSTILE, "hospital": HOSTILE, "round": 1, "auroc": 0.6}]
    changes["losses"] = [{"model": HOSTILE, "step": 1, "loss": 0.6}]
    changes["wire"] = {**fields["wire"], "model_fp32_bytes": {HOSTILE: 5}}
    page = Page(report_html(SAMPLES["sample_report"](**changes)))
    assert not page.all("script")
    assert page.open == []
    assert " ".join(HOSTILE.split()) in page.words()


def test_summary_says_what_leaves_what_epsilon_is_and_what_is_simulated() -> None:
    said = Page(PAGES["sample"]).words().replace("\u00a0", " ")
    assert "A hospital's images stay with it." in said
    assert "With 1 other site colluding and none dropping out" in said
    assert "ε = 4.00" in said
    assert "With everyone else colluding, only a site's own noise is left: ε = 9.62." in said
    assert "SIMULATED" in said
    assert "NOT PRIVATE" not in said
    assert "guangzhou-a, guangzhou-b, guangzhou-c know no patients" in said
    assert "Who was left out of a round" in said
    assert "3 its connection ended" in said
    assert "opened, by enough of the key holders together" in said
    assert said.index("What is not protected") < said.index("Results per hospital", 2000)


def test_real_run_is_not_called_simulated() -> None:
    assert "SIMULATED" not in report_html(SAMPLES["sample_report"](simulated=False))


def test_run_without_noise_or_with_a_seed_is_called_not_private() -> None:
    plain = Page(PAGES["plain"]).words()
    assert "NOT PRIVATE: no noise was added" in plain
    assert "the server sees every site's contribution" in plain
    assert "No site and no key holder was left out of a round." in plain
    seeded = Page(report_html(SAMPLES["sample_report"](seeded=True))).words()
    assert "NOT PRIVATE: the randomness was seeded" in seeded
    assert "Does not hold in this run" in seeded
    reason = Page(report_html(SAMPLES["sample_report"](not_private_because=["a test"]))).words()
    assert "NOT PRIVATE: a test." in reason


def test_undefined_scores_read_not_available() -> None:
    said = Page(PAGES["one class"]).words()
    assert "Not defined at hannover." in said
    assert said.count("n/a") > 9


def test_baselines_that_only_a_simulation_has_are_marked() -> None:
    said = Page(PAGES["sample"]).words()
    assert "Pooled data simulation only" in said
    assert "Local only simulation only" not in said


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_marks_stand_out_in_both_themes(theme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", PAGES["sample"], re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[0]))
    if theme == "dark":
        colours |= dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[1]))
    for text in ("ink", "muted", "link", "warn-ink"):
        for ground in ("paper", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["warn-ink"], colours["warn-paper"]) >= 4.5
    for mark in ("central", "personalised", "local", "mean", "noise", "pooled"):
        assert contrast(colours[mark], colours["paper"]) >= 4.5, mark


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two sRGB colours."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_files_are_written_and_replaced_whole(tmp_path: Path) -> None:
    report = SAMPLES["sample_report"]()
    page = write_report(report, tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    assert write_report(report, tmp_path / "run") == page
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]
    assert page.read_text("utf-8") == PAGES["sample"]
    read = type(report).model_validate_json((tmp_path / "run" / "report.json").read_bytes())
    assert read == report
    site = write_site_report(SAMPLES["sample_site"](), tmp_path / "run")
    assert site == tmp_path / "run" / "sites" / "nih-a" / "report.html"


def test_folder_that_is_a_file_is_refused_with_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"Not a directory|File exists.*Next: "):
        write_report(SAMPLES["sample_report"](), tmp_path / "run")


def test_full_disk_leaves_the_old_report_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write_report(SAMPLES["sample_report"](), tmp_path)
    before = page.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"No space left on device.*Next: free space"):
        write_report(SAMPLES["plain_report"](), tmp_path)
    assert page.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".hidden", "a" * 65])
def test_site_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    client = {**SAMPLES["clients"]()[0], "name": name}
    with pytest.raises(RunFolderError, match="rename the site"):
        write_site_report(SAMPLES["sample_site"](client=client), tmp_path)
    assert list(tmp_path.iterdir()) == []
