"""From a TOML file, a preset or `--set key=value` to a `Config`, with errors people can use.

`--set privacy.mechanism=none` takes the defaults of the new kind and keeps the keys that both
kinds have; a key or a choice that the new kind lacks is dropped. Values are read as TOML, else as
text.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from protocols.errors import ConfigError
from secure_natfl.config import Config

ALIASES = {"natimg-fl-smoke": "smoke"}
_DISCRIMINATORS = {"aggregation": "kind", "privacy": "mechanism", "system": "kind"}

Table = dict[str, Any]


def presets() -> dict[str, Traversable]:
    """Name → file of every shipped preset."""
    folder = resources.files("secure_natfl") / "presets"
    return {entry.name[:-5]: entry for entry in folder.iterdir() if entry.name.endswith(".toml")}


def load(source: str, changes: Iterable[str] = ()) -> Config:
    """The configuration in the file or preset `source`, with `changes` ("a.b=value") applied.

    Raises ConfigError: no such file or preset (with the nearest name), not TOML, an unknown key
    (with its path and the nearest name), or a value out of range.
    """
    table = read(source)
    for change in changes:
        _apply(table, change)
    return parse(table, source)


def parse(table: Table, source: str) -> Config:
    """A table as a Config; ConfigError with the first fault, path first."""
    for section, field in _DISCRIMINATORS.items():
        if isinstance(table.get(section), dict):
            default = getattr(Config.model_fields[section].get_default(), field)
            table[section] = {field: default} | table[section]
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise _explained(error, source) from None


def read(source: str) -> Table:
    """The table in the file or preset `source`, unchecked; ConfigError where there is none."""
    path, known = Path(source), presets()
    name = ALIASES.get(source, source)
    if path.suffix != ".toml" and name in known:
        text = known[name].read_text(encoding="utf-8")
    else:
        text = _read_file(path, source, [*known, *ALIASES])
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("not a TOML file", where=source, why=str(error)) from None


def _read_file(path: Path, source: str, known: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = get_close_matches(source, known, 1)
        raise ConfigError(
            "no such configuration file or preset",
            where=source,
            fix=f"did you mean {near[0]!r}?" if near else f"presets: {', '.join(sorted(known))}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the file cannot be read", where=source, why=str(error)) from None


def _apply(table: Table, change: str) -> None:
    key, equals, text = change.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(
            "not a setting", where=f"--set {change}", fix="write --set table.key=value"
        )
    put(table, key.strip(), _value(text.strip()))


def put(table: Table, key: str, value: Any) -> None:
    """Set `key` ("a.b") of `table` in place; the key of a kind brings the new kind's table."""
    inner, path = table, key.split(".")
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError("not a table", where=key, why=f"{part} is a value")
    if len(path) == 2 and _DISCRIMINATORS.get(path[0]) == path[1]:
        table[path[0]] = _switched(path[0], inner, value)
    else:
        inner[path[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _switched(section: str, table: Table, kind: Any) -> Table:
    """The table of another kind: what both kinds know and take stays."""
    field = _DISCRIMINATORS[section]
    for model in _models(Config.model_fields[section].annotation):
        if kind in get_args(model.model_fields[field].annotation):
            kept = {key: value for key, value in table.items() if _takes(model, key, value)}
            return kept | {field: kind}
    return table | {field: kind}


def _takes(model: type[BaseModel], key: str, value: Any) -> bool:
    """Whether a kind has this key and, where the key is a choice, this value."""
    if key not in model.model_fields:
        return False
    annotation = model.model_fields[key].annotation
    return get_origin(annotation) is not Literal or value in get_args(annotation)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that an annotation allows, through unions, lists and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, list, Annotated):
        for part in get_args(annotation):
            yield from _models(part)


def _explained(error: ValidationError, source: str) -> ConfigError:
    fault = error.errors()[0]
    path = _path(fault["loc"])
    where = f"{source}: {'.'.join(map(str, path))}" if path else source
    if fault["type"] == "extra_forbidden":
        known = sorted(_keys_beside(fault["loc"]))
        near = get_close_matches(str(path[-1]), known, 1)
        fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return ConfigError("unknown key", where=where, fix=fix)
    if fault["type"] == "missing":
        return ConfigError("a key is missing", where=where, fix=f"add {path[-1]}")
    # A value of several types is at fault once for each of them.
    faults = [other["msg"] for other in error.errors() if _path(other["loc"]) == path]
    message = ", or: ".join(faults).removeprefix("Value error, ")
    given = fault.get("input")
    shown = f"got {given!r}" if isinstance(given, str | int | float) else ""
    return ConfigError(message, where=where, why=shown)


def _path(location: tuple[int | str, ...]) -> list[int | str]:
    return [part for i, part in enumerate(location) if not _is_tag(location, i)]


def _is_tag(location: tuple[int | str, ...], position: int) -> bool:
    """Whether pydantic put the name of a union's member here; a person never wrote it."""
    first = location[0] if location else ""
    if position > 1 and str(location[position]).startswith(("constrained-", "literal[")):
        return True
    return (position == 1 and first in _DISCRIMINATORS and len(location) > 2) or (
        position == 3 and location[:2] == ("data", "hospitals")
    )


def _keys_beside(location: tuple[int | str, ...]) -> set[str]:
    """The keys that could have stood where an unknown one stands."""
    models: list[type[BaseModel]] = [Config]
    for position, part in enumerate(location[:-1]):
        if _is_tag(location, position):
            models = [model for model in models if _has_tag(model, part)]
        elif isinstance(part, str):
            models = [inner for model in models for inner in _inside(model, part)]
    return {key for model in models for key in model.model_fields}


def _inside(model: type[BaseModel], key: str) -> Iterator[type[BaseModel]]:
    if key in model.model_fields:
        yield from _models(model.model_fields[key].annotation)


def _has_tag(model: type[BaseModel], tag: Any) -> bool:
    fields = (model.model_fields.get(name) for name in ("kind", "mechanism"))
    return any(field is not None and tag in get_args(field.annotation) for field in fields)
