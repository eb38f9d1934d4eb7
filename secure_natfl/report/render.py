"""Writes `report.json` and `report.html` into a run folder, and each site's report beside them.

The page is one file without scripts or addresses: its content policy forbids every request.
"""

import os
import re
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from protocols.errors import RunFolderError
from secure_natfl.leakage.record import AttackReport
from secure_natfl.report import (
    attack_words,
    curves,
    figures,
    formats,
    holding_figures,
    site_figures,
    words,
)
from secure_natfl.report.model import Report
from secure_natfl.report.site_model import SiteReport

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def write_report(report: Report, folder: Path, attacks: AttackReport | None = None) -> Path:
    """Write `folder/report.json` and `folder/report.html`; return the path of the latter.

    The run calls it once, after its last round; `natfl attack` does again, with its `attacks`. Each
    file appears whole or not at all, and an earlier report is replaced. Raises `RunFolderError`
    where the folder cannot be written.
    """
    page = report_html(report, attacks)
    _write(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    return _write(folder / "report.html", page)


def write_site_report(site: SiteReport, folder: Path) -> Path:
    """Write `folder/sites/<name>/report.json` and `.html`; return the path of the latter.

    `folder` is the run folder. Raises `RunFolderError` where it cannot be written or where the
    site's name is no plain folder name.
    """
    name = site.client.name
    if FOLDER_NAME.fullmatch(name) is None:
        raise RunFolderError(
            "the site's name cannot name its folder",
            where=f"site {name!r}",
            why="its report is written to sites/<name>/",
            fix="rename the site, using letters, digits, '.', '-' and '_'",
        )
    page = site_html(site)
    _write(folder / "sites" / name / "report.json", site.model_dump_json(indent=2) + "\n")
    return _write(folder / "sites" / name / "report.html", page)


def report_html(report: Report, attacks: AttackReport | None = None) -> str:
    """The consortium's report as one self-contained page."""
    return (
        pages()
        .get_template("report.html.j2")
        .render(
            report=report,
            warnings=words.why_not_private(report, report.privacy.epsilon),
            dots=figures.hospital_dots(report),
            curves=curves.learning_curves(report),
            losses=curves.loss_curves(report),
            wire=figures.wire_dots(report),
            holdings=holding_figures.who_holds_what(report),
            left_out=holding_figures.left_out(report),
            rows_of=figures.rows_of,
            attacks=attacks,
            attack_words=attack_words,
        )
    )


def site_html(site: SiteReport) -> str:
    """One site's own report as one self-contained page."""
    arms = words.in_arm_order(list(site.arms))
    return (
        pages()
        .get_template("site.html.j2")
        .render(
            site=site,
            warnings=words.why_not_private(site, site.client.epsilon),
            arms=[(words.arm_label(arm), site.arms[arm]) for arm in arms],
            curves=site_figures.site_curve(site),
            roc=site_figures.roc_curves(site),
            reliability=site_figures.reliability(site),
        )
    )


@cache
def pages() -> Environment:
    """The templates with their filters; every page of the product is made from them."""
    pages = Environment(
        loader=PackageLoader("secure_natfl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files("secure_natfl.report").joinpath("templates", "report.css")
    pages.filters.update(formats.FILTERS)
    pages.globals.update(
        style=Markup(style.read_text("utf-8")),  # noqa: S704 (our own style sheet)
        words=words,
        formats=formats,
    )
    return pages


def _write(path: Path, text: str) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)  # noqa: PTH105 (says what it does: one atomic rename)
    except OSError as error:
        _discard(draft)
        raise RunFolderError(
            f"the report could not be written to {path}",
            why=error.strerror or str(error),
            fix="free space or make the folder writable, or choose another with --out",
        ) from error
    return path


def _discard(draft: Path) -> None:
    try:
        draft.unlink(missing_ok=True)
    except OSError:
        return
