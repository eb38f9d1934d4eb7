"""CSV manifests: which files a site has, their labels, and what to do with doubtful ones."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protocols.errors import DataError

Policy = Literal["mask", "negative", "positive", "drop"]

_POLICY_VALUES: dict[Policy, int] = {"mask": -1, "negative": 0, "positive": 1}


@dataclass(frozen=True)
class Rows:
    """The usable rows of a manifest, in file order, N of them.

    `lines`: the CSV line of each, for messages. `labels`: int64 N or N×C as in `Records`; where
    masks are listed all 0, and `masks` names each row's file.
    """

    path: Path
    lines: tuple[int, ...]
    cells: tuple[dict[str, str], ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    masks: tuple[str, ...] = ()

    def where(self, index: int) -> str:
        """Manifest and line of row `index`, for an error."""
        return f"{self.path} line {self.lines[index]}"

    def column(self, name: str) -> tuple[str, ...]:
        """A column that must be filled in every row, else DataError naming the line."""
        if name not in self.cells[0]:
            raise DataError(
                f"no column {name!r}",
                where=str(self.path),
                why=f"the columns are {', '.join(self.cells[0])}",
            )
        values = tuple(row[name] for row in self.cells)
        if "" in values:
            raise DataError(f"column {name!r} is empty", where=self.where(values.index("")))
        return values


@dataclass(frozen=True)
class Manifest:
    """A CSV file with a header, a column `file`, and labels in one of three forms.

    Single-label: a column `label` that holds a class name. Multi-label: one column per class with
    1 (present), 0 (absent), −1 (uncertain) or nothing (missing). `class_names` fixes classes and
    their order; without it single-label classes are the sorted values found, and multi-label
    classes all columns but `file` and those in `other_columns`. Masks: `mask_column` names the
    column that holds each image's mask file, and no other label is read.

    `uncertain` and `missing` say what becomes of such labels: "mask" (unknown to losses and
    scores), "negative", "positive", or "drop" (the image is left out). A single label cannot be
    masked; there, give "drop", or for two classes "negative" (the first) or "positive".
    """

    path: Path
    class_names: tuple[str, ...] = ()
    other_columns: tuple[str, ...] = ("patient",)
    uncertain: Policy = "mask"
    missing: Policy = "mask"
    mask_column: str = ""

    def read(self) -> Rows:
        """All rows kept by the policies. Raises DataError naming the file and line at fault."""
        lines, cells = _read_csv(self.path)
        if self.mask_column:
            nothing = np.zeros(len(lines), dtype=np.int64)
            rows = Rows(self.path, tuple(lines), tuple(cells), nothing, self.class_names)
            return replace(rows, masks=rows.column(self.mask_column))
        single = "label" in cells[0]
        names = self.class_names or (_found(cells) if single else self._columns(cells[0]))
        absent = [] if single else [name for name in names if name not in cells[0]]
        if absent:
            raise DataError(f"no column for class {', '.join(absent)}", where=str(self.path))
        labels = [
            [self._single(row["label"], names, line)]
            if single
            else [self._value(row[name], name, line) for name in names]
            for line, row in zip(lines, cells, strict=True)
        ]
        kept = [i for i, row in enumerate(labels) if None not in row]
        if not kept:
            raise DataError("no labelled image is left", where=str(self.path))
        table = np.array([labels[i] for i in kept], dtype=np.int64)
        return Rows(
            self.path,
            tuple(lines[i] for i in kept),
            tuple(cells[i] for i in kept),
            table[:, 0] if single else table,
            names,
        )

    def _columns(self, row: dict[str, str]) -> tuple[str, ...]:
        names = tuple(name for name in row if name != "file" and name not in self.other_columns)
        if not names:
            raise DataError(
                "no label column", where=str(self.path), fix="add `label` or one column per class"
            )
        return names

    def _value(self, text: str, column: str, line: int) -> int | None:
        """A multi-label cell as 1, 0 or −1 (masked); None drops the row."""
        try:
            value = float(text) if text else None
        except ValueError:
            value = 2.0
        if value in (0.0, 1.0):
            return int(value)
        if value not in (None, -1.0):
            raise DataError(
                f"column {column!r} holds {text!r}",
                where=f"{self.path} line {line}",
                why="a class column holds 1, 0, -1 or nothing",
                fix="correct it, or list the class columns in class_names",
            )
        policy = self.missing if value is None else self.uncertain
        return _POLICY_VALUES.get(policy)

    def _single(self, text: str, names: Sequence[str], line: int) -> int | None:
        """A single label as class index; None drops the row."""
        if text in names:
            return names.index(text)
        where = f"{self.path} line {line}"
        if text not in ("", "-1"):
            raise DataError(f"unknown class {text!r}", where=where, why=f"of {', '.join(names)}")
        policy = self.missing if text == "" else self.uncertain
        if policy == "mask" or (policy != "drop" and len(names) != 2):
            raise DataError(
                "the label is missing" if text == "" else "the label is uncertain",
                where=where,
                why=f"policy {policy!r} does not apply to one label of {len(names)} classes",
                fix='choose "drop"',
            )
        return _POLICY_VALUES.get(policy)


def _found(cells: Sequence[dict[str, str]]) -> tuple[str, ...]:
    return tuple(sorted({row["label"] for row in cells} - {"", "-1"}))


def _read_csv(path: Path) -> tuple[list[int], list[dict[str, str]]]:
    """Line numbers and stripped cells of every row of `path`, checked for shape and repeats."""
    lines: list[int] = []
    cells: list[dict[str, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True, restkey="", restval=None)
            _check_header(reader.fieldnames or (), path)
            for row in reader:
                lines.append(reader.line_num)
                cells.append(_checked(row, f"{path} line {reader.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError("not a readable CSV file", where=str(path), why=reason) from error
    if not cells:
        raise DataError("the manifest has no rows", where=str(path))
    first: dict[str, int] = {}
    for line, row in zip(lines, cells, strict=True):
        earlier = first.setdefault(row["file"], line)
        if earlier != line:
            raise DataError(
                f"{row['file']} is listed twice", where=f"{path} lines {earlier} and {line}"
            )
    return lines, cells


def _check_header(names: Sequence[str], path: Path) -> None:
    if "file" not in names or len(set(names)) != len(names):
        raise DataError(
            "the header cannot be used",
            where=str(path),
            why="it repeats a column" if "file" in names else "it has no column `file`",
            fix="start with a line such as: file,patient,label",
        )


def _checked(row: dict[str, str | None], where: str) -> dict[str, str]:
    cells = {name: value.strip() for name, value in row.items() if isinstance(value, str)}
    if len(cells) != len(row):
        raise DataError("wrong number of cells", where=where, why="the header says otherwise")
    if not cells.get("file"):
        raise DataError("no file is named", where=where, fix="give every row a `file`")
    return cells
