"""What the controller tells of itself: diagnostics, and a record of its drive."""

from pathlib import Path

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped


def moves(command: TwistStamped) -> bool:
    return command.twist.linear.x > 0.0


def is_safe(command: TwistStamped) -> bool:
    return command.twist == Twist()  # the shipped policy's safe command


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if '[ERROR]' in line or '[FATAL]' in line]


def test_diagnostics_tell_the_mode_and_the_counters(controller, peer, diagnostics) -> None:
    _, commands = controller(diagnostics_period=0.05)
    waiting = diagnostics()
    assert waiting['name'] == '/controller'
    assert waiting['message'] in ('waiting', 'stale')  # the latter once the watchdog has spoken
    assert waiting['level'] == '1'
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    running = diagnostics()
    assert (running['message'], running['level']) == ('running', '0')
    assert int(running['received/imu']) >= 5
    assert int(running['received/image']) >= 1
    assert float(running['age of the newest stamp, s']) > 1e6  # our stamps start at 100 s
    peer.until(lambda: diagnostics()['message'] == 'stale', 'the silence is told')
    peer.transition('deactivate')
    inactive = diagnostics()
    assert (inactive['message'], inactive['level']) == ('not active', '1')


def test_an_inactive_controller_is_not_reported_as_ok(controller, peer, diagnostics) -> None:
    _, commands = controller(diagnostics_period=0.05, watchdog_timeout=60.0)
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    peer.transition('deactivate')
    peer.until(lambda: diagnostics()['message'] == 'not active', 'it is told')
    assert diagnostics()['level'] == '1'


def test_record_is_written_when_it_stops(controller, peer, tmp_path: Path) -> None:
    folder = tmp_path / 'not there yet'
    node, commands = controller(record=str(folder))
    peer.drive(lambda: sum(map(moves, commands)) > 20, 'the car moves')
    assert node.end() == 0
    assert [file.name for file in folder.iterdir()] == ['controller.npz']
    with np.load(folder / 'controller.npz') as file:
        record = dict(file)
    columns = ('stamp', 'dt', 'is_image', 'step_time', 'is_running', 'linear.x', 'angular.z')
    assert {len(record[name]) for name in columns} == {len(record['stamp'])}
    running = record['is_running'] == 1.0
    assert running.sum() >= 20
    sent = {command.twist.linear.x for command in commands}
    assert set(record['linear.x'][running].tolist()) >= sent - {0.0}
    counts = dict(zip(record['count_names'].tolist(), record['counts'].tolist(), strict=True))
    assert counts['received/imu'] == (record['is_image'] == 0.0).sum()


def test_record_that_cannot_be_written_is_reported_and_the_car_still_stops(
    controller, peer, tmp_path: Path
) -> None:
    folder = tmp_path / 'record'
    node, commands = controller(record=str(folder))
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    folder.rmdir()
    assert peer.transition('deactivate')
    assert peer.state() == 'inactive'
    peer.until(lambda: is_safe(commands[-1]), 'the safe command comes')
    (error,) = errors(node.text())
    assert 'controller.npz' in error
    assert node.end() == 0


def warnings(text: str, of: str) -> list[str]:
    return [line for line in text.splitlines() if '[WARN]' in line and of in line]


def test_what_keeps_it_from_driving_is_told_with_its_topic(controller, peer) -> None:
    node, commands = controller(diagnostics_period=0.1)

    def told(stamp_of_image: int, text: str) -> bool:
        peer.stamp_ns += 10_000_000
        peer.send_imu(peer.stamp_ns)
        if stamp_of_image >= 0:
            peer.send_image(stamp_of_image)
        return text in node.text()

    peer.until(lambda: told(-1, 'not driving: nothing comes on /image\n'), 'no frame is told')
    unset = 'messages on /image have the stamp 0, the driver must set header.stamp'
    peer.until(lambda: told(0, unset), 'a stamp that is not set is told')
    said = len(warnings(node.text(), 'not driving'))
    peer.drive(lambda: commands and moves(commands[-1]), 'the car moves')
    for _ in range(30):  # while it drives, there is nothing to tell
        peer.stamp_ns += 10_000_000
        peer.send_imu(peer.stamp_ns)
        peer.send_imu(peer.stamp_ns)
    assert len(warnings(node.text(), 'not driving')) == said


def test_clocks_of_two_streams_that_differ_are_told(controller, peer) -> None:
    node, _ = controller(diagnostics_period=0.1)

    def told() -> bool:
        peer.stamp_ns += 10_000_000
        peer.send_imu(peer.stamp_ns)
        peer.send_image(peer.stamp_ns + 20 * 10**9)
        return 'stamps leap back and forth: /image and /imu/data must be' in node.text()

    peer.until(told, 'it is told')


def test_value_for_a_parameter_that_is_not_there_is_told(controller) -> None:
    overridden = {'qos_overrides./imu/data.subscription.depth': 3}
    node, _ = controller(**{'limit.linear.x.max': 0.5, **overridden})
    (line,) = warnings(node.text(), 'there is no parameter')
    assert "'limit.linear.x.max', its value is not used, limits.linear.x.max perhaps?" in line
