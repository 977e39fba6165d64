"""ROS parameters as data: name, default, what it means, bounds."""

from __future__ import annotations

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
