"""A run's folder: whose it is, what is done, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from protocols.chain import digest
from protocols.durable import Claim, written
from protocols.errors import RunFolderError
from secure_natfl.config import Config
from secure_natfl.seeds import Seeds

_STATE = "state"
_DIGESTS = "digests.json"


class RunFolder:
    """Opened once per run, by one process. `nonce` tells two runs of one configuration apart."""

    def __init__(self, path: Path, nonce: str, seeds: Seeds, lock: Claim | None = None) -> None:
        self.path, self.nonce, self.seeds = path, nonce, seeds
        self._lock = lock

    @classmethod
    def open(cls, path: Path, config: Config, text: str, *, resume: bool) -> RunFolder:
        """Make the folder, or take up the run in it again.

        Raises RunFolderError when it cannot be written, holds another configuration, holds a run
        that was not asked to be resumed, or has another process at work in it.
        """
        identity = path / "run.json"
        try:
            if identity.exists():
                return cls._again(path, config, json.loads(identity.read_text()), resume=resume)
            if resume:
                raise RunFolderError(
                    "there is no run to resume", where=str(path), fix="leave out --resume"
                )
            if path.exists() and any(map(_foreign, path.iterdir())):
                raise RunFolderError(
                    "the folder holds other files", where=str(path), fix="choose another --out"
                )
            path.mkdir(parents=True, exist_ok=True)
            lock = Claim(path)
            seeds = cls._seeds(config, os.urandom(32))
            nonce = os.urandom(16).hex() if not seeds.seeded else f"seed-{config.run.seed}"
            stated = {"config_sha256": config.identity, "nonce": nonce, "root": seeds.root.hex()}
            write(identity, json.dumps(stated, indent=2).encode())
            write(path / "config.toml", text.encode())
        except OSError as error:
            raise _unwritable(path, error) from None
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                "run.json is damaged", where=str(path), why=str(error), fix="start a new folder"
            ) from None
        return cls(path, nonce, seeds, lock)

    @classmethod
    def _again(cls, path: Path, config: Config, stated: Any, *, resume: bool) -> RunFolder:
        if stated["config_sha256"] != config.identity:
            raise RunFolderError(
                "the folder holds a run of another configuration",
                where=str(path),
                why=f"{stated['config_sha256'][:12]} is not {config.identity[:12]}",
                fix="choose another --out, or give the configuration it was started with",
            )
        if not resume:
            raise RunFolderError(
                "the folder holds this run already",
                where=str(path),
                fix="add --resume to take it up again, or choose another --out",
            )
        seeds = cls._seeds(config, bytes.fromhex(stated["root"]))
        return cls(path, stated["nonce"], seeds, Claim(path))

    @staticmethod
    def _seeds(config: Config, root: bytes) -> Seeds:
        if isinstance(config.run.seed, int):
            return Seeds.of_study(config.run.seed)
        return Seeds(root, seeded=False)

    def done(self, name: str) -> bool:
        """Whether the step `name` was finished."""
        return (self.path / _STATE / name).is_dir()

    def step(self, name: str) -> Path:
        """The folder of a finished step."""
        return self.path / _STATE / name

    def intact(self, name: str) -> Path:
        """The same, for a run that takes it up; RunFolderError if a file is not as it was written.

        That the digests themselves are the run's own is for the audit log to say.
        """
        folder = self.step(name)
        try:
            stated = json.loads((folder / _DIGESTS).read_bytes())
            same = stated == _digests(folder)
        except (OSError, ValueError):
            same = False
        if same:
            return folder
        raise RunFolderError(
            "a finished step was changed, or is damaged",
            where=str(folder),
            fix="remove it and the steps after it, then resume: they are made again from the step "
            "before, and nothing is charged twice",
        )

    def finish(self, name: str, fill: Callable[[Path], None]) -> None:
        """Let `fill` write a step's files, then make them appear at once."""
        part = self.path / _STATE / f"{name}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            fill(part)
            (part / _DIGESTS).write_text(json.dumps(_digests(part)))
            for file in part.iterdir():
                with file.open("rb") as filled:
                    os.fsync(filled.fileno())
            with written("step"):
                part.replace(self.path / _STATE / name)
        except (OSError, SafetensorError) as error:
            raise _unwritable(self.path, error) from None


def write(file: Path, data: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    with written(file.name):
        with part.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)


def save_network(network: nn.Module, file: Path) -> None:
    """A network's tensors as safetensors."""
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)


def load_network(network: nn.Module, file: Path) -> None:
    """Tensors of `save_network` back into a network of the same shape."""
    network.load_state_dict(load_file(file))


def save_arrays(file: Path, **arrays: NDArray[Any] | Tensor) -> None:
    """Named arrays as one npz file."""
    plain: dict[str, Any] = {
        name: v.numpy() if isinstance(v, Tensor) else v for name, v in arrays.items()
    }
    np.savez(file, **plain)


def load_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """Arrays of `save_arrays`; nothing is unpickled."""
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a step but the one that holds them."""
    files = (file for file in folder.iterdir() if file.name != _DIGESTS)
    return {file.name: digest(file.read_bytes()) for file in files}


def _foreign(file: Path) -> bool:
    """Whether a file is none that a run which was cut short at its start leaves behind."""
    return file.suffix != ".part" and file.name != "lock"


def _unwritable(path: Path, error: OSError | SafetensorError) -> RunFolderError:
    return RunFolderError(
        "the run folder cannot be written",
        where=str(path),
        why=getattr(error, "strerror", None) or str(error),
        fix="free space, or choose another --out; --resume takes the run up again",
    )
