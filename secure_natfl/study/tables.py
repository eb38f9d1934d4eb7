"""A study's figures as files: results.parquet, .csv, table.tex, and the tables beside them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from protocols.errors import RunFolderError
from secure_natfl.report import formats
from secure_natfl.run_folder import write
from secure_natfl.study.analysis import Gap, Score, Test
from secure_natfl.study.grid import Plan, Setting
from secure_natfl.study.guarantee import Guarantee, by_guarantee, guarantee_of
from secure_natfl.study.preflight import simulated

Row = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What one cell of a setting costs on average; bytes per site, the busiest one, all rounds.

    units: what a unit of its sites is, as of `guarantee.units_of`.
    """

    setting: Setting
    cells: int
    seconds: float
    cpu_seconds: float
    protection_seconds: float
    upload_bytes: float
    download_bytes: float
    epsilon: float
    epsilon_isolated: float
    units: str

    @property
    def given(self) -> Guarantee | None:
        """What the setting's ε is of; None without noise."""
        return guarantee_of(self.setting.config)

    @property
    def protects(self) -> str:
        """The unit that its ε protects; "" without noise."""
        return protected_unit(self.setting, self.units)


def write_tables(
    folder: Path,
    plan: Plan,
    scores: Sequence[Score],
    tests: Sequence[Test],
    gaps: Sequence[Gap],
    costs: Sequence[Cost],
) -> None:
    """Write all tables; what depends on the machine stands in costs.csv alone."""
    rows = {
        "results": [score_row(score) for score in scores],
        "tests": [_test_row(test) for test in tests],
        "subgroups": [_gap_row(gap) for gap in gaps],
        "costs": [cost_row(cost) for cost in costs],
    }
    keep_tables(folder, rows, latex(plan, scores))


def keep_tables(folder: Path, rows: Mapping[str, Sequence[Row]], table: str) -> None:
    """Name → rows as csv files, "results" as parquet too, and `table` as table.tex."""
    try:
        for name, each in rows.items():
            write(folder / f"{name}.csv", as_csv(each).encode())
        part = folder / "results.parquet.part"
        pq.write_table(pa.Table.from_pylist(list(rows["results"])), part)
        part.replace(folder / "results.parquet")
        write(folder / "table.tex", table.encode())
    except OSError as error:
        raise RunFolderError(
            "the tables cannot be written",
            where=str(folder),
            why=str(error),
            fix="free space and take the study up with --resume",
        ) from None


def as_csv(rows: Sequence[Row]) -> str:
    """Rows under the keys of the first; nothing where there are none."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def score_row(score: Score) -> Row:
    """One score and all that says what it is of; a study is seeded, so nothing is private."""
    found = score.auroc
    return where_of(score.setting) | {
        "hospital": score.hospital,
        "model": score.model,
        "site": score.site,
        "seed": "mean" if score.seed is None else str(score.seed),
        "seeds": score.seeds,
        "auroc": found and round(found.value, 6),
        "low": found and round(found.low, 6),
        "high": found and round(found.high, 6),
        "n": score.n,
        "unit": score.unit,
        "protected_unit": protected_unit(score.setting, score.unit),
        "private": False,
        "phantoms": simulated(score.setting.config),
    }


def latex(plan: Plan, scores: Sequence[Score]) -> str:
    """One line per setting, one column per hospital and model: AUROC with its 95 % interval."""
    overall = [s for s in scores if s.seed is None and not s.site and s.auroc is not None]
    columns = list(dict.fromkeys((s.hospital, s.model) for s in overall))
    found = {(id(s.setting), s.hospital, s.model): s.auroc for s in overall}
    head = " & ".join(["Setting", *(tex(f"{h}, {m}") for h, m in columns)])
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\hline", head + r" \\", r"\hline"]
    for setting in dict.fromkeys(s.setting for s in overall):
        cells = [tex(setting.label)]
        for hospital, model in columns:
            one = found.get((id(setting), hospital, model))
            cells.append(
                "--" if one is None else f"{one.value:.3f} ({one.low:.3f}--{one.high:.3f})"
            )
        lines.append(" & ".join(cells) + r" \\")
    note = (
        f"% {plan.study.name}: {plan.study.folds}-fold out-of-fold AUROC, mean over seeds, "
        "95 % bootstrap over patients. Seeded: not private."
    )
    below = meant(dict.fromkeys(s.setting for s in overall), len(columns) + 1)
    return "\n".join([note, *lines, r"\hline", *below, r"\end{tabular}", ""])


def meant(settings: Iterable[Setting], columns: int) -> list[str]:
    """Lines below a table: which arms' ε is of what."""
    lines = []
    for given, alike in by_guarantee(settings).items():
        arms = ", ".join(dict.fromkeys(setting.arm for setting in alike))
        text = tex(f"ε of {arms}: {given.words}")
        lines.append(rf"\multicolumn{{{columns}}}{{p{{\linewidth}}}}{{\footnotesize {text}}} \\")
    return lines


def where_of(setting: Setting) -> Row:
    """The columns that say which setting a row is of, and what its ε is of: "" without noise."""
    given = guarantee_of(setting.config)
    return {
        "arm": setting.arm,
        **dict(setting.point),
        "epsilon": _spelled(setting.epsilon),
        "relation": given.relation if given else "",
        "delta": f"{given.delta:g}" if given else "",
        "colluders": given.colluders if given else "",
    }


def protected_unit(setting: Setting, unit: str) -> str:
    """Whom its ε protects, where the sites' own unit is `unit`; "" without noise."""
    given = guarantee_of(setting.config)
    return (given.unit or unit) if given else ""


def _test_row(test: Test) -> Row:
    return where_of(test.setting) | {
        "hospital": test.hospital,
        "comparison": test.name,
        "seeds": test.seeds,
        "difference": round(test.difference.value, 6),
        "lower_95": round(test.difference.lower, 6),
        "upper_95": round(test.difference.upper, 6),
    }


def _gap_row(gap: Gap) -> Row:
    return where_of(gap.setting) | {
        "hospital": gap.hospital,
        "model": gap.model,
        "column": gap.column,
        "gap": round(gap.gap.value, 6),
        "low": round(gap.gap.low, 6),
        "high": round(gap.gap.high, 6),
        "auroc_by_value": "; ".join(f"{v} {formats.score(i)}" for v, i in gap.values.items()),
    }


def cost_row(cost: Cost) -> Row:
    """What a cell of a setting costs."""
    return where_of(cost.setting) | {
        "cells": cost.cells,
        "seconds": round(cost.seconds, 2),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "protection_seconds": round(cost.protection_seconds, 3),
        "upload_bytes": round(cost.upload_bytes),
        "download_bytes": round(cost.download_bytes),
        "epsilon_worst_site": _spelled(cost.epsilon),
        "epsilon_everyone_else_colluding": _spelled(cost.epsilon_isolated),
        "protected_unit": cost.protects,
    }


def _spelled(epsilon: float) -> str:
    return "inf" if math.isinf(epsilon) else f"{epsilon:g}"


def tex(text: str) -> str:
    """Text with what LaTeX reads otherwise spelt out."""
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    for sign, written in (
        ("ε", r"$\varepsilon$"),
        ("δ", r"$\delta$"),
        ("∞", r"$\infty$"),
        ("−", "$-$"),
    ):
        text = text.replace(sign, written)
    return text
