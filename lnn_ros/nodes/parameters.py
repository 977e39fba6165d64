"""ROS parameters as data: name, default, what it means, bounds."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node


@dataclass(frozen=True)
class Parameter:
    """One ROS parameter.

    Attributes:
        name: snake_case, groups separated by dots.
        default: also decides the type.
        description: one sentence for the user, with the unit.
        bounds: lowest and highest value of a number; the defaults must lie within.
        read_only: can be set at start only.
    """

    name: str
    default: bool | int | float | str
    description: str
    bounds: tuple[float, float] | None = None
    read_only: bool = True

    def descriptor(self) -> ParameterDescriptor:
        descriptor = ParameterDescriptor(description=self.description, read_only=self.read_only)
        if self.bounds is not None:
            low, high = self.bounds
            if isinstance(self.default, float):
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(low), to_value=float(high))
                ]
            else:
                descriptor.integer_range = [
                    IntegerRange(from_value=int(low), to_value=int(high), step=1)
                ]
        return descriptor


def declare(node: Node, parameters: Iterable[Parameter]) -> None:
    """Declare the parameters that the node does not have yet.

    Raises:
        rclpy.exceptions.ParameterException: when an override has the wrong type or is out of
        bounds.
    """
    for parameter in parameters:
        if not node.has_parameter(parameter.name):
            node.declare_parameter(parameter.name, parameter.default, parameter.descriptor())


def warn_of_unknown(node: Node) -> None:
    """Warn of values given at start for parameters that no one has declared: misspelt, as a rule.

    To be called when all are declared.
    """
    for name in getattr(node, '_parameter_overrides', {}):
        if node.has_parameter(name) or name.startswith('qos_overrides.'):
            continue
        known = node.list_parameters([], 0).names
        close = difflib.get_close_matches(name, known, 1)
        meant = f', {close[0]} perhaps?' if close else ''
        node.get_logger().warning(f"there is no parameter '{name}', its value is not used{meant}")
