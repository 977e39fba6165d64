"""The simulator as a controller meets it: topics, units, time and faults, over DDS."""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import TwistStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, Imu
from std_msgs.msg import Empty

from lnn_ros import share
from lnn_ros.sim.track import Track

S = 1_000_000_000
BEST_EFFORT = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)


def ns(stamp: Any) -> int:
    return stamp.sec * S + stamp.nanosec


def stamps(messages: list[Any]) -> list[int]:
    return [ns(message.header.stamp) for message in messages]


def turn_rate(imu: list[Imu]) -> float:
    """Return the mean of the newest ten readings about the vertical axis."""
    return float(np.mean([sample.angular_velocity.z for sample in imu[-10:]]))


@pytest.fixture
def simulator(start) -> Callable[..., Any]:
    return lambda *ros_arguments, **parameters: start('simulator_node', parameters, *ros_arguments)


@pytest.fixture
def steer(peer) -> Callable[[float, float], None]:
    """Return a function that publishes a command."""

    def steer(linear: float, angular: float) -> None:
        message = TwistStamped()
        message.twist.linear.x, message.twist.angular.z = linear, angular
        peer.publisher(TwistStamped, 'cmd_vel', 1).publish(message)

    return steer


# sensors ------------------------------------------------------------------------------------------


def test_sensors_keep_to_the_conventions_of_ros(simulator, peer) -> None:
    imu = peer.collect(Imu, 'imu/data', BEST_EFFORT)
    images = peer.collect(Image, 'image', BEST_EFFORT)
    infos = peer.collect(CameraInfo, 'camera_info', BEST_EFFORT)
    simulator(image_width=96, image_height=40)
    peer.until(lambda: len(imu) > 50 and len(images) > 10 and len(infos) > 10, 'sensors speak')

    assert {sample.header.frame_id for sample in imu} == {'imu_link'}
    assert {sample.orientation_covariance[0] for sample in imu} == {-1.0}
    force = np.array([[getattr(s.linear_acceleration, a) for a in 'xyz'] for s in imu])
    rate = np.array([[getattr(s.angular_velocity, a) for a in 'xyz'] for s in imu])
    assert np.abs(force.mean(axis=0) - (0.0, 0.0, 9.81)).max() < 0.3  # REP 145: +g at rest
    assert np.abs(rate.mean(axis=0)).max() < 0.05
    covariance = imu[0].linear_acceleration_covariance
    assert 0.5 < force[:, 0].std() / math.sqrt(covariance[0]) < 2.0

    for image in images:
        assert image.header.frame_id == 'camera_optical_frame'
        assert (image.width, image.height, image.encoding, image.step) == (96, 40, 'rgb8', 288)
        assert len(image.data) == 288 * 40
    assert np.ptp(np.frombuffer(images[-1].data, np.uint8)) > 50, 'something is to be seen'
    for info in infos:
        assert info.header.frame_id == 'camera_optical_frame'
        assert (info.width, info.height) == (96, 40)
        assert (info.k[2], info.k[5]) == (47.5, 19.5)
        assert info.k[0] == info.k[4] == info.p[0] == info.p[5] > 0.0
    assert set(stamps(infos[2:-2])) <= set(stamps(images)), 'every info goes with an image'


def test_sensor_topics_are_best_effort_and_relative_and_the_clock_is_not(simulator, peer) -> None:
    simulator('-r', '__ns:=/car1')
    find = peer.node.get_publishers_info_by_topic
    for topic, kind in (
        ('/car1/image', 'sensor_msgs/msg/Image'),
        ('/car1/camera_info', 'sensor_msgs/msg/CameraInfo'),
        ('/car1/imu/data', 'sensor_msgs/msg/Imu'),
        ('/clock', 'rosgraph_msgs/msg/Clock'),
    ):
        peer.until(lambda t=topic: find(t), f'{topic} is there')
        (endpoint,) = find(topic)
        assert endpoint.topic_type == kind
        assert endpoint.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    peer.until(lambda: peer.node.count_subscribers('/car1/cmd_vel') == 1, 'it listens')


def test_stamps_are_capture_times_that_increase_while_latency_delivers_late(
    simulator, peer
) -> None:
    latency, last = 0.2, [0]
    ages: list[float] = []
    newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    clock = peer.collect(Clock, '/clock', newest)
    imu = peer.collect(Imu, 'imu/data', BEST_EFFORT)

    def on_image(message: Image) -> None:
        stamp = ns(message.header.stamp)
        assert stamp > last[0]
        last[0] = stamp
        if clock:
            ages.append((ns(clock[-1].clock) - stamp) / S)

    peer.node.create_subscription(Image, 'image', on_image, BEST_EFFORT)
    simulator(latency=latency, jitter=0.5)
    peer.until(lambda: len(ages) > 12 and len(imu) > 50, 'frames come')
    # The clock may be read a few ticks early, and later when this process is busy.
    assert latency - 0.05 < np.median(ages) < latency + 0.3
    intervals = np.diff(stamps(imu))
    assert intervals.min() > 0
    assert intervals.min() < 0.8e7 and intervals.max() > 1.2e7, 'jitter varies the 10 ms'
    times = [ns(message.clock) for message in clock]
    assert times == sorted(times)


# commands -----------------------------------------------------------------------------------------


def test_car_turns_as_commanded_ignores_nonsense_and_stops_without_commands(
    simulator, peer, steer
) -> None:
    node = simulator(cmd_vel_timeout=0.3)
    imu = peer.collect(Imu, 'imu/data', BEST_EFFORT)
    for angular in (1.0, -1.0):

        def follows(angular: float = angular) -> bool:
            steer(1.0, angular)
            return len(imu) > 10 and turn_rate(imu) / angular > 0.7

        peer.until(follows, f'the gyroscope reads {angular} rad/s')

    def is_reported() -> bool:
        steer(math.nan, math.inf)
        return 'is not finite, ignored' in node.text()

    peer.until(is_reported, 'the command that is not finite is reported')
    # such commands do not keep the car going either
    count = len(imu)
    peer.until(lambda: len(imu) > count + 20 and abs(turn_rate(imu)) < 0.05, 'the car has stopped')
    assert node.lives()


def test_speed_rises_when_commanded_forward(simulator, peer, steer) -> None:
    simulator()
    imu = peer.collect(Imu, 'imu/data', BEST_EFFORT)
    peer.until(lambda: len(imu) > 10, 'sensors speak')

    def accelerates() -> bool:
        steer(1.5, 0.0)
        return float(np.mean([s.linear_acceleration.x for s in imu[-5:]])) > 0.7

    peer.until(accelerates, 'the force points forward')


# time ---------------------------------------------------------------------------------------------


def test_factor_1_is_real_time(simulator, peer) -> None:
    seen: list[tuple[float, float]] = []
    peer.node.create_subscription(
        Clock, '/clock', lambda m: seen.append((time.monotonic(), ns(m.clock) / S)), BEST_EFFORT
    )
    simulator(real_time_factor=1.0)
    # The first picture takes a while, and is caught up with.
    peer.until(lambda: seen and seen[-1][1] > 3.0, 'two seconds have passed')
    first = len(seen)
    peer.until(lambda: seen[-1][1] > 4.5, 'some more have passed')
    wall, simulated = np.subtract(seen[-1], seen[first])
    assert 0.3 < simulated / wall < 2.0  # as wide as a crowded machine needs; lock-step is 5 to 10


def test_lock_step_waits_for_the_answer_to_every_sample(simulator, peer, steer) -> None:
    imu = peer.collect(Imu, 'imu/data', BEST_EFFORT)
    peer.collect(Image, 'image', BEST_EFFORT)
    publisher = peer.node.create_publisher(TwistStamped, 'cmd_vel', 1)
    simulator(real_time_factor=0.0, command_deadline=2.0)
    peer.until(lambda: imu and publisher.get_subscription_count(), 'it starts', seconds=15.0)
    for _ in range(5):
        count = len(imu)
        patience = time.monotonic() + 0.1  # ten samples, were it real time
        while time.monotonic() < patience:
            peer.executor.spin_once(timeout_sec=0.01)
        assert len(imu) == count
        steer(1.0, 0.0)
        peer.until(lambda n=count: len(imu) == n + 1, 'the next sample comes')


def test_lock_step_waits_until_each_frame_was_taken(simulator, peer) -> None:
    peer.collect(Imu, 'imu/data', BEST_EFFORT)
    images = peer.collect(Image, 'image', BEST_EFFORT)
    peer.node.create_publisher(TwistStamped, 'cmd_vel', 1)
    taken = peer.node.create_publisher(Empty, 'image_taken', 10)
    # IMU samples are 1 s apart: what holds the 30 frames between two of them is the frames' answer
    simulator(real_time_factor=0.0, imu_rate=1.0, command_deadline=5.0)
    peer.until(lambda: images and taken.get_subscription_count(), 'it starts', seconds=15.0)
    for _ in range(5):
        count = len(images)
        patience = time.monotonic() + 0.1
        while time.monotonic() < patience:
            peer.executor.spin_once(timeout_sec=0.01)
        assert len(images) == count
        taken.publish(Empty())
        peer.until(lambda n=count: len(images) == n + 1, 'the next frame comes', seconds=3.0)


def test_lock_step_counts_the_commands_that_do_not_come(simulator, peer, tmp_path: Path) -> None:
    imu = peer.collect(Imu, 'imu/data', BEST_EFFORT)
    peer.collect(Image, 'image', BEST_EFFORT)
    peer.node.create_publisher(TwistStamped, 'cmd_vel', 1)
    node = simulator(real_time_factor=0.0, command_deadline=0.02, record=str(tmp_path))
    peer.until(lambda: len(imu) >= 10, 'samples come all the same')
    assert node.end() == 0
    with np.load(tmp_path / 'simulator.npz') as record:
        assert record['missed'] >= 9
    assert 'no command for the IMU sample within 0.02 s' in node.text()


def test_lock_step_waits_for_a_controller_and_can_be_ended_meanwhile(simulator, peer) -> None:
    clock = peer.collect(Clock, '/clock', BEST_EFFORT)
    node = simulator(real_time_factor=0.0)
    peer.until(lambda: peer.node.count_publishers('imu/data'), 'it is there')
    assert node.end(signal.SIGTERM) == 0
    assert clock == []


def test_lock_step_finds_a_controller_on_a_remapped_topic(simulator, peer) -> None:
    imu = peer.collect(Imu, 'imu/data', BEST_EFFORT)
    peer.collect(Image, 'image', BEST_EFFORT)
    peer.node.create_publisher(TwistStamped, 'base/cmd_vel', 1)
    simulator('-r', 'cmd_vel:=base/cmd_vel', real_time_factor=0.0, command_deadline=0.02)
    peer.until(lambda: imu, 'it starts')


def test_slow_motion_can_be_ended_at_once(simulator, peer) -> None:
    node = simulator(real_time_factor=0.01, imu_rate=1.0, camera_rate=0.5)  # 100 s to a sample
    peer.until(lambda: peer.node.count_publishers('imu/data'), 'it is there')
    peer.parameters('/simulator')
    assert node.end(seconds=5.0) == 0


# parameters and record ----------------------------------------------------------------------------


def test_declared_parameters_are_those_of_the_shipped_yaml_and_described(simulator, peer) -> None:
    simulator()
    values, descriptors = peer.parameters('/simulator')
    text = (share.share_directory() / 'config/simulator.yaml').read_text()
    shipped = yaml.safe_load(text)['/**']['ros__parameters']
    assert values == shipped
    assert {n: type(v) for n, v in values.items()} == {n: type(v) for n, v in shipped.items()}
    for name, descriptor in descriptors.items():
        assert len(descriptor.description) > 5, name
        assert descriptor.read_only, name


def test_bad_parameters_end_it_with_one_line_that_names_them(simulator, tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({'world': 'boat'}, 'world'),
        ({'seed': -1}, 'seed'),
        ({'camera_rate': 10}, 'camera_rate'),
        ({'drop': math.nan}, 'drop'),
        ({'imu_rate': 500.0, 'jitter': 0.9}, 'jitter'),
        ({'record': str(tmp_path / 'file' / 'x')}, 'file'),
    ]
    nodes = [simulator(**parameters) for parameters, _ in wrong]
    for node, (parameters, name) in zip(nodes, wrong, strict=True):
        assert node.process.wait(20.0) == 1, parameters
        lines = node.text().splitlines()
        assert len(lines) == 1, lines
        assert name in lines[0]


def test_seed_decides_the_track(simulator, peer, tmp_path: Path) -> None:
    node = simulator(seed=5, real_time_factor=0.0, record=str(tmp_path))
    peer.until(lambda: peer.node.count_publishers('image'), 'it is there')
    assert node.end(seconds=20.0) == 0
    with np.load(tmp_path / 'simulator.npz') as record:
        assert np.array_equal(record['centre'], Track(5).centre)
        assert not np.array_equal(record['centre'], Track(6).centre)


def test_messages_are_lost_as_often_as_asked_and_the_record_says_so(
    simulator, peer, tmp_path: Path
) -> None:
    clock = peer.collect(Clock, '/clock', BEST_EFFORT)
    node = simulator(real_time_factor=20.0, drop=0.4, record=str(tmp_path))
    peer.until(lambda: clock and clock[-1].clock.sec >= 9, 'time passes', seconds=20.0)
    assert node.end() == 0
    with np.load(tmp_path / 'simulator.npz') as record:
        names, counts = record['count_names'].tolist(), record['counts'].tolist()
    count = dict(zip(names, counts, strict=True))
    imu, images = count['imu'] + count['imu lost'], count['image'] + count['image lost']
    assert imu > 700 and 0.27 < images / imu < 0.33
    assert abs(count['imu lost'] / imu - 0.4) < 0.06
    assert abs(count['image lost'] / images - 0.4) < 0.12
