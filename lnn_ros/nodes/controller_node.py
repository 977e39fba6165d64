"""Lifecycle node: camera and IMU in, motor commands out.

Reads top to bottom as the node's life: parameters, configure, activate, message in, command out,
deactivate. What happens between message and command is in `lnn_ros.controller`.

Clocks: intervals come from header stamps alone; a command is stamped with the node's clock (ROS
time, simulated or not); the watchdog and the diagnostics' timer run on the monotonic clock.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import Image, Imu
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from lnn_ros import policy as policy_file
from lnn_ros.controller import Command, Controller, Settings
from lnn_ros.nodes.cdr import MessageError, read_image, read_imu
from lnn_ros.nodes.commands import CommandPublisher, limit_parameters, narrowed_limits
from lnn_ros.nodes.diagnostics import Diagnostics
from lnn_ros.nodes.parameters import Parameter, declare, warn_of_unknown
from lnn_ros.nodes.run_log import RunLog
from lnn_ros.nodes.running import EXECUTOR, Stop, run
from lnn_ros.observation import ObservationError
from lnn_ros.policy import Policy
from lnn_ros.safety import Mode, Watchdog
from lnn_ros.timing import NS_PER_S

# fmt: off
PARAMETERS = (
    Parameter('policy', '', 'Path of the policy file (.safetensors)'),
    Parameter('autostart', False, 'Configure and activate at start, without a lifecycle manager'),
    Parameter('max_gap', 0.5,
              'Longest interval that is integrated, s; a longer one resets the state', (0.001, 60)),
    Parameter('jump_threshold', 1.0,
              'A stamp further back than this resets the state, s', (0.001, 3600)),
    Parameter('max_age.image', 1.0,
              'How far the frame may be behind the newest message, s', (0.001, 60)),
    Parameter('max_age.imu', 0.2,
              'How far the IMU sample may be behind the newest message, s', (0.001, 60)),
    Parameter('warmup_steps', 5,
              'Trigger messages after a reset whose command is not used', (0, 10000)),
    Parameter('watchdog_timeout', 0.5,
              'Silence after which the safe command is sent, s of real time', (0.01, 60)),
    Parameter('base_frame', 'base_link', 'frame_id of the commands'),
    Parameter('enable_stamped_cmd_vel', True, 'Publish TwistStamped; false publishes Twist'),
    Parameter('diagnostics_period', 1.0,
              'Time between messages on /diagnostics, s of real time', (0.05, 3600)),
    EXECUTOR,
    Parameter('record', '', 'Folder to which controller.npz is written at the end; empty: none'),
)
# fmt: on


class ControllerNode(LifecycleNode):
    """Subscribes `image` and `imu/data`, publishes `cmd_vel`, `image_taken`, `/diagnostics`."""

    _controller: Controller
    _commands: CommandPublisher
    _watchdog: Watchdog

    def __init__(self, **options: Any) -> None:
        super().__init__('controller', **options)
        declare(self, PARAMETERS)
        self.is_finalized = False
        self._active = False
        self._mode = Mode.WAITING
        self._longest_interval = 0.0
        self._log: RunLog | None = None
        # Held while a message is dealt with: a safe command of the watchdog in the midst of it
        # would be forgotten by the slew, and the command that comes out could be a jump.
        self._turn = threading.Lock()
        self._undo: list[Callable[[], object]] = []  # destroys what on_configure made
        self._limit_names: list[str] = []
        self.add_on_set_parameters_callback(self._judge_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)

    # configure ------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._configure()
        except Exception as error:  # rclpy would drop it without a word
            self.get_logger().error(f'not configured: {error}')
            self._release()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def _configure(self) -> None:
        path = self._value('policy')
        if not path:
            raise ValueError('parameter policy is empty, set it to the path of a .safetensors file')
        policy = policy_file.load(Path(path))
        contract = policy.contract
        self._controller = Controller(
            policy,
            Settings(
                max_gap=self._value('max_gap'),
                jump_threshold=self._value('jump_threshold'),
                max_age={'image': self._value('max_age.image'), 'imu': self._value('max_age.imu')},
                warmup_steps=self._value('warmup_steps'),
            ),
        )
        parameters = [p for output in contract.outputs for p in limit_parameters(output)]
        declare(self, parameters)
        warn_of_unknown(self)
        self._limit_names = [parameter.name for parameter in parameters]
        self._apply_parameters([])
        if 'image' in contract.streams:  # before cmd_vel: who has found that has found this, too
            self._image_taken = self.create_publisher(Empty, 'image_taken', 10)
            self._undo.append(partial(self.destroy_publisher, self._image_taken))
        self._commands = CommandPublisher(
            self, policy, self._value('base_frame'), self._value('enable_stamped_cmd_vel')
        )
        self._undo.append(self._commands.destroy)
        self._diagnostics = Diagnostics(self, self._controller, self._subscribe(policy))
        timer = self.create_timer(
            self._value('diagnostics_period'),
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        service = self.create_service(Trigger, '~/reset', self._on_reset)
        self._undo += [
            partial(self.destroy_publisher, self._diagnostics.publisher),
            partial(self.destroy_timer, timer),
            partial(self.destroy_service, service),
        ]
        names = [output.name for output in contract.outputs]
        if self._value('record'):
            columns = ('stamp', 'dt', 'is_image', 'step_time', 'is_running', *names)
            self._log = RunLog(Path(self._value('record')) / 'controller.npz', columns)
        self.get_logger().info(
            f'{contract.task} policy with {policy.parameters} parameters commands '
            f'{" and ".join(names)} at every {contract.trigger} message'
        )

    def _subscribe(self, policy: Policy) -> dict[str, str]:
        """Return the topic of each stream."""
        topics = {}
        streams = {
            'image': (Image, 'image', self._on_image, 1),  # the newest frame wins
            'imu': (Imu, 'imu/data', self._on_imu, 50),  # every sample carries an interval
        }
        for stream in policy.contract.streams:
            kind, topic, callback, depth = streams[stream]
            subscription = self.create_subscription(
                kind,
                topic,
                callback,
                QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT),
                event_callbacks=SubscriptionEventCallbacks(
                    incompatible_qos=partial(self._on_incompatible_qos, topic)
                ),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                raw=True,  # to build the message object costs more than all that follows
            )
            self._undo.append(partial(self.destroy_subscription, subscription))
            topics[stream] = subscription.topic_name
        return topics

    # activate -------------------------------------------------------------------------------------

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        self._controller.reset()
        self._mode = Mode.WAITING
        self._watchdog = Watchdog(self._value('watchdog_timeout'), self._on_silence)
        self._watchdog.start()
        self._active = True
        return result

    # message in -----------------------------------------------------------------------------------

    def _on_image(self, message: bytes) -> None:
        if not self._active:  # rclpy gates only publishers: callbacks run when inactive, too
            return
        with self._turn:
            begun = time.perf_counter_ns()
            try:
                image = read_image(message)
                command = self._controller.on_image(
                    image.data,
                    image.height,
                    image.width,
                    image.encoding,
                    image.step,
                    image.stamp_ns,
                )
            except (MessageError, ObservationError) as error:
                self.get_logger().error(f'image: {error}', throttle_duration_sec=2.0)
            else:
                self._finish(command, image.stamp_ns, True, begun)
        self._image_taken.publish(Empty())

    def _on_imu(self, message: bytes) -> None:
        if not self._active:
            return
        with self._turn:
            begun = time.perf_counter_ns()
            try:
                stamp_ns, angular_velocity, linear_acceleration = read_imu(message)
                command = self._controller.on_imu(angular_velocity, linear_acceleration, stamp_ns)
            except (MessageError, ObservationError) as error:
                self.get_logger().error(f'imu/data: {error}', throttle_duration_sec=2.0)
                return
            self._finish(command, stamp_ns, False, begun)

    # command out ----------------------------------------------------------------------------------

    def _finish(self, command: Command | None, stamp_ns: int, is_image: bool, begun: int) -> None:
        step_time = time.perf_counter_ns() - begun
        if command is not None:
            if step_time > self._watchdog.timeout * NS_PER_S:  # the safe one has gone out by now
                self.get_logger().error(
                    f'a command took {step_time / NS_PER_S:.2f} s to compute, longer than '
                    f'watchdog_timeout {self._watchdog.timeout} s, it is not sent',
                    throttle_duration_sec=2.0,
                )
                command = Command(self._controller.stop(), stamp_ns, Mode.STALE)
            self._commands.publish(command.values)
            self._watchdog.feed()
            if command.mode is not self._mode:
                self._report_mode(command.mode)
        dt = self._controller.dt
        self._longest_interval = max(self._longest_interval, dt)
        if self._log is not None:
            is_running = command is not None and command.mode is Mode.RUNNING
            values = [math.nan] * self._controller.limiter.safe.size
            if command is not None:
                values = command.values.tolist()
            self._log.add(stamp_ns / NS_PER_S, dt, is_image, step_time * 1e-9, is_running, *values)

    def _report_mode(self, mode: Mode) -> None:
        change = f'{self._mode.value} -> {mode.value}'
        if mode in (Mode.WARMUP, Mode.RUNNING):
            self.get_logger().info(change)
        else:  # another line: rclpy ties a severity to the line of code that logs
            self.get_logger().warning(f'{change}, safe command sent: {self._controller.why()}')
        self._mode = mode

    def _on_silence(self, silence: float) -> None:
        """Send the safe command; called by the watchdog from its own thread."""
        # not for ever: a callback that hangs must not hold this up
        has_turn = self._turn.acquire(timeout=0.1 * self._watchdog.timeout)
        try:
            self._commands.publish(self._controller.stop())
            trigger = self._controller.policy.contract.trigger
            if self._mode is Mode.WAITING:
                self.get_logger().info(f'waiting for {trigger} messages', once=True)
            elif self._mode is not Mode.STALE:
                self._mode = Mode.STALE
                self.get_logger().warning(
                    f'no usable {trigger} message for {silence:.2f} s (watchdog_timeout), '
                    'safe command sent'
                )
        finally:
            if has_turn:
                self._turn.release()

    # deactivate -----------------------------------------------------------------------------------

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.is_finalized = True
        self._stop()
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        self._release()
        return super().on_error(state)

    def _stop(self) -> None:
        """Stop stepping, then send the safe command; only then does the publisher go off."""
        if not self._active:
            return
        self._active = False
        self._watchdog.stop()
        self._commands.publish(self._controller.stop())
        self._commands.flush(0.2)
        if self._log is not None:
            counts = self._controller.counts
            try:
                self._log.save(count_names=list(counts), counts=list(counts.values()))
            except OSError as error:
                self.get_logger().error(f'record: {error}')

    def _release(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self._log = None

    # around it ------------------------------------------------------------------------------------

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _limit_values(self) -> dict[str, float]:
        return {name: self._value(name) for name in self._limit_names}

    def _judge_parameters(self, parameters: list[RosParameter]) -> SetParametersResult:
        changed = {p.name: p.value for p in parameters if p.name in self._limit_names}
        try:
            if changed:
                narrowed_limits(self._controller.policy, self._limit_values() | changed)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, parameters: list[RosParameter]) -> None:
        if self._limit_names:
            limits = narrowed_limits(self._controller.policy, self._limit_values())
            self._controller.limiter.set_limits(limits)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._active
        if self._active:
            self._controller.reset()
            self._commands.publish(self._controller.stop())
        else:
            response.message = 'the node is not active'
        return response

    def _on_incompatible_qos(self, topic: str, event: Any) -> None:
        self.get_logger().error(
            f'{topic}: a publisher offers a QoS that this subscription cannot take '
            f'({event.last_policy_kind}): change it there, or here by the parameter '
            f'qos_overrides.<topic>.subscription.*'
        )

    def _publish_diagnostics(self) -> None:
        self._diagnostics.publish(self._mode, self._active, self._longest_interval)
        self._longest_interval = 0.0


def live(node: ControllerNode, executor: Executor, stop: Stop) -> int:
    """Run the node until it is asked to stop; return the exit code."""
    if not node.get_parameter('autostart').value:
        node.get_logger().info('unconfigured: waits for a lifecycle manager (or set autostart)')
    else:
        success = TransitionCallbackReturn.SUCCESS
        if node.trigger_configure() != success or node.trigger_activate() != success:
            return 1
    try:
        while not stop:
            executor.spin_once(timeout_sec=0.1)
    finally:  # whatever happened, the safe command goes out
        if not node.is_finalized:
            node.trigger_shutdown()
    return 0


def main(args: list[str] | None = None) -> None:
    run(ControllerNode, live, args)


if __name__ == '__main__':
    main()
