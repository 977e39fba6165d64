"""The nodes under test as the processes that users start, and a peer on the other side of DDS."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, Imu

from lnn_ros import share

MS = 1_000_000
BEST_EFFORT = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)


class Running:
    """A node in a process of its own; what it prints goes to a file."""

    def __init__(self, executable: str, arguments: list[str], log: Path, **env: str) -> None:
        self.log = log
        with log.open('w') as file:
            self.process = subprocess.Popen(
                [share.find_executable('lnn_ros', executable, os.environ), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the tests is theirs
                env={
                    **os.environ,
                    'PYTHONUNBUFFERED': '1',
                    'ROS_LOG_DIR': str(log.parent),
                    **env,
                },
            )

    def text(self) -> str:
        return self.log.read_text()

    def lives(self) -> bool:
        return self.process.poll() is None

    def end(self, number: signal.Signals = signal.SIGINT, seconds: float = 10.0) -> int:
        """Signal it (if it still runs) and return its exit code."""
        if self.lives():
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def end_by_force(self) -> None:
        if not self.lives():
            return
        try:
            self.end(seconds=5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            if tool := shutil.which('fastdds'):  # the shared memory of the dead, not of the living
                subprocess.run([tool, 'shm', 'clean'], stdout=subprocess.DEVNULL, check=False)


class Peer:
    """A node in this process with which a test talks to the node under test."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node('peer', context=self.context, start_parameter_services=False)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.stamp_ns = 100_000 * MS  # of the messages that `drive` sends
        self._clients: dict[str, Any] = {}
        self._publishers: dict[str, Any] = {}

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
        """Spin until `condition()` is true and return what it gave; fail after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f'waited {seconds} s in vain until {what}'
            self.executor.spin_once(timeout_sec=0.01)
        return value

    def collect(self, kind: Any, topic: str, qos: QoSProfile | int = 1000) -> list[Any]:
        """Return a list that fills with the messages of a topic."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def call(self, kind: Any, service: str, **request: Any) -> Any:
        if service not in self._clients:
            self._clients[service] = self.node.create_client(kind, service)
        client = self._clients[service]
        self.until(client.service_is_ready, f'{service} is there')
        future = client.call_async(kind.Request(**request))
        return self.until(
            lambda: future.done() and future.result(), f'{service} answers', seconds=15.0
        )

    def transition(self, label: str, node: str = '/controller') -> bool:
        number = getattr(Transition, f'TRANSITION_{label.upper()}')
        return self.call(
            ChangeState, f'{node}/change_state', transition=Transition(id=number)
        ).success

    def state(self, node: str = '/controller') -> str:
        return self.call(GetState, f'{node}/get_state').current_state.label

    def set_parameter(self, name: str, value: Any, node: str = '/controller') -> str:
        """Set a parameter of a node; return why it refused, '' if it did not."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        answer = self.call(SetParameters, f'{node}/set_parameters', parameters=[parameter])
        (result,) = answer.results
        assert result.successful or result.reason, 'refused without a reason'
        return '' if result.successful else result.reason

    def parameters(self, node: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the values and the descriptors of all parameters that rclpy did not add itself."""
        names = [
            name
            for name in self.call(ListParameters, f'{node}/list_parameters').result.names
            if not name.startswith(('qos_overrides.', 'use_sim_time', 'start_type_description'))
        ]
        values = self.call(GetParameters, f'{node}/get_parameters', names=names).values
        told = self.call(DescribeParameters, f'{node}/describe_parameters', names=names)
        return (
            dict(zip(names, map(parameter_value_to_python, values), strict=True)),
            dict(zip(names, told.descriptors, strict=True)),
        )

    # the sensors of a controller --------------------------------------------------------------

    def publisher(self, kind: Any, topic: str, qos: QoSProfile | int = BEST_EFFORT) -> Any:
        """Return a publisher on which somebody listens."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(kind, topic, qos)
        publisher = self._publishers[topic]
        self.until(publisher.get_subscription_count, f'somebody listens on {topic}')
        return publisher

    def send_imu(self, stamp_ns: int, gyro: float = 0.0, topic: str = 'imu/data') -> None:
        message = Imu()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1000 * MS)
        message.angular_velocity.z = gyro
        message.linear_acceleration.z = 9.81
        self.publisher(Imu, topic).publish(message)

    def send_image(
        self, stamp_ns: int, encoding: str = 'rgb8', padding: int = 0, topic: str = 'image'
    ) -> None:
        channels = {'mono8': 1, 'rgba8': 4, 'bgra8': 4}.get(encoding, 3)
        message = Image(height=48, width=64, encoding=encoding, step=64 * channels + padding)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1000 * MS)
        row = bytes(range(64 * channels)) if channels < 4 else bytes(64) * channels
        message.data = (row + b'\xff' * padding) * 48
        self.publisher(Image, topic).publish(message)

    def drive(
        self,
        until: Callable[[], Any],
        what: str,
        seconds: float = 10.0,
        namespace: str = '',
        **image: Any,
    ) -> Any:
        """Send a frame and ten IMU samples, 10 ms apart by their stamps, until it has an effect."""
        deadline = time.monotonic() + seconds
        while True:
            for i in range(10):
                self.stamp_ns += 10 * MS
                if i == 0:
                    self.send_image(self.stamp_ns - 1 * MS, topic=f'{namespace}image', **image)
                self.send_imu(self.stamp_ns, topic=f'{namespace}imu/data')
                self.executor.spin_once(timeout_sec=0.005)
                if value := until():
                    return value
            assert time.monotonic() < deadline, f'drove for {seconds} s in vain until {what}'


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a node: `start('controller_node', {'policy': ...}, '-r', '__ns:=/a')`."""
    started: list[Running] = []

    def start(
        executable: str, parameters: dict[str, Any], *ros_arguments: str, **env: str
    ) -> Running:
        number = len(started)
        file = tmp_path / f'parameters{number}.yaml'
        file.write_text(yaml.dump({'/**': {'ros__parameters': parameters}}))
        arguments = ['--ros-args', '--params-file', str(file), *ros_arguments]
        log = tmp_path / f'{executable}{number}.log'
        started.append(Running(executable, arguments, log, **env))
        return started[-1]

    yield start
    for running in started:
        running.end_by_force()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def policy() -> str:
    return str(share.share_directory() / 'policies/car.safetensors')


@pytest.fixture
def controller(
    start: Callable[..., Running], peer: Peer, policy: str
) -> Callable[..., tuple[Running, list[Any]]]:
    """Start an active controller; return it and the list of its commands."""

    def controller(
        *ros_arguments: str, kind: Any = TwistStamped, **parameters: Any
    ) -> tuple[Running, list[Any]]:
        commands = peer.collect(kind, 'cmd_vel')
        given = {'policy': policy, 'autostart': True, **parameters}
        running = start('controller_node', given, *ros_arguments)
        peer.until(lambda: peer.node.count_publishers('cmd_vel'), 'the controller is configured')
        peer.until(lambda: peer.state() == 'active', 'the controller is active')
        return running, commands

    return controller


@pytest.fixture
def diagnostics(peer: Peer) -> Callable[[], dict[str, str]]:
    """Return a function that waits for the next message on /diagnostics, as key -> value."""
    messages = peer.collect(DiagnosticArray, '/diagnostics')

    def next_one() -> dict[str, str]:
        messages.clear()
        peer.until(lambda: messages, 'diagnostics come')
        (status,) = messages[-1].status
        return {
            'name': status.name,
            'message': status.message,
            'level': str(int.from_bytes(status.level, 'little')),
            **{pair.key: pair.value for pair in status.values},
        }

    return next_one


# for the executors' tests: nodes in this process --------------------------------------------------

_DEADLINE = 10.0  # s; what is waited for takes milliseconds


@pytest.fixture(scope='module')
def ros():
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def node(ros):
    node = Node(f'subject_{time.monotonic_ns()}')
    yield node
    node.destroy_node()


@pytest.fixture
def other(ros):
    """Return a node that sends; nobody spins it."""
    node = Node(f'sender_{time.monotonic_ns()}')
    yield node
    node.destroy_node()


@pytest.fixture
def spin_until():
    def spin_until(executor, condition):
        end = time.monotonic() + _DEADLINE
        while not condition():
            assert time.monotonic() < end, 'in vain'
            executor.spin_once(timeout_sec=0.05)

    return spin_until


@pytest.fixture
def connected():
    def connected(publisher, subscriptions=1):
        end = time.monotonic() + _DEADLINE
        while publisher.get_subscription_count() < subscriptions:
            assert time.monotonic() < end, 'no discovery'
            time.sleep(0.01)

    return connected
