"""Node: a MuJoCo world behind the topics that a real robot would have.

Publishes /clock, `image`, `camera_info` and `imu/data`, takes `cmd_vel` and `image_taken`. It owns
simulated time, so it never uses it: its own waiting is on the wall clock.

With `real_time_factor` 0 it runs in lock-step: after each IMU sample, simulated time stands still
until the command that answers it is here, and after each frame until `image_taken` says that the
controller has it, so a slow machine gives the same drive as a fast one. Where `command_deadline`
passes before the answer, that is counted. It needs a controller that answers IMU samples; for one
that does not publish `image_taken` frames are sent without a wait, and it may miss some.

There is one /clock in a ROS domain, so run one simulator in each.
"""

from __future__ import annotations

import math
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TwistStamped
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, Imu
from std_msgs.msg import Empty

from lnn_ros.nodes.parameters import Parameter, declare
from lnn_ros.nodes.run_log import RunLog
from lnn_ros.nodes.running import EXECUTOR, Stop, run
from lnn_ros.sim.car import ACCEL_NOISE, GYRO_NOISE, CarWorld
from lnn_ros.sim.episode import LaneScore
from lnn_ros.sim.expert import PurePursuit
from lnn_ros.sim.sensors import Stream, deliveries
from lnn_ros.timing import NS_PER_S

# fmt: off
PARAMETERS = (
    Parameter('world', 'car', 'What is simulated; there is: car'),
    Parameter('seed', 1, 'Of the track, the noise, the jitter and the drops', (0, 2**31 - 1)),
    Parameter('camera_rate', 30.0, 'Frames per second, Hz', (0.1, 200)),
    Parameter('imu_rate', 100.0, 'IMU samples per second, Hz', (1, 500)),
    Parameter('jitter', 0.0, 'Every sampling interval is multiplied by 1 + jitter * U(-1, 1)',
              (0, 0.95)),
    Parameter('drop', 0.0, 'Probability that a frame or an IMU sample is lost', (0, 0.95)),
    Parameter('latency', 0.0, "From a frame's capture to its delivery, s of simulated time",
              (0, 1)),
    Parameter('image_width', 64, 'Pixels', (8, 1920)),
    Parameter('image_height', 48, 'Pixels', (8, 1080)),
    Parameter('real_time_factor', 1.0,
              'Simulated seconds per second; 0: lock-step, as fast as the commands come', (0, 100)),
    Parameter('command_deadline', 1.0,
              'Lock-step: longest wait for the answer to a sample or a frame, s of real time',
              (0.01, 60)),
    Parameter('cmd_vel_timeout', 0.5,
              'The car stops when the last command is older, s of simulated time', (0.01, 60)),
    Parameter('duration', 0.0,
              'Ends this long after the first command, s of simulated time; 0: never', (0, 1e6)),
    EXECUTOR,
    Parameter('record', '', 'Folder to which simulator.npz is written at the end; empty: none'),
)
# fmt: on


class SimulatorNode(Node):
    """One world, its sensors and its clock."""

    def __init__(self, **options: Any) -> None:
        super().__init__('simulator', **options)
        declare(self, PARAMETERS)
        value = {
            parameter.name: self.get_parameter(parameter.name).value for parameter in PARAMETERS
        }
        if value['world'] != 'car':
            raise ValueError(f"parameter world is '{value['world']}', there is only 'car'")
        self._value = value
        self._world = CarWorld(value['seed'], value['image_width'], value['image_height'])
        streams = {
            'image': Stream(value['camera_rate'], value['jitter'], value['drop'], value['latency']),
            'imu': Stream(value['imu_rate'], value['jitter'], value['drop']),
        }
        self._events = deliveries(streams, self._world.time_ns, value['seed'])
        self._expert = PurePursuit()
        self._score = LaneScore()
        self._twist = (0.0, 0.0)
        self._answers = {'image': 0, 'imu': 0}
        self._commanded_ns = 0  # simulated time of the last command
        self._driving_since_ns = 0
        self._judged_ns = 0
        self._imu_published = 0.0  # wall time
        self._missed = 0
        self._counts = dict.fromkeys(('image', 'image lost', 'imu', 'imu lost'), 0)
        self._latencies = array('d')
        self._frames: list[np.ndarray] = []
        self._log: RunLog | None = None
        if value['record']:
            columns = ('time', 'x', 'y', 'yaw', 'speed', 'lateral', 's', 'in_lane', 'linear_x',
                       'angular_z', 'expert_linear_x', 'expert_angular_z')  # fmt: skip
            self._log = RunLog(Path(value['record']) / 'simulator.npz', columns)

        overridable = QoSOverridingOptions.with_default_policies()
        sensor = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._clock_publisher = self.create_publisher(Clock, '/clock', sensor)
        self._image_publisher = self.create_publisher(
            Image, 'image', sensor, qos_overriding_options=overridable
        )
        self._info_publisher = self.create_publisher(
            CameraInfo, 'camera_info', sensor, qos_overriding_options=overridable
        )
        self._imu_publisher = self.create_publisher(
            Imu, 'imu/data', sensor, qos_overriding_options=overridable
        )
        command = self.create_subscription(
            TwistStamped, 'cmd_vel', self._on_command, 1, qos_overriding_options=overridable
        )
        taken = self.create_subscription(Empty, 'image_taken', self._on_image_taken, 10)
        self._command_topic, self._taken_topic = command.topic_name, taken.topic_name
        self._imu_message, self._info_message = self._fixed_fields()

    # command in -----------------------------------------------------------------------------------

    def _on_command(self, message: TwistStamped) -> None:
        twist = (message.twist.linear.x, message.twist.angular.z)
        if not (math.isfinite(twist[0]) and math.isfinite(twist[1])):
            self.get_logger().error(
                f'cmd_vel: {twist} is not finite, ignored', throttle_duration_sec=2.0
            )
            return
        now_ns = self._world.time_ns
        if not self._driving_since_ns:
            self._driving_since_ns = self._judged_ns = now_ns
            self.get_logger().info('first command received')
        self._twist = twist
        self._world.command(*twist)
        self._answers['imu'] += 1
        self._commanded_ns = now_ns
        if self._imu_published:
            self._latencies.append(time.perf_counter() - self._imu_published)
            self._imu_published = 0.0

    def _on_image_taken(self, message: Empty) -> None:
        self._answers['image'] += 1

    # the world's time -----------------------------------------------------------------------------

    def simulate(self, executor: Executor, stop: Stop) -> None:
        """Run until asked to stop or `duration` is over."""
        lock_step = self._value['real_time_factor'] == 0.0
        if lock_step:
            self._wait_for_controller(executor, stop)
        duration = self._value['duration']
        start_ns, start = self._world.time_ns, time.monotonic()
        announced = 0
        samples: dict[tuple[str, int], Any] = {}
        for event in self._events:
            if not lock_step:
                elapsed = (event.time_ns - start_ns) / NS_PER_S
                wall = start + elapsed / self._value['real_time_factor']
                self._spin_until(executor, stop, wall)
            if stop:
                return
            self._world.advance_to(event.time_ns)
            key = (event.stream, event.stamp_ns)
            if event.kind == 'capture':
                is_image = event.stream == 'image'
                samples[key] = self._world.image() if is_image else self._world.imu()
                continue
            sample = samples.pop(key)
            if event.kind == 'drop':
                self._counts[f'{event.stream} lost'] += 1
                continue
            self._counts[event.stream] += 1
            self._clock_publisher.publish(Clock(clock=to_time(event.time_ns)))
            if event.stream == 'image':
                self._publish_image(sample, event.stamp_ns)
                if lock_step and self.count_publishers(self._taken_topic):
                    self._wait_for_answer('image', executor, stop)
                continue
            self._publish_imu(sample, event.stamp_ns)
            if lock_step:
                self._wait_for_answer('imu', executor, stop)
            self._judge()
            driven = self._score.duration
            if int(driven) > announced:
                announced = int(driven)
                of = f' of {duration:.0f}' if duration else ''
                self.get_logger().info(
                    f'{announced}{of} s, {self._score.progress:.1f} m, '
                    f'left the lane {self._score.leaves} times'
                )
            if 0.0 < duration <= driven:
                return

    def _wait_for_controller(self, executor: Executor, stop: Stop) -> None:
        while not stop:
            heard = self._imu_publisher.get_subscription_count()
            if heard and self.count_publishers(self._command_topic):
                return
            self.get_logger().info(
                'waiting for a controller on imu/data and cmd_vel',
                throttle_duration_sec=5.0, skip_first=True,
            )  # fmt: skip
            executor.spin_once(timeout_sec=0.05)

    def _wait_for_answer(self, stream: str, executor: Executor, stop: Stop) -> None:
        before = self._answers[stream]
        deadline = time.monotonic() + self._value['command_deadline']
        while self._answers[stream] == before and not stop:
            left = deadline - time.monotonic()
            if left <= 0.0:
                self._missed += 1
                answer = 'image_taken for the frame'
                if stream == 'imu':
                    answer = 'command for the IMU sample'
                self.get_logger().warning(
                    f'no {answer} within {self._value["command_deadline"]} s',
                    throttle_duration_sec=5.0,
                )
                return
            executor.spin_once(timeout_sec=min(left, 0.1))

    def _spin_until(self, executor: Executor, stop: Stop, wall: float) -> None:
        while not stop:
            left = wall - time.monotonic()
            executor.spin_once(timeout_sec=min(max(left, 0.0), 0.1))
            if left <= 0.0:
                return

    def _judge(self) -> None:
        """Score and record the time since the last IMU sample; stop a car that nobody commands."""
        if not self._driving_since_ns:
            return
        now_ns, truth = self._world.time_ns, self._world.truth()
        self._score.add(truth, (now_ns - self._judged_ns) / NS_PER_S)
        self._judged_ns = now_ns
        if now_ns - self._commanded_ns > self._value['cmd_vel_timeout'] * NS_PER_S:
            self._twist = (0.0, 0.0)
            self._world.command(*self._twist)
        if self._log is not None:
            self._log.add(
                now_ns / NS_PER_S, truth.x, truth.y, truth.yaw, truth.speed, truth.lateral, truth.s,
                truth.in_lane, *self._twist, *self._expert(self._world),
            )  # fmt: skip

    # sensors out ----------------------------------------------------------------------------------

    def _fixed_fields(self) -> tuple[Imu, CameraInfo]:
        imu = Imu()
        imu.header.frame_id = 'imu_link'
        imu.orientation_covariance[0] = -1.0  # REP 145: there is no orientation
        imu.angular_velocity_covariance[::4] = np.full(3, GYRO_NOISE**2)
        imu.linear_acceleration_covariance[::4] = np.full(3, ACCEL_NOISE**2)
        width, height = self._value['image_width'], self._value['image_height']
        fx, fy, cx, cy = self._world.camera_info()
        info = CameraInfo(width=width, height=height, distortion_model='plumb_bob')
        info.header.frame_id = 'camera_optical_frame'
        info.d = [0.0] * 5
        info.k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
        return imu, info

    def _publish_image(self, pixels: np.ndarray, stamp_ns: int) -> None:
        height, width, _ = pixels.shape
        message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
        message.header.frame_id = 'camera_optical_frame'
        message.header.stamp = self._info_message.header.stamp = to_time(stamp_ns)
        message.data = array('B', pixels.tobytes())  # an ndarray would be copied byte by byte
        self._image_publisher.publish(message)
        self._info_publisher.publish(self._info_message)
        if self._log is not None and self._counts['image'] % 30 == 1 and len(self._frames) < 300:
            self._frames.append(pixels)

    def _publish_imu(self, sample: tuple[np.ndarray, np.ndarray], stamp_ns: int) -> None:
        message = self._imu_message
        message.header.stamp = to_time(stamp_ns)
        for vector, values in zip(
            (message.angular_velocity, message.linear_acceleration), sample, strict=True
        ):
            vector.x, vector.y, vector.z = values.tolist()
        self._imu_published = time.perf_counter()
        self._imu_publisher.publish(message)

    # the end --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Say how it went and write the record."""
        score = self._score
        self.get_logger().info(
            f'drove {score.progress:.1f} m in {score.duration:.1f} s, mean offset '
            f'{100 * score.mean_error:.1f} cm, left the lane {score.leaves} times, '
            f'{self._missed} answers missed'
        )
        if self._log is not None:
            try:
                self._log.save(
                    leaves=score.leaves,
                    progress=score.progress,
                    duration=score.duration,
                    mean_error=score.mean_error,
                    max_error=score.max_error,
                    missed=self._missed,
                    count_names=list(self._counts),
                    counts=list(self._counts.values()),
                    latency=np.array(self._latencies),
                    frames=np.array(self._frames),
                    centre=self._world.track.centre,
                    top_view=self._world.top_view(1200),
                    chase_view=self._world.chase_view(640, 480),
                )
            except OSError as error:
                self.get_logger().error(f'record: {error}')
        self._world.close()


def to_time(stamp_ns: int) -> Time:
    """Return integer nanoseconds as a message."""
    sec, nanosec = divmod(stamp_ns, NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def live(node: SimulatorNode, executor: Executor, stop: Stop) -> int:
    """Run the node until it is asked to stop; return the exit code."""
    node.simulate(executor, stop)
    node.finish()
    return 0


def main(args: list[str] | None = None) -> None:
    run(SimulatorNode, live, args)


if __name__ == '__main__':
    main()
