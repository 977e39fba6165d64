"""From parsed JSON or YAML to the dataclasses of a policy or a recipe; refusals by name."""

from __future__ import annotations

import dataclasses
import sys
import typing
from typing import Any


class PolicyError(ValueError):
    """A policy file or a recipe that cannot be used; says which entry and which rule."""


def require(condition: bool, message: str) -> None:
    """Raise PolicyError unless the condition holds."""
    if not condition:
        raise PolicyError(message)


def build(kind: Any, value: Any, where: str) -> Any:
    """Turn parsed JSON into the annotated type `kind`, refusing what does not fit, by name."""
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in arguments:  # X | None
        return None if value is None else build(arguments[0], value, where)
    if dataclasses.is_dataclass(kind):
        require(isinstance(value, dict), f'{where} must be an object')
        fields = typing.get_type_hints(kind)
        odd = sorted(set(fields) ^ set(value))
        require(not odd, f'{where}: missing or unknown entries: {", ".join(map(str, odd))}')
        parts = {name: build(fields[name], value[name], f'{where}.{name}') for name in fields}
        make: Any = kind
        try:
            return make(**parts)
        except PolicyError as error:
            raise PolicyError(f'{where}: {error}') from None
    if origin is tuple:
        require(isinstance(value, list), f'{where} must be a list')
        if arguments[-1] is not Ellipsis:
            require(len(value) == len(arguments), f'{where} must have {len(arguments)} entries')
        return tuple(build(arguments[0], item, f'{where}[{i}]') for i, item in enumerate(value))
    if origin is not None:  # Mapping[str, Any]
        require(isinstance(value, dict), f'{where} must be an object')
        return value
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        largest = sys.float_info.max  # an int may be too large for math.isfinite
        require(is_number and -largest <= value <= largest, f'{where} must be a finite number')
        return float(value)
    require(type(value) is kind, f'{where} must be of type {kind.__name__}, is {value!r}')
    return value
