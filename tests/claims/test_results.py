"""Figures in the results' texts are those of the files beside them."""

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def test_rules_for_a_newcomer_have_in_the_text_what_their_file_gives() -> None:
    """Folds count by their pairs of a positive and a negative."""
    with (RESULTS / "ablation" / "newcomers.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    found = defaultdict(list)
    for row in rows:
        one = float(row["auroc_test_fold"]), int(row["pairs_test_fold"])
        found[row["newcomer"], row["rule"].split()[0]].append(one)
    text = " ".join((RESULTS / "natimg-fl.md").read_text("utf-8").split())
    said = text.partition("3 and 6 had ")[2]
    three = r"(0\.\d{3}), (0\.\d{3}) and (0\.\d{3}) at (\w+)"
    stated = {place: figures for *figures, place in re.findall(three, said)[:3]}
    assert set(stated) == {"guangzhou", "nih", "actualmed"}
    for place, figures in stated.items():
        for rule, figure in zip("236", figures, strict=True):
            values, pairs = zip(*found[f"new-{place}", rule], strict=True)
            mean = np.average(values, weights=pairs)
            assert float(figure) == pytest.approx(mean, abs=0.0006), (place, rule)
