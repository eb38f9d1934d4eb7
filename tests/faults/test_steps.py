"""R9, R18 at a run's folder: finished steps that were changed, and a second process in it."""

import os
import subprocess
import sys

import numpy as np
import pytest
from torch import nn

from protocols.durable import Claim
from protocols.errors import RunFolderError
from secure_natfl.run_folder import RunFolder, load_network, save_arrays, save_network
from secure_natfl.seeds import Seeds


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """One finished round: a network, arrays, a summary."""
    made = RunFolder(tmp_path, "nonce", Seeds.of_study(0))

    def fill(part) -> None:
        save_network(nn.Linear(20, 3), part / "central.safetensors")
        save_arrays(part / "released.npz", rows=np.arange(30))
        (part / "summary.json").write_text('{"auroc": 0.5}')

    made.finish("round-000", fill)
    return made


def test_r09_every_changed_bit_and_end_of_a_step_is_found(folder) -> None:
    draw, step = np.random.default_rng(3), folder.intact("round-000")
    for path in sorted(step.iterdir()):
        data = path.read_bytes()
        for number in range(60):
            at = int(draw.integers(len(data)))
            flipped = data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :]
            path.write_bytes(data[:at] if number % 6 == 0 else flipped)
            with pytest.raises(RunFolderError, match="changed, or is damaged"):
                folder.intact("round-000")
        path.write_bytes(data)
    load_network(nn.Linear(20, 3), folder.intact("round-000") / "central.safetensors")


def test_r09_a_file_too_many_or_too_few_is_found(folder) -> None:
    step = folder.step("round-000")
    (step / "personal-x.safetensors").write_bytes(b"")
    with pytest.raises(RunFolderError, match="changed, or is damaged"):
        folder.intact("round-000")
    (step / "personal-x.safetensors").unlink()
    (step / "released.npz").unlink()
    with pytest.raises(RunFolderError, match="then resume"):
        folder.intact("round-000")


def test_r18_a_killed_process_leaves_no_claim(tmp_path) -> None:
    program = (
        "import sys, os; from pathlib import Path; from protocols.durable import Claim;"
        "held = Claim(Path(sys.argv[1])); print('claimed', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"claimed\n"
        with pytest.raises(RunFolderError, match="another process is at work"):
            Claim(tmp_path)
        other.kill()
    Claim(tmp_path).close()
