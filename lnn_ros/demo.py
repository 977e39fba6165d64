"""`lnn_ros demo`: launch simulator and controller, let them drive, show how it went."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from lnn_ros import launch_xml
from lnn_ros.share import module_command, share_directory

Record = Mapping[str, Any]

LAUNCH_FILE = share_directory() / 'launch' / 'sim.launch.xml'
CONTROLLER_LAUNCH_FILE = share_directory() / 'launch' / 'controller.launch.xml'
SIMULATOR_CONFIG = share_directory() / 'config' / 'simulator.yaml'
ARGUMENTS = {
    'seed': '3',
    'jitter': '0.5',
    'drop': '0.2',
    'duration': '30.0',
    'real_time_factor': '0.0',
}
"""What the demo gives to sim.launch.xml: lock-step, and sensors that jitter and lose samples."""

_PROGRESS = re.compile(r'\]: (\d+) of \d+ s, ([\d.]+) m, left the lane (\d+) times')


def run(folder: Path, arguments: dict[str, str]) -> int:
    """Drive, print a table, draw drive.png in `folder`.

    Args:
        arguments: of sim.launch.xml; they go before `ARGUMENTS`.

    Returns:
        0, or 1 if the car left its lane, hardly moved, or the launch failed.

    Raises:
        ValueError: for an argument that sim.launch.xml does not have, or that the demo cannot take.
    """
    _judge(arguments)
    arguments = {**ARGUMENTS, **arguments, 'record': str(folder.absolute())}
    folder.mkdir(parents=True, exist_ok=True)
    for old in ('simulator.npz', 'controller.npz', 'drive.png'):
        (folder / old).unlink(missing_ok=True)
    code = _launch(arguments, folder / 'launch.log')
    try:
        with np.load(folder / 'simulator.npz') as sim, np.load(folder / 'controller.npz') as ctl:
            simulator, controller = dict(sim), dict(ctl)
    except FileNotFoundError:
        log = (folder / 'launch.log').read_text().splitlines()
        telling = re.compile(r'ERROR|not started|Error: ')  # the last: an exception's own line
        wrong = [line for line in log if telling.search(line)] or log[-20:]
        print(*(line[:300] for line in wrong), sep='\n', file=sys.stderr)
        print(
            f'the launch failed, exit code {code}; all of it: {folder}/launch.log', file=sys.stderr
        )
        return 1
    if not (controller['dt'] > 0.0).any():
        print(
            'the network never stepped, for which it needs frames and IMU samples; camera frames: '
            f'{_stream(simulator, controller, "image")}; IMU samples: '
            f'{_stream(simulator, controller, "imu")}; raise duration, camera_rate or imu_rate',
            file=sys.stderr,
        )
        return 1
    print(table(simulator, controller))
    picture = folder / 'drive.png'
    draw(simulator, controller, picture)
    print(f'picture: {picture}')
    stood = simulator['progress'] < 0.5 * simulator['duration']  # in its lane, but hardly moving
    return 1 if code or simulator['leaves'] or stood else 0


def _judge(arguments: Mapping[str, str]) -> None:
    """Refuse, before anything is started, what the demo cannot serve."""
    if 'record' in arguments:
        raise ValueError('the demo records into its own folder: use --out instead of record:=')
    if 'use_sim_time' in arguments:
        raise ValueError(
            f"use_sim_time is '{arguments['use_sim_time']}', but a simulated drive always takes "
            'its time from the simulator: leave it out'
        )
    known = {argument.name for argument in launch_xml.arguments(LAUNCH_FILE)}
    known |= {argument.name for argument in launch_xml.arguments(CONTROLLER_LAUNCH_FILE)}
    known -= {'record', 'use_sim_time'}
    for name in sorted(set(arguments) - known):
        raise ValueError(f"sim.launch.xml has no argument '{name}'; there are {sorted(known)}")
    defaults = yaml.safe_load(SIMULATOR_CONFIG.read_text())['/**']['ros__parameters']
    for name, value in arguments.items():
        kind = type(defaults.get(name))
        if kind not in (int, float):
            continue
        try:
            kind(value)
        except ValueError:
            rule = 'a whole number' if kind is int else 'a number'
            example = ARGUMENTS.get(name, defaults[name])
            raise ValueError(
                f"{name} is '{value}', must be {rule}, for example {name}:={example}"
            ) from None
    duration = arguments.get('duration', ARGUMENTS['duration'])
    if not 0.0 < float(duration) < math.inf:
        raise ValueError(
            f'duration is {duration} s, but the demo needs an end: give a number above 0'
        )


def _launch(arguments: Mapping[str, str], log: Path) -> int:
    """Run sim.launch.xml in a process of its own, showing its progress; return its exit code."""
    words = [f'{name}:={value}' for name, value in arguments.items()]
    environment = {
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        # two demos on one machine must not hear each other
        'ROS_DOMAIN_ID': str(1 + os.getpid() % 100),
        **os.environ,
    }
    command = [*module_command('lnn_ros.cli'), 'launch', str(LAUNCH_FILE), *words]
    duration = float(arguments['duration'])
    with (
        log.open('w') as file,
        tqdm(total=duration, bar_format='driving {bar} {n:.0f}/{total:.0f} s') as bar,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if match := _PROGRESS.search(line):
                bar.update(float(match[1]) - bar.n)
    return process.returncode


def table(simulator: Record, controller: Record) -> str:
    """Return the figures of one drive as text."""
    interval = 1e3 * controller['dt'][controller['dt'] > 0.0]
    step = 1e6 * controller['step_time']
    latency = 1e3 * simulator['latency']
    speed = simulator['progress'] / simulator['duration']
    rows = (
        ('distance', f'{simulator["progress"]:.1f} m in {simulator["duration"]:.1f} s, '
                     f'{speed:.2f} m/s'),
        ('lateral error', f'mean {100 * simulator["mean_error"]:.1f} cm, '
                          f'max {100 * simulator["max_error"]:.1f} cm'),
        ('leaves of the lane', f'{simulator["leaves"]}'),
        ('camera frames', _stream(simulator, controller, 'image')),
        ('IMU samples', _stream(simulator, controller, 'imu')),
        ('measured interval', f'min {interval.min():.1f}, median {np.median(interval):.1f}, '
                              f'p99 {np.percentile(interval, 99):.1f}, '
                              f'max {interval.max():.1f} ms'),
        ('controller step', f'p50 {np.median(step):.0f}, p99 {np.percentile(step, 99):.0f} us'),
        ('IMU to command', f'p50 {np.median(latency):.2f}, '
                           f'p99 {np.percentile(latency, 99):.2f} ms over DDS and back'),
    )  # fmt: skip
    return '\n'.join(f'{name:20} {text}' for name, text in rows)


def _stream(simulator: Record, controller: Record, name: str) -> str:
    """Return what became of the messages of one stream, 'image' or 'imu'."""
    sent = dict(zip(simulator['count_names'].tolist(), simulator['counts'].tolist(), strict=True))
    got = dict(zip(controller['count_names'].tolist(), controller['counts'].tolist(), strict=True))
    dropped = sum(count for key, count in got.items() if key.startswith(f'drop/{name}/'))
    received = got.get(f'received/{name}', 0)
    lost = sent[name] - received
    return (
        f'{sent[name]} sent, {sent[f"{name} lost"]} more lost by the sensor; {received} received, '
        f'{f"{lost} lost on the way, " if lost else ""}{dropped} dropped'
    )


def draw(simulator: Record, controller: Record, path: Path) -> None:
    """Draw one drive: the path from above, what the camera saw, steering, intervals."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    plt.rcParams.update({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False})
    figure = plt.figure(figsize=(13, 7.2), layout='constrained')
    speed = simulator['progress'] / simulator['duration']
    figure.suptitle(
        f'A liquid network drives {simulator["progress"]:.0f} m at {speed:.2f} m/s on a track that '
        f'it has never seen: mean lateral error {100 * simulator["mean_error"]:.1f} cm, '
        f'{simulator["leaves"]} leaves of the lane',
        fontsize=13,
    )
    columns = figure.add_gridspec(1, 2)
    rows = columns[1].subgridspec(3, 1, height_ratios=(1.6, 1, 1))

    above = figure.add_subplot(columns[0])
    half = 12.0  # m, half the side of the world that the top view shows
    above.imshow(simulator['top_view'], extent=(-half, half, -half, half))
    above.plot(simulator['x'], simulator['y'], color='C3', lw=2, label='driven path')
    above.plot(simulator['x'][0], simulator['y'][0], 'o', ms=9, mfc='white', mec='C3', mew=2,
               ls='none', label='start')  # fmt: skip
    centre = simulator['centre']
    middle = (centre.max(axis=0) + centre.min(axis=0)) / 2
    reach = np.ptp(centre, axis=0).max() / 2 + 1.0
    above.set(
        xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach),
        xlabel='x, m', ylabel='y, m',
    )  # fmt: skip
    above.legend(loc='upper right')

    pictures = rows[0].subgridspec(1, 2)
    frames = simulator['frames']
    behind = figure.add_subplot(pictures[0])
    behind.imshow(simulator['chase_view'])
    behind.set_title('the simulation', loc='left')
    seen = figure.add_subplot(pictures[1])
    seen.imshow(_mosaic(frames[np.linspace(0, len(frames) - 1, 4).round().astype(int)]))
    seen.set_title(f'what the camera saw, {frames.shape[2]}x{frames.shape[1]}', loc='left')
    for axes in (behind, seen):
        axes.axis('off')

    steering = figure.add_subplot(rows[1])
    seconds = simulator['time'] - simulator['time'][0]
    steering.plot(seconds, simulator['expert_angular_z'], color='0.65', lw=3.5, label='expert')
    steering.plot(seconds, simulator['angular_z'], color='C3', lw=1, label='network')
    steering.set(xlim=(0, seconds[-1]), xlabel='simulated time, s', ylabel='turn rate, rad/s')
    steering.legend(loc='lower right', bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    steering.set_title('steering', loc='left')

    intervals = figure.add_subplot(rows[2])
    dt = 1e3 * controller['dt'][controller['dt'] > 0.0]
    longest = int(np.ceil(dt.max()))
    intervals.hist(dt, bins=longest, range=(0.5, longest + 0.5), color='C0')
    intervals.set(xlabel='measured interval between messages, ms', ylabel='steps')
    intervals.set_title(f'the {len(dt)} intervals that the network integrated over', loc='left')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _mosaic(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put four frames (4, height, width, 3) into a square with white lines between them."""
    _, height, width, _ = frames.shape
    gap = max(height // 24, 1)
    mosaic = np.full((2 * height + gap, 2 * width + gap, 3), 255, np.uint8)
    for place, frame in enumerate(frames):
        top, left = (place // 2) * (height + gap), (place % 2) * (width + gap)
        mosaic[top : top + height, left : left + width] = frame
    return mosaic
