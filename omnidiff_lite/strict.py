"""Nested plain values to dataclasses and back; an unknown key or a wrong type is an error that names it."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


class ConfigError(ValueError):
    """An invalid preset, override or parameter; the message names it and the remedy."""


ENDLESS = float("inf")


def within(config: Any, **limits: tuple[float, float]) -> None:
    """Raise `ConfigError` for a field of `config` outside its limits (inclusive)."""
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if not low <= value <= high:
            wanted = f"at least {low:g}" if high == ENDLESS else f"{low:g} to {high:g}"
            raise ConfigError(f"{name}: expected {wanted}, got {value:g}")


def from_dict(cls: type, tree: Any, where: str = "") -> Any:
    """Build the dataclass `cls` from nested plain values; strict in names and types."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where or cls.__name__}: expected a section, got {tree!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown key {_join(where, key)!r}{hint}")
    absent = [f.name for f in dataclasses.fields(cls) if f.name not in tree
              and f.default is f.default_factory is dataclasses.MISSING]
    if absent:
        raise ConfigError(f"{where or cls.__name__}: {', '.join(absent)} missing")
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in tree.items()}
    try:
        return cls(**values)
    except ConfigError as error:  # a value out of range; the error names its field
        raise ConfigError(_join(where, error)) from None


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested values, ready for JSON and YAML."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is none of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return {_convert(args[0], k, where): _convert(args[1], v, _join(where, k)) for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _alternative([a for a in args if a is not type(None)], value, where)
    return _scalar(hint, value, where)


def _alternative(hints: list[Any], value: Any, where: str) -> Any:
    """`value` converted to the first of `hints` that it fits."""
    for hint in hints[:-1]:
        try:
            return _convert(hint, value, where)
        except ConfigError:
            continue
    return _convert(hints[-1], value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        extra = " (write it as 1.0e-3: YAML reads 1e-3 as text)" if hint is float else ""
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}{extra}")
    return value
