"""The report's scores as one long table, `metrics.parquet`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from protocols.errors import RunFolderError
from secure_natfl.report.model import Report, Scores

_METRICS = ("auroc", "auprc", "balanced_accuracy", "ece")
_FURTHER = ("accuracy", "dice")


def write_metrics(report: Report, folder: Path) -> Path:
    """Write one row per arm, hospital, site and metric; undefined scores are null.

    Accuracy and Dice have rows only where they are defined.
    """
    file, part = folder / "metrics.parquet", folder / "metrics.parquet.part"
    rows = [
        {"arm": arm, "hospital": hospital, "site": site, "n": scores.n, **row}
        for arm, hospital, site, scores in _scored(report)
        for row in _rows(scores)
    ]
    try:
        pq.write_table(pa.Table.from_pylist(rows), part)
        part.replace(file)
    except OSError as error:
        raise RunFolderError(
            "the table of scores cannot be written",
            where=str(folder),
            why=str(error),
            fix="free space and take the run up with --resume",
        ) from None
    return file


def _scored(report: Report) -> Iterator[tuple[str, str, str, Scores]]:
    for hospital, scores in (report.central.scores if report.central else {}).items():
        yield "central", hospital, "", scores
    for client in report.clients:
        yield "personalised", client.hospital, client.name, client.scores
    for arm, baseline in report.baselines.items():
        for hospital, scores in baseline.scores.items():
            yield arm, hospital, "", scores


def _rows(scores: Scores) -> Iterator[dict[str, str | float | None]]:
    for metric in (*_METRICS, *(name for name in _FURTHER if getattr(scores, name))):
        interval = getattr(scores, metric)
        yield {
            "metric": metric,
            "value": interval and interval.value,
            "low": interval and interval.low,
            "high": interval and interval.high,
        }
