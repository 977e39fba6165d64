"""The launch files and the demo as a user runs them: simulator and controller, over DDS."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lnn_ros import policy as policy_file
from lnn_ros import share

SHIPPED = share.share_directory() / 'policies/car.safetensors'
LOCK_STEP = 'real_time_factor:=0'


class Command:
    """`lnn_ros ...` in a process of its own; `marker` is in the environment of all it starts."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.marker = f'LNN_TEST={uuid.uuid4()}'
        self.log = folder / 'output'
        name, _, value = self.marker.partition('=')
        with self.log.open('w') as file:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'lnn_ros.cli', *words],
                cwd=folder,  # not the checkout, which Python would put on its path
                env={
                    **os.environ,
                    'HOME': str(folder),
                    'ROS_LOG_DIR': str(folder / 'log'),
                    name: value,
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 180.0) -> int:
        return self.process.wait(seconds)

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.text():
            assert time.monotonic() < deadline, f'no "{text}" in {seconds} s:\n{self.text()}'
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)

    def orphans(self) -> list[int]:
        """Return the processes that it has started and that are still there."""
        found = []
        for environment in Path('/proc').glob('[0-9]*/environ'):
            try:
                if self.marker.encode() in environment.read_bytes().split(b'\0'):
                    found.append(int(environment.parent.name))
            except OSError:  # it has ended since, or is not ours to read
                pass
        return found


@pytest.fixture
def lnn_ros(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Run the command `lnn_ros`; what it leaves behind is ended, too."""
    started: list[Command] = []

    def lnn_ros(*words: str) -> Command:
        started.append(Command(tmp_path, *words))
        return started[-1]

    yield lnn_ros
    for command in started:
        if command.process.poll() is None:
            command.process.send_signal(signal.SIGINT)
            try:
                command.wait(15.0)
            except subprocess.TimeoutExpired:
                command.process.kill()
                command.wait()
        for number in (signal.SIGINT, signal.SIGKILL):
            for left in command.orphans():
                os.kill(left, number)
            deadline = time.monotonic() + 5.0
            while command.orphans() and time.monotonic() < deadline:
                time.sleep(0.05)


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """Write the shipped policy with the numbers of each of its tensors shuffled."""
    policy = policy_file.load(SHIPPED)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.permutation(tensor.ravel()).reshape(tensor.shape)
        for name, tensor in policy.tensors.items()
    }
    path = tmp_path / 'untrained.safetensors'
    policy_file.save(replace(policy, tensors=tensors), path)
    return path


@pytest.mark.parametrize(
    'faults',
    [(), ('camera_rate:=10', 'jitter:=0.5', 'drop:=0.3'), ('camera_rate:=60',)],
    ids=['as trained', 'degraded', 'fast camera'],
)
def test_launched_car_keeps_its_lane_at_speed(
    lnn_ros, tmp_path: Path, faults: tuple[str, ...]
) -> None:
    words = (LOCK_STEP, 'duration:=12', f'record:={tmp_path}/drive', *faults)
    command = lnn_ros('launch', 'sim.launch.xml', *words)
    assert command.wait() == 0, command.text()
    assert command.orphans() == []
    with np.load(tmp_path / 'drive/simulator.npz') as record:
        assert record['duration'] >= 12.0
        assert record['leaves'] == 0
        assert record['progress'] / record['duration'] >= 1.2
        counts = dict(zip(record['count_names'].tolist(), record['counts'].tolist(), strict=True))
    assert (counts['imu lost'] > 0) == ('drop:=0.3' in faults)
    with np.load(tmp_path / 'drive/controller.npz') as record:
        running = record['is_running'][record['is_image'] == 0.0]
        assert running.mean() > 0.9
        assert record['is_image'].sum() == counts['image']


def test_lock_step_loses_no_frame_and_repeats_its_drive(lnn_ros, tmp_path: Path) -> None:
    faults = ('camera_rate:=100', 'imu_rate:=50', 'jitter:=0.5', 'drop:=0.3')
    drives = []
    for name in ('first', 'second'):
        words = (LOCK_STEP, 'duration:=4', f'record:={tmp_path}/{name}', *faults)
        command = lnn_ros('launch', 'sim.launch.xml', *words)
        assert command.wait() == 0, command.text()
        assert ' 0 answers missed' in command.text()
        with np.load(tmp_path / name / 'controller.npz') as record:
            counts = dict(zip(record['count_names'].tolist(), record['counts'], strict=True))
        with np.load(tmp_path / name / 'simulator.npz') as record:
            sent = dict(zip(record['count_names'].tolist(), record['counts'], strict=True))
            drives.append(np.array([record['x'], record['y'], record['angular_z']]))
        assert counts['received/image'] == sent['image']
        assert counts['received/imu'] == sent['imu']
    assert np.array_equal(*drives)


# ROS's own launch dies of SIGTERM and orphans its nodes, and says so.
OWN_RUNNER = find_spec('launch_ros') is None
SIGNALS = [signal.SIGINT, signal.SIGTERM] if OWN_RUNNER else [signal.SIGINT]


@pytest.mark.parametrize('number', SIGNALS, ids=lambda number: number.name)
def test_signal_to_the_launcher_ends_everything_cleanly(
    lnn_ros, tmp_path: Path, number: signal.Signals
) -> None:
    command = lnn_ros('launch', 'sim.launch.xml', f'record:={tmp_path}/drive')
    command.wait_for('-> running')
    assert len(command.orphans()) == 3  # the launcher and the two nodes
    command.process.send_signal(number)
    assert command.wait(15.0) == 0
    assert command.orphans() == []
    text = command.text()
    assert text.count('process has finished cleanly') == 2
    assert 'Traceback' not in text and 'process has died' not in text
    for file in ('simulator.npz', 'controller.npz'):
        assert (tmp_path / 'drive' / file).is_file()


@pytest.mark.parametrize('file', ['controller.launch.xml', 'sim.launch.xml'])
def test_launch_with_a_wrong_policy_ends_soon_and_not_with_0(
    lnn_ros, tmp_path: Path, file: str
) -> None:
    command = lnn_ros('launch', file, f'policy:={tmp_path}/none.safetensors')
    assert command.wait(10.0) == 1, command.text()
    assert f'{tmp_path}/none.safetensors: there is no such file' in command.text()
    assert command.orphans() == []


def test_launch_with_a_wrong_argument_ends_soon_and_names_it(lnn_ros) -> None:
    command = lnn_ros('launch', 'sim.launch.xml', 'drop:=2.0')
    assert command.wait(10.0) == 1, command.text()
    assert 'drop' in command.text() and 'Traceback' not in command.text()
    assert command.orphans() == []


def test_demo_drives_prints_its_figures_and_draws_its_picture(lnn_ros, tmp_path: Path) -> None:
    command = lnn_ros('demo', '--out', 'results', 'duration:=6')
    assert command.wait() == 0, command.text()
    text = command.text()
    distance = re.search(r'^distance +([\d.]+) m in 6\.\d s', text, re.MULTILINE)
    assert distance and float(distance[1]) > 7.0
    assert re.search(r'^leaves of the lane +0$', text, re.MULTILINE)
    for row in ('lateral error', 'camera frames', 'measured interval', 'IMU to command'):
        assert re.search(f'^{row} +.*[0-9]', text, re.MULTILINE), row
    files = {path.name for path in (tmp_path / 'results').iterdir()}
    assert files == {'simulator.npz', 'controller.npz', 'drive.png', 'launch.log'}
    assert (tmp_path / 'results/drive.png').read_bytes().startswith(b'\x89PNG')
    assert command.orphans() == []


def test_demo_drives_with_other_topics(lnn_ros) -> None:
    topics = ('image:=/cam', 'imu:=/foo', 'cmd_vel:=base/cmd_vel')
    command = lnn_ros('demo', '--out', 'results', 'duration:=3', *topics)
    assert command.wait(60.0) == 0, command.text()
    assert 'lost on the way' not in command.text()


def test_demo_of_a_car_that_leaves_its_lane_ends_with_1(
    lnn_ros, tmp_path: Path, untrained: Path
) -> None:
    command = lnn_ros('demo', '--out', 'results', 'duration:=6', f'policy:={untrained}')
    assert command.wait() == 1, command.text()
    assert re.search(r'^leaves of the lane +[1-9]', command.text(), re.MULTILINE), command.text()
    assert (tmp_path / 'results/drive.png').is_file()
