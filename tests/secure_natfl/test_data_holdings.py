"""Who holds what, and the columns of scores, on the pages and in the records."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from secure_natfl.report.formats import metric_columns, metrics_shown
from secure_natfl.report.holding_figures import left_out, who_holds_what
from secure_natfl.report.model import Report, Scores
from secure_natfl.report.render import report_html

SAMPLES = runpy.run_path(str(Path(__file__).with_name("report_samples.py")))


def report(**changes: Any) -> Report:
    return SAMPLES["sample_report"](**changes)


def holding(site: str, task: str = "main", counted: str = "images", **counts: int) -> dict:
    return {"site": site, "task": task, "counted": counted, "counts": counts}


def test_the_picture_has_every_figure_in_its_table():
    held = [holding("nih-a", sick=1200, well=3), holding("nih-b", sick=0, well=40)]
    plate = who_holds_what(report(holdings=held))
    assert plate is not None
    assert [panel.heading for panel in plate.panels] == ["Sites and classes"]
    assert [(row[0], row[1], row[3]) for row in plate.rows] == [
        ("nih-a", "sick", "1\u202f200"),
        ("nih-a", "well", "3"),
        ("nih-b", "sick", "0"),
        ("nih-b", "well", "40"),
    ]
    # Three discs for four counts: where there is none, none is drawn.
    assert str(plate.panels[0].drawing).count("fill: var(--central)") == 3
    assert "nih-b: sick 0, well 40 images" in plate.panels[0].drawing


def test_a_panel_for_each_task():
    held = [
        holding("nih-a", "health", sick=3, well=4),
        holding("nih-b", "lungs", "pixels", rest=900, lung=100),
    ]
    plate = who_holds_what(report(holdings=held))
    assert plate is not None
    assert [panel.heading for panel in plate.panels] == ["health", "lungs"]
    assert ("nih-b", "lung", "pixels", "100") in plate.rows


def test_nothing_is_shown_of_a_real_federation():
    real = report(holdings=[])
    assert who_holds_what(real) is None
    assert "Who holds what" not in report_html(real)


def test_sites_whose_counts_are_their_own_are_named():
    mixed = report()
    names = left_out(mixed)
    assert names == [client.name for client in mixed.clients[4:]]
    page = report_html(mixed)
    assert f"Left out, as their counts are their own: {', '.join(names)}." in page
    assert "How many images of each class a real hospital has is private" in page


def scored(**fields: float) -> Scores:
    found = {name: {"value": v, "low": v, "high": v} for name, v in fields.items()}
    nothing = dict.fromkeys(("auroc", "auprc", "balanced_accuracy", "ece"))
    return Scores(**(nothing | found), n=9, unit="patient")


@pytest.mark.parametrize(
    ("scores", "columns"),
    [
        ([scored()], ["AUROC", "AUPRC", "Balanced accuracy", "ECE"]),
        ([scored(auroc=0.8)], ["AUROC", "AUPRC", "Balanced accuracy", "ECE"]),
        (
            [scored(auroc=0.8), scored(accuracy=0.7)],
            ["AUROC", "AUPRC", "Balanced accuracy", "Accuracy", "ECE"],
        ),
        ([scored(dice=0.9)], ["Dice"]),
        (
            [scored(dice=0.9), scored(accuracy=0.7)],
            ["AUROC", "AUPRC", "Balanced accuracy", "Accuracy", "ECE", "Dice"],
        ),
    ],
)
def test_columns_are_those_that_somebody_fills(scores, columns):
    assert metric_columns(metrics_shown(scores)) == [f"#{name}" for name in columns]


def test_masks_are_reported_by_dice_alone():
    fields = SAMPLES["report_fields"]()
    dice = {"value": 0.871, "low": 0.84, "high": 0.9}
    for client in fields["clients"]:
        nothing = dict.fromkeys(("auroc", "auprc", "balanced_accuracy", "accuracy", "ece"))
        client["scores"] |= nothing | {"dice": dice}
    page = report_html(Report(**fields))
    assert '<th scope="col" class="n">Dice</th>' in page
    assert '<th scope="col" class="n">AUPRC</th>' not in page
    assert "0.871" in page
