"""How long the server waits: `server.toml` in its folder, all of it optional."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, FiniteFloat, ValidationError

from protocols.errors import ConfigError
from secure_natfl.config import Section
from secure_natfl.deploy.party import PHASES, Phase

SERVER_FILE: Final = "server.toml"
Seconds = Annotated[FiniteFloat, Field(gt=0)]


class Patience(Section):
    """Seconds: of each phase, until who has not answered is left out; of all waiting together.

    pause: between two attempts. total: how long parties that are needed may stay away.
    """

    meet: Seconds = 120.0
    plan: Seconds = 120.0
    contribute: Seconds = 3600.0
    open: Seconds = 120.0
    learn: Seconds = 3600.0
    close: Seconds = 120.0
    pause: Seconds = 5.0
    total: Seconds = 86_400.0

    @property
    def deadlines(self) -> dict[Phase, float]:
        """Phase → its seconds."""
        return {phase: getattr(self, phase) for phase in PHASES}


def read_patience(folder: Path) -> Patience:
    """What the server's folder says, or the defaults; ConfigError for unknown keys."""
    path = folder / SERVER_FILE
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return Patience.model_validate({k: _float(v) for k, v in table.items()})
    except ValidationError as error:
        fault = error.errors()[0]
        where = f"{path}, {'.'.join(map(str, fault['loc']))}"
        raise ConfigError(str(fault["msg"]), where=where) from None
    except (OSError, ValueError) as error:
        raise ConfigError("the file cannot be used", where=str(path), why=str(error)) from None


def _float(value: object) -> object:
    return float(value) if isinstance(value, int) else value
