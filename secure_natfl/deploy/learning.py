"""The server's model: it distils from what was opened, and stands on disk after every round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from protocols.messages import Opening
from secure_natfl.deploy.agreement import Agreement
from secure_natfl.fine_tuning import fresh
from secure_natfl.models import Network
from secure_natfl.pretraining import pretrained
from secure_natfl.progress import Stages
from secure_natfl.run_folder import (
    RunFolder,
    load_arrays,
    load_network,
    save_arrays,
    save_network,
)
from secure_natfl.systems.natimg_fl import Released, Rows


class Learning:
    """The central model from round to round."""

    def __init__(self, agreed: Agreement, folder: RunFolder, stages: Stages) -> None:
        self._agreed, self._folder, self._stages = agreed, folder, stages
        self._released: Released | None = None
        self._reached = -1

    @cached_property
    def start(self) -> Network:
        """The central architecture's public start."""
        agreed = self._agreed
        with self._stages.stage("Public pre-training", agreed.config.models.central):
            return pretrained(
                agreed.config.models.central,
                agreed.federation.naturals,
                size=agreed.config.data.size,
                classes=len(agreed.federation.task.classes),
                weights=agreed.config.models.weights,
                epochs=agreed.config.models.pretrain_epochs,
            )

    @cached_property
    def central(self) -> Network:
        """The central model as it stands."""
        agreed = self._agreed
        classes, heads = len(agreed.federation.task.classes), len(agreed.system.heads)
        return fresh(self.start, classes, agreed.seeds.torch("central"), heads)

    def learn(
        self, number: int, rows: Rows, openings: Sequence[Opening], absent: Mapping[str, str]
    ) -> None:
        """Distil from a round's sums and write the step down."""
        terms, system = self._agreed.terms, self._agreed.system
        grid = next(iter(terms.mechanisms.values())).grid
        sums = {one.group: grid.dequantise(one.integers) for one in openings}
        counted = terms.among({one.group: one.participants for one in openings})
        found = system.read(rows, sums, counted.teachers, counted.noise)
        released = found if self._released is None else self._released.followed_by(found)
        with self._stages.stage("Distil central model", f"round {number + 1}") as progress:
            loss = system.absorb(self.central, released, number, progress)
        summary = {
            "aggregate_sha256": [one.sha256 for one in openings],
            "absent": dict(absent),
            "signal_to_noise": min(found.signal_to_noise.values()),
            "losses": {"central": loss},
        }
        self._folder.finish(f"round-{number:03d}", lambda part: self._keep(part, found, summary))

    def restore(self, number: int) -> None:
        """Take a finished round from disk, unless this process has it already."""
        if number <= self._reached:
            return
        step = self._folder.intact(f"round-{number:03d}")
        arrays = load_arrays(step / "released.npz")
        groups = sorted({name.partition(":")[2] for name in arrays if ":" in name})
        found = Released(
            arrays["rows"],
            {g: torch.from_numpy(arrays[f"logits:{g}"]) for g in groups},
            {g: torch.from_numpy(arrays[f"trust:{g}"]) for g in groups},
            {g: float(arrays[f"ratio:{g}"]) for g in groups},
        )
        self._released = found if self._released is None else self._released.followed_by(found)
        load_network(self.central, step / "central.safetensors")
        self._reached = number

    def summaries(self) -> list[dict[str, Any]]:
        """What every finished round left to report."""
        rounds = range(self._agreed.config.system.rounds)
        steps = (self._folder.step(f"round-{number:03d}") for number in rounds)
        return [json.loads((step / "summary.json").read_text()) for step in steps]

    def _keep(self, part: Any, found: Released, summary: dict[str, Any]) -> None:
        save_network(self.central, part / "central.safetensors")
        arrays: dict[str, Any] = {"rows": found.rows}
        for group in found.logits:
            arrays[f"logits:{group}"] = found.logits[group]
            arrays[f"trust:{group}"] = found.trust[group]
            arrays[f"ratio:{group}"] = np.array(found.signal_to_noise[group])
        save_arrays(part / "released.npz", **arrays)
        (part / "summary.json").write_text(json.dumps(summary, indent=2))
