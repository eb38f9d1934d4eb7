"""The report's records: names that others read, and values that are refused."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from secure_natfl.report.model import Interval, Report, Scores
from secure_natfl.report.site_model import SiteReport
from tests.secure_natfl.report_parts import DIGEST, one_class_scores, privacy
from tests.secure_natfl.report_samples import (
    one_class_report,
    plain_report,
    sample_report,
    sample_site,
)


def test_json_keeps_the_names_that_others_read() -> None:
    read = json.loads(sample_report().model_dump_json(indent=2))
    assert read["system"] == "natimg-fl"
    assert read["simulated"] is True
    assert read["aggregation"]["kind"] == "ckks"
    assert read["aggregation"]["custody"] == "threshold"
    assert read["aggregate_sha256"] == [DIGEST] * 16
    wanted = {"epsilon", "epsilon_isolated", "delta", "unit", "relation", "mechanism", "t", "d"}
    assert wanted <= read["privacy"].keys()
    assert {"name", "architecture", "unit", "scores"} <= read["clients"][0].keys()
    assert set(read["central"]["scores"]) == {"nih", "hannover", "guangzhou"}
    assert set(read["baselines"]) == {"local_only", "pooled", "plain_mean", "noise_proxies"}
    assert read["wire"]["fp32_bytes"] == 112_000
    assert {"total", "protection"} <= read["seconds"].keys()


@pytest.mark.parametrize("make", [sample_report, plain_report, one_class_report])
def test_json_reads_back_as_the_same_report(make: Any) -> None:
    report = make()
    assert Report.model_validate_json(report.model_dump_json(indent=2)) == report


def test_site_json_reads_back_as_the_same_report() -> None:
    site = sample_site()
    assert SiteReport.model_validate_json(site.model_dump_json(indent=2)) == site


def test_infinite_epsilon_is_the_string_inf() -> None:
    read = json.loads(plain_report().model_dump_json())
    assert read["privacy"]["epsilon"] == "inf"
    assert read["clients"][0]["epsilon_isolated"] == "inf"


@pytest.mark.parametrize("epsilon", [float("nan"), -0.1, float("-inf"), "infinite", None])
def test_what_is_no_epsilon_is_refused(epsilon: Any) -> None:
    with pytest.raises(ValidationError):
        sample_report(privacy={**privacy(), "epsilon": epsilon})


def test_not_a_number_is_refused_and_none_stands_for_undefined() -> None:
    with pytest.raises(ValidationError):
        Interval(value=float("nan"), low=0.0, high=1.0)
    assert Scores.model_validate(one_class_scores()).auroc is None


def test_unknown_fields_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError, match="patient_ids"):
        sample_report(patient_ids=["p1"])
    report = sample_report()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(report, "simulated", False)  # noqa: B010 (a type checker refuses it outright)


@pytest.mark.parametrize(
    "sample",
    ["https://example.org/a.png", 'data:image/png;base64,AA" onload="x', "data:text/html,x"],
)
def test_only_embedded_png_images_are_taken(sample: str) -> None:
    with pytest.raises(ValidationError):
        sample_report(proxy_samples=[sample])
