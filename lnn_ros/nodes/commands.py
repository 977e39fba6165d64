"""The way out: an array of values becomes a Twist on `cmd_vel`, within limits set by parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions

from lnn_ros.controller import policy_limits
from lnn_ros.nodes.cdr import twist_writer
from lnn_ros.nodes.parameters import Parameter
from lnn_ros.policy import OutputContract, Policy
from lnn_ros.safety import Limit

_FIELDS = ('linear.x', 'linear.y', 'linear.z', 'angular.x', 'angular.y', 'angular.z')


class CommandPublisher:
    """Publishes commands of one policy; `publish` may be called from any thread.

    Args:
        node: owns the lifecycle publisher, which sends only while the node is active.
        policy: its output names must be fields of geometry_msgs/Twist.
        frame: frame_id of the commands.
        stamped: TwistStamped (nav2's default from Kilted on) or Twist.
    """

    def __init__(self, node: LifecycleNode, policy: Policy, frame: str, stamped: bool) -> None:
        self._node = node
        self._clock = node.get_clock()
        self._places = []
        for output in policy.contract.outputs:
            if output.name not in _FIELDS:
                raise ValueError(f"output '{output.name}' is not a field of geometry_msgs/Twist")
            self._places.append(_FIELDS.index(output.name))
        # to fill in a message object and have rclpy convert it takes many times as long
        self._write = twist_writer(frame if stamped else None)
        self._publisher = node.create_lifecycle_publisher(
            TwistStamped if stamped else Twist,
            'cmd_vel',
            QoSProfile(depth=1),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def publish(self, values: NDArray[np.float64]) -> None:
        """Send `values` (outputs,), stamped with the node's clock."""
        numbers = [0.0] * 6
        for place, value in zip(self._places, values.tolist(), strict=True):
            numbers[place] = value
        self._publisher.publish(self._write(self._clock.now().nanoseconds, numbers))

    def flush(self, seconds: float) -> None:
        """Wait until every subscriber has what was sent, at most so long."""
        self._publisher.wait_for_all_acked(Duration(seconds=seconds))

    def destroy(self) -> None:
        self._node.destroy_lifecycle_publisher(self._publisher)


def limit_parameters(output: OutputContract) -> tuple[Parameter, ...]:
    """Return the parameters by which a user narrows one output of the policy."""
    name, unit = output.name, output.unit
    return tuple(
        Parameter(
            f'limits.{name}.{key}', math.nan, f"{text}; nan: the policy's own", read_only=False
        )
        for key, text in (
            ('min', f'Least {name}, not below {output.min} {unit}'),
            ('max', f'Greatest {name}, not above {output.max} {unit}'),
            ('slew', f'Largest change of {name}, not above {output.slew} {unit} per second'),
        )
    )


def narrowed_limits(policy: Policy, values: Mapping[str, float]) -> list[Limit]:
    """Return the policy's limits, narrowed by the values of `limit_parameters`.

    Raises:
        ValueError: when a value is wider than the policy's own, or they contradict each other.
    """
    limits = []
    for own in policy_limits(policy):
        numbers: dict[str, float] = {}
        for key, outer in (('min', own.minimum), ('max', own.maximum), ('slew', own.slew)):
            name = f'limits.{own.name}.{key}'
            value = values[name]
            if value < outer if key == 'min' else value > outer:
                raise ValueError(f"{name} is {value}, wider than the policy's own {outer}")
            numbers[key] = outer if math.isnan(value) else value
        try:
            limit = Limit(own.name, numbers['min'], numbers['max'], numbers['slew'], own.safe)
        except ValueError as error:
            raise ValueError(f'limits.{error}') from None
        limits.append(limit)
    return limits
