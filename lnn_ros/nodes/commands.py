"""The way out: an array of values becomes a Twist on `cmd_vel`, within limits set by parameters."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions

from lnn_ros.controller import policy_limits
from lnn_ros.nodes.parameters import Parameter
from lnn_ros.policy import OutputContract, Policy
from lnn_ros.safety import Limit


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
        self._stamped = TwistStamped()
        self._stamped.header.frame_id = frame
        self._fields = []
        for output in policy.contract.outputs:
            vector, _, axis = output.name.partition('.')
            if vector not in ('linear', 'angular') or axis not in ('x', 'y', 'z'):
                raise ValueError(f"output '{output.name}' is not a field of geometry_msgs/Twist")
            self._fields.append((getattr(self._stamped.twist, vector), axis))
        self._message = self._stamped if stamped else self._stamped.twist
        self._publisher = node.create_lifecycle_publisher(
            TwistStamped if stamped else Twist,
            'cmd_vel',
            QoSProfile(depth=1),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._lock = threading.Lock()

    def publish(self, values: NDArray[np.float64]) -> None:
        """Send `values` (outputs,), stamped with the node's clock."""
        with self._lock:
            for (vector, axis), value in zip(self._fields, values.tolist(), strict=True):
                setattr(vector, axis, value)
            self._stamped.header.stamp = self._node.get_clock().now().to_msg()
            self._publisher.publish(self._message)

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
        limits.append(Limit(own.name, numbers['min'], numbers['max'], numbers['slew'], own.safe))
    return limits
