"""`lnn_ros bench node`: what a message costs, from its sender to the end of its callback, over DDS.

Each contender is a node with an executor in a process of its own. This process sends them the same
messages, to one at a time and in turns, so that whatever else the machine does hits all alike.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import rclpy
import rclpy.executors
import rclpy.lifecycle
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rclpy.utilities import try_shutdown
from sensor_msgs.msg import Image, Imu

from lnn_ros.share import module_command, share_directory
from lnn_ros.timing import NS_PER_S

IMU_QOS = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
IMAGE_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
# (node, executor); receive and relay do nothing: they read the numbers, and relay sends a command
# for each IMU sample. Typed is how rclpy nodes usually do both, raw is how our controller does.
CONTENDERS = (
    ('receive_typed', 'single_threaded'), ('receive_typed', 'events'), ('receive_typed', 'lean'),
    ('receive_raw', 'events'), ('receive_raw', 'lean'),
    ('relay_typed', 'single_threaded'), ('relay_typed', 'lean'), ('relay_raw', 'lean'),
    ('controller', 'single_threaded'), ('controller', 'lean'),
)  # fmt: skip
# what is reported first: metric, and the two contenders whose quotient it is
CPU_RATIOS = (
    ('cpu_single_threaded_to_lean', CONTENDERS[0], CONTENDERS[4]),
    ('cpu_single_threaded_to_lean_both_typed', CONTENDERS[0], CONTENDERS[2]),
    ('cpu_events_to_lean', CONTENDERS[1], CONTENDERS[4]),
    ('cpu_events_to_lean_both_raw', CONTENDERS[3], CONTENDERS[4]),
    ('cpu_controller_single_threaded_to_lean', CONTENDERS[8], CONTENDERS[9]),
)
LATENCY_RATIOS = (
    ('latency_controller_to_relay_single_threaded', CONTENDERS[8], CONTENDERS[5]),
    ('latency_controller_to_relay_lean', CONTENDERS[9], CONTENDERS[6]),
)
# what of the controller's is not that of a node which does nothing and is raw and lean, too
IDLE = {'imu': CONTENDERS[7], 'image': CONTENDERS[4]}


class Load(NamedTuple):
    name: str
    rate: float  # Hz
    size: tuple[int, int] | None  # of the image; None: an IMU sample


LOADS = (
    Load('imu_200Hz', 200.0, None),
    Load('imu_1000Hz', 1000.0, None),
    Load('image_64x48', 30.0, (64, 48)),
    Load('image_640x480', 30.0, (640, 480)),
)


class Window(NamedTuple):
    """What one contender did with the messages of one turn.

    Attributes:
        cpu_us: CPU time of its process per message that arrived, DDS threads included.
        p50_us, p99_us: from before publish() in this process to the end of the callback; the
            command has then been published.
        sent, received: messages.
    """

    cpu_us: float
    p50_us: float
    p99_us: float
    sent: int
    received: int


# a contender --------------------------------------------------------------------------------------


def contend(kind: str, executor_name: str, namespace: str) -> None:
    """Be a contender until standard input closes; each line that comes asks for the figures."""
    from lnn_ros.nodes.cdr import read_image, read_imu

    rclpy.init()
    latencies = array('q')

    def done(stamp_ns: int) -> None:
        latencies.append(time.monotonic_ns() - stamp_ns)

    def on_typed_imu(message: Imu) -> None:
        rate, force = message.angular_velocity, message.linear_acceleration
        rate.x, rate.y, rate.z, force.x, force.y, force.z  # noqa: B018
        if kind == 'relay_typed':
            command.publish(twist)
        done(message.header.stamp.sec * NS_PER_S + message.header.stamp.nanosec)

    def on_raw_imu(message: bytes) -> None:
        stamp_ns, _, _ = read_imu(message)
        if kind == 'relay_raw':
            command.publish(twist)
        done(stamp_ns)

    def on_typed_image(message: Image) -> None:
        done(message.header.stamp.sec * NS_PER_S + message.header.stamp.nanosec)

    if kind == 'controller':
        node: Any = _controller(namespace)
        finish = node._finish

        def timed(values: Any, stamp_ns: int, *rest: Any) -> None:
            finish(values, stamp_ns, *rest)
            done(stamp_ns)

        node._finish = timed
    else:
        # a lifecycle node, too: its services are in the wait set
        node = rclpy.lifecycle.LifecycleNode('contender', namespace=namespace)
        raw = kind.endswith('raw')
        command = Node.create_publisher(node, TwistStamped, 'cmd_vel', 1)
        twist = serialize_message(TwistStamped()) if raw else TwistStamped()
        on_imu = on_raw_imu if raw else on_typed_imu
        on_image = (lambda data: done(read_image(data).stamp_ns)) if raw else on_typed_image
        node.create_subscription(Imu, 'imu/data', on_imu, IMU_QOS, raw=raw)
        node.create_subscription(Image, 'image', on_image, IMAGE_QOS, raw=raw)
    executor = _executor(executor_name)
    executor.add_node(node)
    ended = threading.Event()

    def answer() -> None:
        for _ in sys.stdin:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            got = latencies[:]
            del latencies[: len(got)]
            figures = {'cpu': usage.ru_utime + usage.ru_stime, 'latencies': got.tolist()}
            print(json.dumps(figures), flush=True)
        ended.set()

    threading.Thread(target=answer, daemon=True).start()
    while not ended.is_set():
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    node.destroy_node()
    try_shutdown()


def _controller(namespace: str) -> Any:
    from lnn_ros.nodes.controller_node import ControllerNode

    values = {
        'policy': str(share_directory() / 'policies' / 'car.safetensors'),
        # one frame has to do for a whole turn, and between its turns nothing comes
        'max_age.image': 60.0,
        'watchdog_timeout': 60.0,
    }
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    node = ControllerNode(namespace=namespace, parameter_overrides=overrides)
    node.trigger_configure()
    node.trigger_activate()
    return node


def _executor(name: str) -> Any:
    if name == 'events':
        from rclpy.experimental.events_executor import EventsExecutor

        return EventsExecutor()
    if name == 'lean':
        from lnn_ros.nodes.lean_executor import LeanExecutor

        return LeanExecutor()
    return rclpy.executors.SingleThreadedExecutor()


# the sender ---------------------------------------------------------------------------------------


class Opponent:
    """A contender's process, seen from the sender's side."""

    def __init__(self, node: Node, contender: tuple[str, str], namespace: str) -> None:
        self._contender = contender
        command = [*module_command('lnn_ros.nodes.bench'), *contender, namespace]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.imu = node.create_publisher(Imu, f'{namespace}/imu/data', IMU_QOS)
        self.image = node.create_publisher(Image, f'{namespace}/image', IMAGE_QOS)
        # nobody takes the commands, but their sender must have somebody to send them to
        node.create_subscription(TwistStamped, f'{namespace}/cmd_vel', lambda _: None, 1)

    def wait(self, seconds: float) -> None:
        """Wait until it is connected.

        Raises:
            RuntimeError: when that takes too long.
        """
        end = time.monotonic() + seconds
        while not (self.imu.get_subscription_count() and self.image.get_subscription_count()):
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError(f'{self._contender} does not listen')
            time.sleep(0.05)

    def ask(self) -> dict[str, Any]:
        """Return its CPU time in s and the latencies in ns since it was asked last."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write('\n')
        self._process.stdin.flush()
        figures: dict[str, Any] = json.loads(self._process.stdout.readline())
        return figures

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def turn(self, load: Load, seconds: float) -> Window:
        """Send messages at the load's rate; return what became of them."""
        self._send(Load('', 50.0, (64, 48)), 2)  # the controller needs a frame before it steps
        self._send(Load('', 100.0, None), 10)
        time.sleep(0.1)
        before = self.ask()
        count = max(round(seconds * load.rate), 1)
        self._send(load, count)
        time.sleep(0.1)
        after = self.ask()
        latencies = np.array(after['latencies'] or [np.nan]) / 1e3
        received = len(after['latencies'])
        cpu = (after['cpu'] - before['cpu']) / max(received, 1)
        p50, p99 = np.percentile(latencies, (50, 99))
        return Window(1e6 * cpu, float(p50), float(p99), count, received)

    def _send(self, load: Load, count: int) -> None:
        message: Any = Imu()
        publisher = self.imu
        if load.size:
            width, height = load.size
            message = Image(width=width, height=height, step=3 * width, encoding='rgb8')
            message.data = array('B', bytes(3 * width * height))
            publisher = self.image
        message.header.frame_id = 'sensor'
        begun = time.monotonic()
        for number in range(count):
            time.sleep(max(begun + number / load.rate - time.monotonic(), 0.0))
            stamp = message.header.stamp
            stamp.sec, stamp.nanosec = divmod(time.monotonic_ns(), NS_PER_S)
            publisher.publish(message)


@contextmanager
def _opponents() -> Iterator[dict[tuple[str, str], Opponent]]:
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    # as sim.launch.xml does; otherwise most of the large images would be lost
    profile = share_directory() / 'config' / 'fastdds.xml'
    os.environ.setdefault('FASTRTPS_DEFAULT_PROFILES_FILE', str(profile))
    rclpy.init()
    try:
        with ExitStack() as stack:
            node = Node('bench')
            stack.callback(node.destroy_node)
            opponents = {}
            for number, contender in enumerate(CONTENDERS):
                opponents[contender] = Opponent(node, contender, f'/contender_{number}')
                stack.callback(opponents[contender].close)
            for opponent in opponents.values():
                opponent.wait(60.0)
            yield opponents
    finally:
        try_shutdown()


def measure(seconds: float, repeats: int) -> list[dict[str, Any]]:
    """Return the rows of a result file, ratios first.

    A value is the median over the turns; low and high are the least and the greatest.

    Args:
        seconds: of a turn, one contender under one load.
        repeats: turns of each contender under each load.
    """
    turns: dict[tuple[str, tuple[str, str]], list[Window]] = {}
    with _opponents() as opponents:
        for _ in range(repeats):
            for load in LOADS:
                for contender, opponent in opponents.items():
                    window = opponent.turn(load, seconds)
                    turns.setdefault((load.name, contender), []).append(window)

    def row(name: str, metric: str, values: list[float], unit: str) -> dict[str, Any]:
        low, value, high = np.quantile(values, (0.0, 0.5, 1.0)).tolist()
        return {
            'name': name, 'metric': metric, 'value': value, 'low': low, 'high': high,
            'n': len(values), 'unit': unit,
        }  # fmt: skip

    rows = []
    for load in LOADS:
        latency_ratios = () if load.size else LATENCY_RATIOS  # frames bring no command
        for ratios, field in ((CPU_RATIOS, 'cpu_us'), (latency_ratios, 'p50_us')):
            for metric, above, below in ratios:
                pairs = zip(turns[load.name, above], turns[load.name, below], strict=True)
                values = [getattr(a, field) / getattr(b, field) for a, b in pairs]
                rows.append(row(load.name, metric, values, '1'))
        idle = IDLE['image' if load.size else 'imu']
        both = list(zip(turns[load.name, idle], turns[load.name, CONTENDERS[9]], strict=True))
        for metric, field in (('cpu_share_ours', 'cpu_us'), ('latency_share_ours', 'p50_us')):
            values = [1.0 - getattr(a, field) / getattr(b, field) for a, b in both]
            rows.append(row(load.name, metric, values, '1'))
    for (load_name, (kind, executor)), windows in turns.items():
        for metric in ('cpu_us', 'p50_us', 'p99_us'):
            values = [getattr(window, metric) for window in windows]
            rows.append(row(f'{load_name}/{kind}/{executor}', metric, values, 'us'))
        lost = [1.0 - window.received / window.sent for window in windows]
        rows.append(row(f'{load_name}/{kind}/{executor}', 'lost', lost, '1'))
    return rows


if __name__ == '__main__':
    contend(*sys.argv[1:])
