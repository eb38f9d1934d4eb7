"""R14, R15: many clients, one after the other, at a server whose memory does not grow with them."""

import pytest

from benchmarks.scale import measure, model, play


def test_r14_thirty_clients_through_a_server_of_its_own() -> None:
    """The sum is compared inside; nobody is lost, nothing is kept of who was added."""
    found = play(30, rows=100, columns=2)
    assert found["clients"] == 30
    assert found["share_bytes"] < found["upload_bytes"]


def test_the_model_is_bound_by_the_slower_of_line_and_work() -> None:
    run = {
        "upload_bytes": 200_000,
        "share_bytes": 50_000,
        "client_seconds": 0.01,
        "open_seconds": 0.05,
    }
    slow, fast = model(1000, 0.01, run), model(1000, 0.0001, run)
    assert slow["round_s"] - fast["round_s"] == pytest.approx(10 - fast["server_line_s"])
    assert model(10_000, 0.01, run)["groups"] == 10


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_r14_r15_a_thousand_clients() -> None:
    found = measure(1000)
    assert found["cpu_seconds"] <= 120
    assert found["server_extra_mib"] <= 16
