"""The smallest preset of each system that sums updates: from its file to an audit that holds."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from secure_natfl.audit.conduct import audit
from secure_natfl.execute import execute
from secure_natfl.toml_config import load

QUICK = ("run.baselines=false", "system.rounds=1", "system.local_epochs=1")
MORE = {
    "unimed": (
        "system.joins.views=1",
        "system.tune_epochs=1",
        "models.pretrain_epochs=1",
        "proxies.images=120",
    ),
    "fedmic": (),
    "pppml-hmi": ("system.own_steps=1",),
}


@pytest.mark.parametrize("kind", MORE)
def test_a_round_of_a_smoke_preset_ends_in_a_report_and_an_audit_that_holds(
    kind: str, tmp_path: Path
) -> None:
    config = load(f"{kind}-smoke", [*QUICK, *MORE[kind]])
    execute(config, tmp_path / "D", f"natfl run {kind}-smoke", Console(file=StringIO()))
    report = json.loads((tmp_path / "D" / "report.json").read_text())
    assert report["system"] == kind
    assert audit(tmp_path / "D").findings.broken == ()
