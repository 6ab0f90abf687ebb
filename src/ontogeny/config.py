"""Settings: TOML files and `--set key=value`, read into strict frozen models.

An unknown key is refused with the nearest known name; a wrong value with its place and what was
expected. Not here: what any setting means (the file of the function that takes it says so).
"""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from ontogeny.errors import ConfigError


class Settings(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def resolved(self) -> dict[str, Any]:
        """The settings as plain JSON values, defaults included: what manifests record."""
        values: dict[str, Any] = self.model_dump(mode="json")
        return values


MAX_DEPTH = 50  # of tables in tables; more than any group of settings has
Model = TypeVar("Model", bound=Settings)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError with the line of a syntax error."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", where=path, expected="a TOML file") from None
    except IsADirectoryError:
        raise ConfigError("is a folder", where=path, expected="a TOML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text ({error})", where=path) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not valid TOML ({error})", where=path) from error
    if _is_deep(values):
        raise ConfigError(f"nested more than {MAX_DEPTH} tables deep", where=path)
    return values


def with_changes(values: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """A copy of nested `values` with each `a.b=value` applied; values are written as in TOML.

    A value that is not TOML is taken as a string, so quotes may be left out.
    """
    result: dict[str, Any] = copy.deepcopy(dict(values))
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                "cannot read a change", where=f"--set {change}", expected="key=value", found=change
            )
        *groups, last = name.strip().split(".")
        table = result
        for group in groups:
            table = table.setdefault(group, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{group} is not a group of settings", where=f"--set {change}")
        table[last] = _toml_value(text.strip())
    return result


def build(model: type[Model], values: Mapping[str, Any], where: object) -> Model:
    """Check `values` against `model`. Raises ConfigError naming the first fault and its place."""
    try:
        return model.model_validate_json(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise ConfigError(f"not a setting ({error})", where=where) from error
        raise _first_fault(model, error, where) from error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """`did you mean ...` for a mistyped name, or None when nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else None


def _is_deep(value: Any, left: int = MAX_DEPTH) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(_is_deep(part, left - 1) for part in inner)


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _first_fault(model: type[Settings], error: ValidationError, where: object) -> ConfigError:
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    name = str(fault["loc"][-1]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        known = _keys_at(model, fault["loc"][:-1])
        return ConfigError(
            f"unknown key {place!r}",
            where=where,
            expected=f"one of {', '.join(known)}" if known else None,
            fix=nearest(name, known),
        )
    if fault["type"] == "missing":
        return ConfigError(f"missing key {place!r}", where=where)
    message = fault["msg"].removeprefix("Value error, ")
    found = None if fault["type"] == "value_error" else repr(fault["input"])
    return ConfigError(f"{place or 'settings'}: {message}", where=where, found=found)


def _keys_at(model: type[Settings], place: tuple[int | str, ...]) -> list[str]:
    """The keys the group of settings at `place` knows; empty where it is not a group."""
    group: Any = model
    for part in place:
        if part in group.model_fields:  # otherwise an index, or the name of an entry
            group = _group_in(group.model_fields[part].annotation)
        if group is None:
            return []
    return sorted(group.model_fields)


def _group_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _group_in(part))), None)
