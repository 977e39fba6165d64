"""The controller as its users meet it: a process on the other side of DDS."""

import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Twist, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger

from lnn_ros import share


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat


def moves(command: TwistStamped) -> bool:
    return command.twist.linear.x > 0.0


def is_safe(command: TwistStamped) -> bool:
    return command.twist == Twist()  # the shipped policy's safe command


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if '[ERROR]' in line or '[FATAL]' in line]


# life ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('content', 'complaint'),
    [(None, 'there is no such file'), (b'{"a": 1}', 'not a readable .safetensors file')],
    ids=['missing', 'corrupt'],
)
def test_bad_policy_fails_to_configure_in_one_line_and_a_repaired_one_configures(
    start, peer, policy, tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    file = tmp_path / 'policy.safetensors'
    if content is not None:
        file.write_bytes(content)
    node = start('controller_node', {'policy': str(file)})
    assert not peer.transition('configure')
    assert peer.state() == 'unconfigured'
    (error,) = errors(node.text())
    assert str(file) in error and complaint in error
    shutil.copy(policy, file)
    assert peer.transition('configure')
    assert peer.transition('activate')
    assert node.end() == 0


def test_without_a_policy_configure_fails_and_the_node_stays(start, peer) -> None:
    node = start('controller_node', {})
    for _ in range(2):
        assert not peer.transition('configure')
    assert peer.state() == 'unconfigured'
    first, second = errors(node.text())
    assert 'parameter policy is empty' in first and 'parameter policy is empty' in second
    assert node.end() == 0


def test_autostart_that_cannot_configure_ends_the_process_with_code_1(start) -> None:
    node = start('controller_node', {'policy': '/nowhere.safetensors', 'autostart': True})
    assert node.process.wait(10.0) == 1
    (error,) = node.text().splitlines()
    assert '/nowhere.safetensors' in error


def test_life_cycle_can_be_gone_through_twice_and_ends_finalized(start, peer, policy) -> None:
    node = start('controller_node', {'policy': policy})
    commands = peer.collect(TwistStamped, 'cmd_vel')
    for _ in range(2):
        for label in ('configure', 'activate'):
            assert peer.transition(label)
        commands.clear()
        peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
        for label in ('deactivate', 'cleanup'):
            assert peer.transition(label)
        peer.until(lambda: not peer.node.count_publishers('cmd_vel'), 'cmd_vel is gone')
        assert not peer.node.count_subscribers('image')
    assert peer.transition('unconfigured_shutdown')
    assert peer.state() == 'finalized'
    assert node.end() == 0
    assert not errors(node.text())


def test_illegal_transition_is_answered_with_failure_and_the_node_lives_on(
    start, peer, policy
) -> None:
    node = start('controller_node', {'policy': policy})
    for wrong in (
        Transition(id=Transition.TRANSITION_ACTIVATE),
        Transition(id=Transition.TRANSITION_DEACTIVATE),
        Transition(id=99),
        Transition(label='fly'),
    ):
        answer = peer.call(ChangeState, '/controller/change_state', transition=wrong)
        assert not answer.success
    assert peer.state() == 'unconfigured'
    assert peer.transition('configure')
    assert not peer.transition('configure')
    assert peer.state() == 'inactive'
    assert node.lives()


def test_there_are_commands_only_while_it_is_active(start, peer, policy, diagnostics) -> None:
    start('controller_node', {'policy': policy, 'diagnostics_period': 0.05})
    commands = peer.collect(TwistStamped, 'cmd_vel')
    peer.transition('configure')

    def send_and_wait_until_it_was_taken() -> None:
        for _ in range(20):
            peer.stamp_ns += 10_000_000
            peer.send_image(peer.stamp_ns)
            peer.send_imu(peer.stamp_ns)
        for _ in range(3):  # its executor had to come past the messages to publish these
            diagnostics()

    send_and_wait_until_it_was_taken()
    assert 'received/imu' not in diagnostics()
    assert commands == []
    peer.transition('activate')
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    peer.transition('deactivate')
    peer.until(lambda: is_safe(commands[-1]), 'the safe command comes')
    count = len(commands)
    send_and_wait_until_it_was_taken()
    assert len(commands) == count


@pytest.mark.parametrize('way', ['deactivate', 'SIGINT', 'SIGTERM', 'SIGHUP'])
def test_safe_command_is_the_last_one_when_it_stops(controller, peer, way: str) -> None:
    node, commands = controller()
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    if way == 'deactivate':
        assert peer.transition('deactivate')
        peer.send_imu(peer.stamp_ns + 10_000_000)
        assert peer.state() == 'inactive'
    else:
        assert node.end(signal.Signals[way]) == 0
        peer.until(lambda: not peer.node.count_publishers('cmd_vel'), 'the publisher is gone')
    peer.until(lambda: is_safe(commands[-1]), 'the safe command comes')
    last_moving = max(i for i, command in enumerate(commands) if not is_safe(command))
    assert last_moving == len(commands) - 2, 'the safe command is sent once, and nothing after it'
    if way == 'deactivate':
        assert node.end() == 0
    assert not errors(node.text())


def test_shipped_yaml_sets_what_it_says_once_ros_has_read_it(
    controller, peer, policy, tmp_path
) -> None:
    text = (share.share_directory() / 'config' / 'controller.yaml').read_text()
    for old, new in (
        *(('min: .nan', 'min: 0.0'), ('max: .nan', 'max: 0.5')),
        *(("policy: ''", f'policy: {policy}'), ('autostart: false', 'autostart: true')),
    ):
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / 'narrow.yaml'
    file.write_text(text)
    node, _ = controller('--params-file', str(file))
    kept, _ = peer.parameters('/controller')
    for axis in ('linear.x', 'angular.z'):
        assert (kept[f'limits.{axis}.min'], kept[f'limits.{axis}.max']) == (0.0, 0.5)
    assert 'there is no parameter' not in node.text()


def test_clock_that_makes_no_sense_neither_ends_it_nor_keeps_the_safe_command_back(
    controller, peer
) -> None:
    node, commands = controller(use_sim_time=True)
    clock = peer.node.create_publisher(Clock, '/clock', 1)

    def tick(sec: int, nanosec: int = 0) -> None:
        clock.publish(Clock(clock=Time(sec=sec, nanosec=nanosec)))

    peer.until(lambda: tick(-5) or '/clock: ignored' in node.text(), 'it is refused')
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    latest = 2**31 - 1

    def is_taken() -> bool:
        tick(latest, 4_000_000_000)
        peer.drive(lambda: commands, 'a command comes')
        return commands[-1].header.stamp.sec == latest

    peer.until(is_taken, 'the clock is beyond what a stamp can hold')
    assert node.end() == 0
    peer.until(lambda: is_safe(commands[-1]), 'the safe command comes')


def test_reset_sends_the_safe_command_and_starts_over(controller, peer, diagnostics) -> None:
    _, commands = controller(diagnostics_period=0.05, watchdog_timeout=60.0, warmup_steps=30)
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    assert peer.call(Trigger, '/controller/reset').success
    peer.until(lambda: is_safe(commands[-1]), 'the safe command comes')
    commands.clear()
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves again')
    assert sum(map(is_safe, commands)) >= 30
    peer.transition('deactivate')
    answer = peer.call(Trigger, '/controller/reset')
    assert not answer.success and answer.message


def test_two_controllers_in_two_namespaces_do_not_disturb_each_other(start, peer, policy) -> None:
    given = {'policy': policy, 'autostart': True, 'watchdog_timeout': 0.2}
    first, second = (
        start('controller_node', given, '-r', f'__ns:={space}') for space in ('/a', '/b')
    )
    of_a, of_b = (peer.collect(TwistStamped, f'{space}/cmd_vel') for space in ('a', 'b'))
    peer.until(lambda: of_a and of_b, 'both watchdogs speak')
    peer.drive(lambda: sum(map(moves, of_a)) > 20, 'the car of a moves', namespace='a/')
    peer.until(lambda: len(of_b) > 2, "the other's watchdog speaks")
    assert all(map(is_safe, of_b))
    assert first.end() == 0
    peer.drive(lambda: sum(map(moves, of_b)) > 20, 'the car of b moves', namespace='b/')
    assert second.end() == 0


def test_it_imports_neither_torch_nor_a_simulator(start, peer, policy) -> None:
    node = start('controller_node', {'policy': policy}, PYTHONPROFILEIMPORTTIME='1')
    assert peer.transition('configure')
    assert node.end() == 0
    lines = [line for line in node.text().splitlines() if line.startswith('import time:')]
    packages = {line.rpartition('|')[2].strip().partition('.')[0] for line in lines}
    assert {'lnn_ros', 'rclpy', 'numpy'} <= packages
    assert not packages & {'torch', 'mujoco', 'matplotlib', 'tqdm'}


# parameters ---------------------------------------------------------------------------------------


def test_declared_parameters_are_those_of_the_shipped_yaml_and_described(
    start, peer, policy
) -> None:
    start('controller_node', {'policy': policy})
    assert peer.transition('configure')
    values, descriptors = peer.parameters('/controller')
    assert values.pop('policy') == policy
    text = (share.share_directory() / 'config/controller.yaml').read_text()
    shipped = flatten(yaml.safe_load(text)['/**']['ros__parameters'])
    assert shipped.pop('policy') == ''
    assert values.keys() == shipped.keys()
    for name, value in values.items():
        assert type(value) is type(shipped[name]), name
        assert value == shipped[name] or (math.isnan(value) and math.isnan(shipped[name])), name
    for name, descriptor in descriptors.items():
        assert len(descriptor.description) > 10, name
        assert descriptor.read_only != name.startswith('limits.'), name


def test_bad_override_ends_the_process_with_one_line_that_names_the_parameter(
    start, policy
) -> None:
    given = {'policy': policy, 'autostart': True}
    wrong = [
        ('max_gap', 1000.0, 'max_gap'),
        ('max_gap', 1, 'max_gap'),
        ('watchdog_timeout', math.nan, 'watchdog_timeout'),
        ('warmup_steps', -1, 'warmup_steps'),
        ('base_frame', 3, 'base_frame'),
        ('limits.linear.x.max', 1, 'limits.linear.x.max'),
        ('limits.linear.x.max', 99.0, 'limits.linear.x.max'),
        ('limits.angular.z.slew', 0.0, 'angular.z: slew'),
        ('qos_overrides./image.subscription.reliability', 'perhaps', '`reliability`'),
    ]
    nodes = [start('controller_node', {**given, name: value}) for name, value, _ in wrong]
    for node, (name, value, told) in zip(nodes, wrong, strict=True):
        assert node.process.wait(20.0) == 1, (name, value)
        text = node.text().splitlines()
        lines = [line for line in text if not line.startswith('the compiled core is not there')]
        assert len(lines) == 1, (name, value, lines)
        assert told in lines[0], (name, value)


def test_unknown_and_read_only_parameters_are_refused_while_it_runs(controller, peer) -> None:
    controller()
    assert 'undeclared' in peer.set_parameter('nonsense', 1)
    for name, value in (('max_gap', 0.1), ('watchdog_timeout', 60.0), ('policy', ''),
                        ('enable_stamped_cmd_vel', False), ('autostart', False)):  # fmt: skip
        assert 'read-only' in peer.set_parameter(name, value), name
    values, _ = peer.parameters('/controller')
    assert values['max_gap'] == 0.5 and 'nonsense' not in values


def test_limits_can_be_narrowed_while_it_drives_and_never_widened(controller, peer) -> None:
    _, commands = controller()
    peer.drive(lambda: commands and commands[-1].twist.linear.x > 1.0, 'it drives fast')
    assert peer.set_parameter('limits.linear.x.max', 0.4) == ''
    commands.clear()
    peer.drive(lambda: len(commands) > 50, 'commands come')
    speeds = [command.twist.linear.x for command in commands]
    assert max(speeds[3:]) == 0.4
    wrong = {
        'limits.linear.x.max': (2.5, math.inf, -0.5),  # wider, wider, below the safe value
        'limits.linear.x.min': (-0.5, 0.4, 1.0),  # wider, not less than the maximum, above it
        'limits.linear.x.slew': (100.0, 0.0, -1.0),
    }
    for name, values in wrong.items():
        for value in values:
            assert 'linear.x' in peer.set_parameter(name, value), (name, value)
    assert 'type' in peer.set_parameter('limits.linear.x.max', 'fast')
    kept, _ = peer.parameters('/controller')
    assert kept['limits.linear.x.max'] == 0.4
    assert math.isnan(kept['limits.linear.x.min'])
    assert peer.set_parameter('limits.linear.x.max', math.nan) == ''
    peer.drive(lambda: commands[-1].twist.linear.x > 0.4, "the policy's own limit holds again")


def test_limits_given_at_start_hold_from_the_first_command_on(controller, peer) -> None:
    _, commands = controller(**{'limits.linear.x.max': 0.3})
    peer.drive(lambda: sum(map(moves, commands)) > 50, 'the car moves')
    assert max(command.twist.linear.x for command in commands) == 0.3


def test_commands_are_stamped_with_simulated_time_when_that_is_used(controller, peer) -> None:
    _, commands = controller(use_sim_time=True)
    clock = peer.publisher(Clock, '/clock')
    message = Clock()

    def is_told() -> bool:
        clock.publish(message)
        return bool(commands) and commands[-1].header.stamp.sec == message.clock.sec

    for message.clock.sec in (500, 777):
        peer.drive(is_told, f'commands are stamped {message.clock.sec} s')


def test_request_that_makes_no_sense_does_not_end_the_node(controller, peer) -> None:
    node, commands = controller()
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    client = peer.node.create_client(SetParameters, '/controller/set_parameters')
    peer.until(client.service_is_ready, 'the service is there')
    for name, number in (('limits.linear.x.max', 42), ('', ParameterType.PARAMETER_NOT_SET)):
        nonsense = ParameterMessage(name=name, value=ParameterValue(type=number))
        future = client.call_async(SetParameters.Request(parameters=[nonsense]))
    peer.until(lambda: future.done() or not node.lives(), 'the last one is answered')
    assert node.lives(), node.text()
    commands.clear()
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves again')
