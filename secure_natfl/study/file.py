"""The study file: what is varied, over which seeds and folds, and within how much time."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from protocols.errors import ConfigError
from secure_natfl.config import Name, Section
from secure_natfl.toml_config import presets

Changes = dict[str, Any]
"""Configuration key ("privacy.epsilon") → value."""

Model = Literal[
    "central",
    "personalised",
    "local_only",
    "pooled",
    "noise_proxies",
    "in_domain_proxies",
    "fitted",
    "few_labels",
]
USUAL: tuple[Model, ...] = ("central", "personalised", "local_only", "pooled")

MODELS, SEEDS, LEFT_OUT = "study.models", "study.seeds", "study.left_out"
AGAINST = "study.against"
"""What an arm may state beside the configuration: models and seeds of its own, hospitals that take
no part and are predicted all the same, and the arm that it is compared with."""

PRESET, LIKE = "study.preset", "study.like"
"""A base of the arm's own; or an arm above it, all of whose changes it begins with."""

CLEAR, REFUSED = "study.in_the_clear", "study.refused"
"""Of whole runs (`folds = 0`): sums are of what sites computed, without clip, grid or encryption;
or the arm is one that a run must refuse, and stands in the tables with the reason."""

_OWN = {
    "run.seed": "seeds",
    "run.name": "name",
    "run.baselines": "models",
    "data.folds": "folds",
    "data.fold": "folds",
    "data.test_fraction": "folds",
    "ledger.folder": "ledger",
    "ledger.budget_epsilon": "ledger",
    "speed.threads": "the number of cores",
}
_UNITS = {"s": 1, "min": 60, "h": 3600}


def _one_arm() -> dict[str, Changes]:
    return {"system": {}}


class StudyFile(Section):
    """One study, whole. Keys of the configuration stand as "a.b" or as tables."""

    name: Name
    base: str = ""
    """A preset's name, or a configuration file; relative to the study file."""
    common: Changes = Field(default_factory=dict, alias="set")
    """What every cell changes in the base."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Axis → its values; every combination is a grid point. An ε of "inf" takes the noise away."""
    arms: dict[Name, Changes] = Field(default_factory=_one_arm, min_length=1)
    """Named sets of changes; the first is what the others are compared with. An arm that sets the
    key of an axis stands at that one value of it. Of the study itself an arm may set
    "study.models", "study.seeds" (some of `seeds`), "study.left_out" (hospitals) and
    "study.against" (another arm in place of the first); "study.preset" (another preset in place
    of `base`); "study.like" (an arm above, whose changes it begins with, and which it is compared
    with); of whole runs, "study.in_the_clear" and "study.refused"."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0], min_length=1)
    """Values of run.seed: every cell can be repeated, and is not private."""
    folds: Literal[0] | Annotated[int, Field(ge=2)] = 5
    """0, for systems that learn from sums: a cell is a whole run, and each seed splits anew."""
    models: list[Model] = Field(default_factory=lambda: list(USUAL), min_length=1)
    """Whose predictions are compared; what none of them needs is not trained."""
    subgroups: list[str] = Field(default_factory=list)
    """Columns of npz packs by which the gap between subgroups is measured."""
    ledger: str = "auto"
    """Folder of the study's ledgers; "auto": in the study folder."""
    budget: str = ""
    """Time for all cells, such as "90min" or "8h"; empty: until all are done."""

    @field_validator("common", "arms", "grid", mode="before")
    @classmethod
    def _dotted(cls, given: Any, info: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        if info.field_name != "arms":
            return _flat(given)
        return {k: _flat(v) if isinstance(v, Mapping) else v for k, v in given.items()}

    @field_validator("common", "arms", "grid")
    @classmethod
    def _not_its_own(cls, given: Any, info: Any) -> Any:
        keys = [k for c in given.values() for k in c] if info.field_name == "arms" else list(given)
        for key in keys:
            if key in _OWN:
                raise ValueError(f"{key} is set by the study itself, through {_OWN[key]}")
        return given

    @field_validator("arms")
    @classmethod
    def _of_the_study(cls, given: dict[str, Changes]) -> dict[str, Changes]:
        for arm, changes in given.items():
            for key in (MODELS, SEEDS, LEFT_OUT):
                value = changes.get(key, ["?"])
                if not isinstance(value, list) or not value:
                    raise ValueError(f"{key} of the arm {arm} is a list of at least one")
            unknown = set(changes.get(MODELS, [])) - set(get_args(Model))
            if unknown:
                raise ValueError(f"{MODELS} of the arm {arm}: no model {', '.join(unknown)}")
            if changes.get(AGAINST, arm) not in given:
                raise ValueError(f"{AGAINST} of the arm {arm}: no such arm")
        return _inherited(given)

    @model_validator(mode="after")
    def _based(self) -> Self:
        for arm, changes in self.arms.items():
            if not changes.get(PRESET, self.base):
                raise ValueError(f"the arm {arm} has no base: set base, or {PRESET} of the arm")
            if not self.folds or not (changes.get(CLEAR) or changes.get(REFUSED)):
                continue
            raise ValueError(f"{CLEAR} and {REFUSED} are of whole runs: set folds = 0")
        return self

    @model_validator(mode="after")
    def _known_seeds(self) -> Self:
        for arm, changes in self.arms.items():
            if not set(self.seeds).issuperset(changes.get(SEEDS, [])):
                raise ValueError(f"{SEEDS} of the arm {arm}: take some of {self.seeds}")
        return self

    @field_validator("budget")
    @classmethod
    def _time(cls, given: str) -> str:
        if given:
            seconds_of(given)
        return given

    @field_validator("seeds", "models")
    @classmethod
    def _once(cls, given: list[Any]) -> list[Any]:
        if len(set(given)) != len(given):
            raise ValueError("a value stands there twice")
        return given


def seconds_of(text: str) -> float:
    """Seconds in "8h", "90min" or "45s"; ValueError for anything else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h)", text.strip())
    if not found or not float(found[1]):
        raise ValueError(f'{text!r} is no time: write "45s", "90min" or "8h"')
    return float(found[1]) * _UNITS[found[2]]


def shipped() -> dict[str, Traversable]:
    """Name → file of every study that comes with the package."""
    folder = resources.files("secure_natfl") / "presets" / "studies"
    return {one.name[:-5]: one for one in folder.iterdir() if one.name.endswith(".toml")}


def read_study(source: str) -> StudyFile:
    """The study in the file `source`, or the shipped one of that name.

    A path in `base` comes back absolute. ConfigError: no such file, not TOML, or a key at fault.
    """
    path, known = Path(source), shipped()
    try:
        inside = path.suffix != ".toml" and source in known
        text = (known[source] if inside else path).read_text(encoding="utf-8")
        study = StudyFile.model_validate(tomllib.loads(text))
    except FileNotFoundError:
        near = get_close_matches(source, known, 1)
        raise ConfigError(
            "no such study",
            where=source,
            fix=f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(sorted(known))}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the file cannot be read", where=source, why=str(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("not a TOML file", where=source, why=str(error)) from None
    except ValidationError as error:
        raise _explained(error, source) from None
    if not study.base or study.base in presets():
        return study
    return study.model_copy(update={"base": str((path.parent / study.base).resolve())})


def _inherited(arms: dict[str, Changes]) -> dict[str, Changes]:
    """Every arm with the changes of the arm above that it is like; that one it is against."""
    found: dict[str, Changes] = {}
    for arm, changes in arms.items():
        above = changes.get(LIKE)
        if above is not None and above not in found:
            raise ValueError(f"{LIKE} of the arm {arm}: name an arm above it")
        before = {} if above is None else found[above] | {AGAINST: above}
        found[arm] = {k: v for k, v in (before | changes).items() if k != LIKE}
    return found


def _flat(table: Mapping[str, Any], before: str = "") -> Changes:
    """Nested tables as dotted keys; lists are values."""
    found: Changes = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[before + key] = value
    return found


def _explained(error: ValidationError, source: str) -> ConfigError:
    fault = error.errors()[0]
    path = ".".join(str(part) for part in fault["loc"])
    known = sorted(field.alias or name for name, field in StudyFile.model_fields.items())
    if fault["type"] == "extra_forbidden":
        near = get_close_matches(path, known, 1)
        fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return ConfigError("unknown key", where=f"{source}: {path}", fix=fix)
    if fault["type"] == "missing":
        return ConfigError("a key is missing", where=f"{source}: {path}", fix=f"add {path}")
    message = fault["msg"].removeprefix("Value error, ")
    return ConfigError(message, where=f"{source}: {path}" if path else source)
