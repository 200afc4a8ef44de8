"""Frozen dataclass configs to and from plain dictionaries, for files and the command line."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from quark_jax.errors import UserError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dictionaries that JSON can hold (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(config))


def from_dict(cls: type[T], fields: Mapping[str, Any], source: str = "config") -> T:
    """The inverse of `to_dict`. A field that is left out takes its default.

    Raises UserError that names `source` and the field where one is unknown, missing or of another
    type.
    """
    if not isinstance(fields, Mapping):
        raise UserError(f"{source}: {fields!r} is not a table of fields; see {cls.__name__}")
    types_of = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in fields:
        if name not in known:
            raise UserError(f"{source}.{name}: unknown field, choose one of {', '.join(known)}")
    for name, field in known.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in fields:
            raise UserError(f"{source}.{name}: missing, set it")
    values = {
        name: _convert(types_of[name], value, f"{source}.{name}") for name, value in fields.items()
    }
    try:
        return cls(**values)
    except ValueError as error:  # fields that do not go together
        raise UserError(f"{source}: {error}") from error


def _convert(hint: Any, value: Any, source: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        if len(options) > 1:  # dataclasses: the one that has all these fields
            return _convert(_matching(options, value, source), value, source)
        return _convert(options[0], value, source)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, source)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{source}: {value!r} is not a list, write [a, b, ...]")
        return tuple(_convert(arguments[0], item, source) for item in value)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{source}: {value!r} is not a table of fields; write {{name: value}}")
        return {key: _convert(arguments[1], item, f"{source}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
    ):
        raise UserError(f"{source}: {value!r} is not of type {hint.__name__}; write one")
    return value


def _matching(options: list[type], value: Any, source: str) -> type:
    def fits(option: type) -> bool:
        if not dataclasses.is_dataclass(option):
            return isinstance(value, option)
        names = {field.name for field in dataclasses.fields(option)}
        return isinstance(value, Mapping) and set(value) <= names

    found = [option for option in options if fits(option)]
    if len(found) != 1:
        names = " or ".join(option.__name__ for option in options)
        raise UserError(f"{source}: does not say which of {names} it is; give all its fields")
    return found[0]


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two configs, as dictionaries, differ."""
    found = []
    for name in sorted(set(a) | set(b)):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{name}.")
        elif left != right:
            found.append(f"{prefix}{name}")
    return found
