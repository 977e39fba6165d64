"""What the controller tells of itself: its counters on /diagnostics, and why it does not drive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions

from lnn_ros.controller import Controller
from lnn_ros.safety import Mode
from lnn_ros.timing import NS_PER_S

_OUT_OF_STEP = 2.0  # s between stamps and the clock that are worth a warning
_REASONS = {
    'unset': 'have the stamp 0, the driver must set header.stamp',
    'duplicate': 'have the stamp of the one before',
    'out_of_order': 'have an older stamp than the one before',
}


class Diagnostics:
    """Publishes the state of a controller; warns of what keeps it from driving.

    Args:
        node: owns the publisher.
        controller: what is told of.
        topics: the topic of each stream that the policy needs.
    """

    def __init__(self, node: Node, controller: Controller, topics: Mapping[str, str]) -> None:
        self._node, self._controller, self._topics = node, controller, topics
        self._counted: Counter[str] = Counter()
        self._was_idle = False
        self.publisher = node.create_publisher(
            DiagnosticArray,
            '/diagnostics',
            10,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def publish(self, mode: Mode, is_active: bool, longest_interval: float) -> None:
        """Tell what has been since the last time.

        Args:
            mode: of the node, which knows of silence, too.
            is_active: whether it steps and commands.
            longest_interval: seconds, over which the state was advanced in this time.
        """
        now = self._node.get_clock().now()
        counts = self._controller.counts.copy()
        values: dict[str, object] = {
            'mode': mode.value,
            'longest interval, s': f'{longest_interval:.4f}',
        }
        newest_ns = self._controller.interval.newest_ns
        if newest_ns:
            age = (now.nanoseconds - newest_ns) / NS_PER_S
            values['age of the newest stamp, s'] = f'{age:.3f}'
            if is_active and mode is Mode.RUNNING and abs(age) > _OUT_OF_STEP:
                self._node.get_logger().warning(
                    f'stamps are {abs(age):.1f} s {"behind" if age > 0 else "ahead of"} the clock: '
                    'are the clocks in step, and is use_sim_time equal everywhere?',
                    throttle_duration_sec=30.0,
                )
        values |= dict(sorted(counts.items()))
        is_driving = is_active and mode is Mode.RUNNING
        status = DiagnosticStatus(
            level=DiagnosticStatus.OK if is_driving else DiagnosticStatus.WARN,
            name=self._node.get_fully_qualified_name(),
            message=mode.value if is_active else 'not active',
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        message = DiagnosticArray(status=[status])
        if 0 <= now.nanoseconds < 2**31 * NS_PER_S:  # else a message cannot hold it
            message.header.stamp = now.to_msg()
        self.publisher.publish(message)
        found = troubles(counts - self._counted, self._topics)
        self._counted = counts
        is_idle = is_active and not is_driving
        if is_idle and self._was_idle and found:  # not at once: what is started last is late
            self._node.get_logger().warning(
                f'not driving: {"; ".join(found)}', throttle_duration_sec=5.0
            )
        self._was_idle = is_idle


def troubles(new: Mapping[str, int], topics: Mapping[str, str]) -> list[str]:
    """Say what is wrong with the messages of some time.

    Args:
        new: how often things happened in this time, see `Controller.counts`; a Counter.
        topics: the topic of each stream.
    """
    found = []
    for stream, topic in topics.items():
        if not new[f'received/{stream}']:
            found.append(f'nothing comes on {topic}')
        for reason, text in _REASONS.items():
            count = new[f'drop/{stream}/{reason}']
            if count:
                found.append(f'{count} messages on {topic} {text}')
    if new['reset/gap'] and new['reset/clock_back']:
        found.append(
            f'stamps leap back and forth: {" and ".join(topics.values())} must be stamped by '
            'clocks that are in step'
        )
    return found
