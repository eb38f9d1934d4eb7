"""A study of whole runs, from finished cells to tables and page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from secure_natfl import __version__
from secure_natfl.report import formats
from secure_natfl.report.model import Interval
from secure_natfl.report.render import pages
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import Plan
from secure_natfl.study.page import Ended
from secure_natfl.study.preflight import simulated
from secure_natfl.study.tables import (
    Row,
    cost_row,
    keep_tables,
    meant,
    tex,
    where_of,
)
from secure_natfl.study.whole_check import Checked
from secure_natfl.study.whole_scores import MARGIN, Contrast, Figure, Runs


@dataclass(frozen=True)
class WholeFindings(Ended):
    """What page and tables of whole runs show beside costs. refusals: setting's label, reason."""

    figures: list[Figure]
    contrasts: list[Contrast]
    refusals: list[tuple[str, str]]
    traits: list[Row]

    @property
    def reasons(self) -> tuple[str, ...]:
        """What the console says at the end: what each setting's own models are ahead by."""
        shown = (c for c in self.contrasts if not c.hospital and c.model == "personalised")
        return tuple(map(_said, shown))


def found_of(plan: Plan, folder: StudyFolder, checked: Checked, ended: Ended) -> WholeFindings:
    """Everything that is finished, weighed."""
    runs = Runs(folder, plan)
    return WholeFindings(
        **vars(ended),
        figures=list(runs.figures()),
        contrasts=list(runs.contrasts()),
        refusals=[(setting.label, reason) for setting, reason in checked.refusals],
        traits=_traits(runs),
    )


def keep(folder: Path, found: WholeFindings) -> None:
    """results.parquet and .csv, tests.csv, costs.csv, refusals.csv and table.tex."""
    tables = {
        "results": [_figure_row(one) for one in found.figures],
        "tests": [_contrast_row(one) for one in found.contrasts],
        "refusals": [{"arm": label, "reason": why} for label, why in found.refusals],
        "costs": [
            cost_row(cost) | traits for cost, traits in zip(found.costs, found.traits, strict=True)
        ],
    }
    keep_tables(folder, tables, _latex(found))


def page(found: WholeFindings) -> str:
    """`study.html` of whole runs."""
    settings = found.plan.settings
    return (
        pages()
        .get_template("whole.html.j2")
        .render(
            found=found,
            study=found.plan.study,
            overall=[f for f in found.figures if f.seed is None and not f.hospital],
            by_hospital=[f for f in found.figures if f.seed is None and f.hospital and not f.site],
            contrasts=[one for one in found.contrasts if not one.hospital],
            phantoms=all(simulated(setting.config) for setting in settings),
            simulated=any(h.sites > 1 for s in settings for h in s.config.data.hospitals),
            points=100 * MARGIN,
            infinity=float("inf"),
            version=__version__,
            created=formats.moment(datetime.now(UTC)),
            duration=formats.duration,
        )
    )


def _said(one: Contrast) -> str:
    text = f"{one.setting.label}: {one.metric} {100 * one.difference:+.2f} points"
    if one.interval:
        text += f" ({100 * one.interval.low:+.2f} to {100 * one.interval.high:+.2f})"
    return f"{text} from {one.against}"


def _traits(runs: Runs) -> list[Row]:
    """Per setting: its system, vectors that the clip shortened, and whether sums are another's."""
    found = []
    for setting, records in runs.records.items():
        each, same = list(records.values()), runs.same_sums(setting)
        found.append(
            {
                "system": each[0]["system"],
                "clipped": sum(one["clipped"] for one in each),
                "sent": sum(one["sent"] for one in each),
                "same_integers": "" if same is None else f"as {setting.against}: {same}".lower(),
            }
        )
    return found


def _figure_row(one: Figure) -> Row:
    return where_of(one.setting) | {
        "hospital": one.hospital or "all sites",
        "site": one.site,
        "model": one.model,
        "metric": one.metric,
        "seed": "mean" if one.seed is None else str(one.seed),
        "seeds": one.seeds,
        "value": round(one.value, 6),
        **_bounds(one.interval),
        "private": False,
        "phantoms": simulated(one.setting.config),
    }


def _contrast_row(one: Contrast) -> Row:
    return where_of(one.setting) | {
        "against": one.against,
        "hospital": one.hospital or "all sites",
        "model": one.model,
        "metric": one.metric,
        "seeds": one.seeds,
        "difference": round(one.difference, 6),
        **_bounds(one.interval),
        "p": one.p if one.p is None else float(f"{one.p:.3g}"),
        "within_half_a_point": one.alike,
    }


def _bounds(interval: Interval | None) -> Mapping[str, float | None]:
    return {
        "low_95": None if interval is None else round(interval.low, 6),
        "high_95": None if interval is None else round(interval.high, 6),
    }


def _latex(found: WholeFindings) -> str:
    """One line per setting, one column per model and figure: the mean over all sites."""
    overall = [f for f in found.figures if f.seed is None and not f.hospital]
    columns = list(dict.fromkeys((f.model, f.metric) for f in overall))
    values = {(id(f.setting), f.model, f.metric): f for f in overall}
    head = " & ".join(["Setting", *(tex(f"{m}, {k}") for m, k in columns)])
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\hline", head + r" \\", r"\hline"]
    for setting in dict.fromkeys(f.setting for f in overall):
        cells = [values.get((id(setting), *column)) for column in columns]
        lines.append(" & ".join([tex(setting.label), *map(_spelt, cells)]) + r" \\")
    note = (
        f"% {found.plan.study.name}: means over sites and seeds, 95 % t-intervals over seeds. "
        "Seeded: not private."
    )
    below = meant(dict.fromkeys(f.setting for f in overall), len(columns) + 1)
    return "\n".join([note, *lines, r"\hline", *below, r"\end{tabular}", ""])


def _spelt(one: Figure | None) -> str:
    if one is None:
        return "--"
    if one.interval is None:
        return f"{one.value:.3f}"
    return f"{one.value:.3f} ({one.interval.low:.3f}--{one.interval.high:.3f})"
