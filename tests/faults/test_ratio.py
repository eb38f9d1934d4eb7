"""Ratios of timings: medians, intervals that hold them, pairs kept together."""

import time

import pytest

from benchmarks.deployed_party import Meter, burn
from benchmarks.ratio import named, ratio, share, spread
from benchmarks.round import peer


def test_a_ratio_is_that_of_the_medians_and_lies_in_its_interval():
    found, low, high = ratio([1.0, 2.0, 3.0, 40.0, 2.0], [4.0, 4.0, 4.0])
    assert found == 0.5
    assert 0.25 <= low <= found <= high <= 10.0


def test_equal_samples_leave_no_room():
    assert ratio([3.0] * 9, [2.0] * 9) == (1.5, 1.5, 1.5)


def test_a_share_draws_a_round_and_its_partner_together():
    partners = [10.0, 20.0, 40.0]
    assert share([one / 10 for one in partners], partners) == pytest.approx((0.1, 0.1, 0.1))


def test_what_was_not_measured_is_none():
    assert named("x", None) == {"x": None, "x_interval": None}
    assert named("x", (1.0, 0.9, 1.2)) == {"x": 1.0, "x_interval": [0.9, 1.2]}
    assert spread([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]


def test_a_peer_that_cannot_run_says_why():
    said = peer("/nowhere/python", "benchmarks.round_flower", 5.0)
    assert isinstance(said, str)
    assert "nowhere" in said


def test_a_meter_counts_what_it_is_told_to_and_takes_out_what_is_not_learning():
    class Site:
        def learn(self) -> str:
            burn(0.05)
            self.charge()
            return "learned"

        def charge(self) -> None:
            burn(0.05)

    meter = Meter()
    meter.count(Site, "learn")
    meter.count(Site, "charge", -1.0)
    start = time.process_time()
    assert Site().learn() == "learned"
    assert time.process_time() - start >= 0.1
    assert 0.04 <= meter.taken() <= 0.09
    assert meter.taken() == 0.0
