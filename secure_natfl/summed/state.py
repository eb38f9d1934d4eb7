"""The steps on disk of a run that learns from sums, and what is read back from them.

Before a sum is played its contributions and all state are on disk, so that a site whose integers
were stored is never trained twice, and a later phase speaks of the model that sent the first.
`central.safetensors` holds what everybody knows, `sites.safetensors` what stays at the sites.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from secure_natfl.run_folder import RunFolder, load_arrays, save_arrays
from secure_natfl.systems.summed import SITE, SummedSystem, Vector

CENTRAL = "central.safetensors"
_SITES = "sites.safetensors"
_NOTES = "notes.json"
_SENT = "contributions.npz"


def keep_state(system: SummedSystem, part: Path, notes: dict[str, Any]) -> None:
    """Write a system's state and what a step has to say into the step's folder."""
    state = {name: tensor.detach().contiguous() for name, tensor in system.state().items()}
    private = {name: tensor for name, tensor in state.items() if name.startswith(SITE)}
    public = {name: tensor for name, tensor in state.items() if name not in private}
    # An empty file of tensors has no digest worth naming.
    save_file(_apart(public) or {"nothing": torch.zeros(1)}, part / CENTRAL)
    save_file(_apart(private) or {"nothing": torch.zeros(1)}, part / _SITES)
    (part / _NOTES).write_text(json.dumps(notes, indent=2))


def take_up(system: SummedSystem, step: Path) -> None:
    """Put a system into the state that a step has."""
    state = load_file(step / CENTRAL) | load_file(step / _SITES)
    state.pop("nothing", None)
    system.restore(state)


def notes_of(step: Path) -> dict[str, Any]:
    """What a step has to say."""
    found: dict[str, Any] = json.loads((step / _NOTES).read_text())
    return found


def keep_sent(system: SummedSystem, part: Path, contributions: dict[str, Vector]) -> None:
    """State and contributions of a phase, before anything of it is played."""
    keep_state(system, part, {})
    save_arrays(part / _SENT, **contributions)


def sent_of(step: Path) -> dict[str, Vector]:
    """Site → its vector, as `keep_sent` wrote it."""
    return load_arrays(step / _SENT)


def last_sent(folder: RunFolder, opening: int) -> str | None:
    """The latest step of an opening that was sent, or was about to be; None if there is none."""
    count = 0
    while folder.done(sent_name(opening, count)):
        count += 1
    return sent_name(opening, count - 1) if count else None


def next_sent(folder: RunFolder, opening: int) -> str:
    """The name of the step that comes after the latest one."""
    count = 0
    while folder.done(sent_name(opening, count)):
        count += 1
    return sent_name(opening, count)


def sent_name(opening: int, count: int) -> str:
    """Steps of an opening that are sent are numbered: a site may have to train again."""
    return f"opening-{opening:03d}-sent-{count}"


def forget_sent(folder: RunFolder, opening: int) -> None:
    """Remove the contributions of an opening that is on disk as opened."""
    count = 0
    while folder.done(name := sent_name(opening, count)):
        shutil.rmtree(folder.step(name), ignore_errors=True)
        count += 1


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors asks for."""
    return {name: tensor.clone() for name, tensor in tensors.items()}
