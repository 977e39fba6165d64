"""What the controller takes and sends over DDS, and on what terms."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.context import Context
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, Imu

from lnn_ros.nodes.controller_node import ControllerNode

MS = 1_000_000
RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


def moves(command: TwistStamped) -> bool:
    return command.twist.linear.x > 0.0


def is_safe(command: TwistStamped) -> bool:
    return command.twist == Twist()  # the shipped policy's safe command


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if '[ERROR]' in line or '[FATAL]' in line]


# quality of service -------------------------------------------------------------------------------


def test_every_endpoint_has_the_promised_quality_of_service(controller, peer) -> None:
    controller()
    subscriptions = peer.node.get_subscriptions_info_by_topic
    publishers = peer.node.get_publishers_info_by_topic
    for find, topic, kind, reliability in (
        (subscriptions, 'image', 'sensor_msgs/msg/Image', BEST_EFFORT),
        (subscriptions, 'imu/data', 'sensor_msgs/msg/Imu', BEST_EFFORT),
        (publishers, 'cmd_vel', 'geometry_msgs/msg/TwistStamped', RELIABLE),
        (publishers, 'image_taken', 'std_msgs/msg/Empty', RELIABLE),
        (publishers, '/diagnostics', 'diagnostic_msgs/msg/DiagnosticArray', RELIABLE),
    ):
        # an endpoint is discovered before the name of its node
        def names(find=find, topic=topic):
            return [endpoint.node_name for endpoint in find(topic)]

        peer.until(lambda names=names: names() == ['controller'], f'{topic} is there')
        (endpoint,) = find(topic)
        assert endpoint.topic_type == kind
        assert endpoint.qos_profile.reliability == reliability
        assert endpoint.qos_profile.durability == DurabilityPolicy.VOLATILE


def test_queues_are_as_deep_as_promised(policy) -> None:  # depth is not told over DDS
    context = Context()
    rclpy.init(
        args=['--ros-args', '-p', f'policy:={policy}', '-r', '__ns:=/depth'], context=context
    )
    node = ControllerNode(context=context)
    try:
        node.trigger_configure()
        depth = {s.topic_name: s.qos_profile.depth for s in node.subscriptions}
        assert depth['/depth/image'] == 1
        assert depth['/depth/imu/data'] == 50
        assert {p.topic_name: p.qos_profile.depth for p in node.publishers}['/depth/cmd_vel'] == 1
    finally:
        node.trigger_shutdown()
        node.destroy_node()
        context.try_shutdown()


def test_quality_of_service_can_be_overridden_and_a_mismatch_is_reported(controller, peer) -> None:
    node, commands = controller(
        **{
            'qos_overrides./image.subscription.reliability': 'reliable',
            'qos_overrides./image.subscription.depth': 3,
            'qos_overrides./cmd_vel.publisher.reliability': 'best_effort',
        }
    )
    (image,) = peer.node.get_subscriptions_info_by_topic('image')
    assert image.qos_profile.reliability == RELIABLE
    (cmd_vel,) = peer.node.get_publishers_info_by_topic('cmd_vel')
    assert cmd_vel.qos_profile.reliability == BEST_EFFORT
    peer.node.create_publisher(Image, 'image', QoSProfile(depth=1, reliability=BEST_EFFORT))
    peer.until(lambda: errors(node.text()), 'the mismatch is reported')
    (error,) = errors(node.text())
    assert 'image' in error and 'RELIABILITY' in error
    assert commands == []  # our own subscription is reliable


# messages -----------------------------------------------------------------------------------------


def test_all_encodings_are_taken_with_and_without_padded_rows(
    controller, peer, diagnostics
) -> None:
    node, commands = controller(diagnostics_period=0.05)
    for encoding in ('rgb8', 'bgr8', 'mono8', 'rgba8', 'bgra8'):
        for padding in (0, 13):
            commands.clear()
            peer.drive(
                lambda: len(commands) > 15 and moves(commands[-1]),
                f'the car moves on {encoding}',
                encoding=encoding,
                padding=padding,
            )
    told = diagnostics()
    assert int(told['received/image']) >= 10
    assert not [key for key in told if key.startswith('drop/image')]
    assert not errors(node.text())


def test_unknown_encoding_is_refused_by_name_and_the_node_drives_on(
    controller, peer, diagnostics
) -> None:
    node, commands = controller(diagnostics_period=0.05)
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    peer.send_image(peer.stamp_ns, encoding='yuv422_yuy2')
    peer.until(lambda: "encoding 'yuv422_yuy2' is not supported" in node.text(), 'it is reported')
    assert diagnostics()['drop/image/unreadable'] == '1'
    commands.clear()
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves again')


def test_image_whose_numbers_do_not_fit_is_refused_and_the_node_drives_on(
    controller, peer, diagnostics
) -> None:
    _, commands = controller(diagnostics_period=0.05)
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    wrong = [
        Image(height=48, width=64, encoding='rgb8', step=192, data=b''),
        Image(height=2**32 - 1, width=2**32 - 1, encoding='rgb8', step=2**32 - 1, data=b'abc'),
        Image(height=0, width=0, encoding='rgb8', step=0, data=b''),
        Image(height=48, width=64, encoding='rgb8', step=1, data=bytes(64 * 48 * 3)),
    ]
    for number, message in enumerate(wrong, 1):
        message.header.stamp.sec = 100
        peer.publisher(Image, 'image').publish(message)
        peer.until(
            lambda: diagnostics().get('drop/image/unreadable') == str(number),  # noqa: B023
            f'image {number} is refused',
        )
    commands.clear()
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves again')


@pytest.mark.parametrize('value', [math.nan, math.inf, 1e308], ids=str)
def test_no_imu_sample_gets_a_number_that_is_not_finite_onto_cmd_vel(
    controller, peer, value: float
) -> None:
    node, commands = controller()
    for _ in range(3):
        peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
        commands.append(TwistStamped())  # so that the next round waits for a new command
        peer.stamp_ns += 10_000_000
        peer.send_imu(peer.stamp_ns, gyro=value)
    peer.drive(lambda: moves(commands[-1]), 'the car moves again')
    for command in commands:
        vectors = (command.twist.linear, command.twist.angular)
        numbers = [getattr(vector, axis) for vector in vectors for axis in 'xyz']
        assert np.isfinite(numbers).all()
    assert node.lives()
    if not math.isfinite(value):
        assert 'is not finite, the sample is ignored' in node.text()


def test_stamps_of_another_clock_reset_and_do_not_end_it(controller, peer, diagnostics) -> None:
    node, commands = controller(diagnostics_period=0.05)
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    far = Imu()
    far.header.stamp.sec, far.header.stamp.nanosec = 2**31 - 1, 2**32 - 1
    peer.publisher(Imu, 'imu/data').publish(far)
    far.header.stamp.sec = -(2**31)
    peer.publisher(Imu, 'imu/data').publish(far)
    peer.until(lambda: 'reset/gap' in diagnostics(), 'the jump is noticed')
    commands.clear()
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves again')
    assert 'reset/clock_back' in diagnostics()
    assert node.lives()


# commands -----------------------------------------------------------------------------------------


def test_every_stamp_of_a_command_is_new_and_the_frame_is_the_base(controller, peer) -> None:
    _, commands = controller(base_frame='base_footprint')
    peer.drive(lambda: len(commands) > 30, 'commands come')
    stamps = [c.header.stamp.sec * 10**9 + c.header.stamp.nanosec for c in commands]
    assert stamps == sorted(set(stamps))
    assert abs(stamps[-1] - peer.node.get_clock().now().nanoseconds) < 10 * 10**9
    assert {c.header.frame_id for c in commands} == {'base_footprint'}


def test_commands_are_plain_twists_when_stamps_are_off(controller, peer) -> None:
    _, commands = controller(kind=Twist, enable_stamped_cmd_vel=False)
    peer.drive(lambda: commands and commands[-1].linear.x > 0.0, 'the car moves')
    (endpoint,) = peer.node.get_publishers_info_by_topic('cmd_vel')
    assert endpoint.topic_type == 'geometry_msgs/msg/Twist'


# watchdog -----------------------------------------------------------------------------------------


def test_watchdog_sends_the_safe_command_when_messages_stop_and_the_car_recovers(
    controller, peer
) -> None:
    node, commands = controller(watchdog_timeout=0.2)
    for _ in range(2):
        peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
        peer.until(lambda: is_safe(commands[-1]), 'the watchdog stops it', seconds=2.0)
        commands.clear()
        peer.until(lambda: len(commands) >= 2, 'the safe command is repeated', seconds=2.0)
        assert all(map(is_safe, commands))
    assert node.text().count('(watchdog_timeout), safe command sent') >= 2


def test_watchdog_is_silent_while_messages_come(controller, peer) -> None:
    node, commands = controller(watchdog_timeout=1.0)
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    said = node.text().count('(watchdog_timeout)')
    end = time.monotonic() + 1.5
    peer.drive(lambda: time.monotonic() > end, 'more than the time-out has passed')
    assert node.text().count('(watchdog_timeout)') == said


def test_watchdog_also_holds_when_only_the_other_stream_goes_on(controller, peer) -> None:
    _, commands = controller(watchdog_timeout=0.2)
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')

    def stopped() -> bool:
        peer.stamp_ns += 10_000_000
        peer.send_image(peer.stamp_ns)
        return is_safe(commands[-1])

    peer.until(stopped, 'the watchdog stops it', seconds=2.0)


def message(kind: type, ms: int, **fields: Any) -> bytes:
    message = kind(**fields)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(10**12 + ms * MS, 1000 * MS)
    return serialize_message(message)


@pytest.fixture
def in_process(ros, policy, monkeypatch) -> Iterator[Callable[..., Any]]:
    """Return what makes an active controller in this process, and the list of what it sends."""
    made = []

    def make(watchdog_timeout: float) -> Any:
        given = {'policy': policy, 'watchdog_timeout': watchdog_timeout}
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        # a namespace, as the next test must not find this one's services
        node = ControllerNode(namespace='in_process', parameter_overrides=overrides)
        made.append(node)
        node.trigger_configure()
        node.trigger_activate()
        sent: list[list[float]] = []
        monkeypatch.setattr(node._commands, 'publish', lambda values: sent.append(values.tolist()))
        node._on_image(message(Image, 1, height=1, width=1, step=1, encoding='mono8', data=b'x'))
        for ms in range(2, 10):
            node._on_imu(message(Imu, ms))
        return node, sent

    yield make
    for node in made:
        node.trigger_shutdown()
        node.destroy_node()


@pytest.mark.parametrize('hangs', [False, True])
def test_watchdog_waits_for_a_command_that_is_being_made_unless_that_hangs(
    in_process, monkeypatch, hangs
) -> None:
    node, sent = in_process(60.0 if not hangs else 1.0)
    command = node._controller.engine.command
    silence = threading.Thread(target=node._on_silence, args=(1.0,))

    def interrupted() -> Any:
        silence.start()
        if hangs:
            silence.join(5.0)
            assert not silence.is_alive(), 'the safe command was held up'
        else:
            time.sleep(0.2)
        return command() * 0.0 + 1.0

    monkeypatch.setattr(node._controller.engine, 'command', interrupted)
    sent.clear()
    node._on_imu(message(Imu, 300))  # so long after the last that the slew lets it go to 1
    silence.join(5.0)
    safe = node._controller.limiter.safe.tolist()
    assert safe in sent and len(sent) == 2
    if not hangs:
        assert sent == [[1.0, 1.0], safe]
        monkeypatch.setattr(node._controller.engine, 'command', command)
        node._on_imu(message(Imu, 310))
        assert sent[-1] == safe  # the slew begins there


def test_command_that_took_longer_than_the_watchdog_waits_is_not_sent(
    in_process, monkeypatch
) -> None:
    node, sent = in_process(0.2)

    def late() -> Any:
        time.sleep(0.3)
        return np.ones(2)

    monkeypatch.setattr(node._controller.engine, 'command', late)
    sent.clear()
    node._on_imu(message(Imu, 300))
    assert set(map(tuple, sent)) == {tuple(node._controller.limiter.safe.tolist())}
