"""The same drive under ROS's own launch and launch_pytest, where these are installed."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lnn_ros import share

launch_pytest = pytest.importorskip('launch_pytest')

from launch.actions import IncludeLaunchDescription, RegisterEventHandler  # noqa: E402
from launch.event_handlers import OnProcessExit  # noqa: E402
from launch.launch_description_sources import AnyLaunchDescriptionSource  # noqa: E402

from launch import LaunchDescription  # noqa: E402


class Exits:
    """The exit codes of the launched nodes, by executable; `simulated` is set after the drive."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.simulated = threading.Event()

    def __call__(self, event, context) -> None:
        executable = Path(event.cmd[0]).name
        self.codes[executable] = event.returncode
        if executable == 'simulator_node':
            self.simulated.set()


@pytest.fixture
def exits() -> Exits:
    return Exits()


@launch_pytest.fixture
def drive(exits: Exits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaunchDescription:
    # A sourced workspace sets it; pip installs to where it does not point.
    monkeypatch.setenv('AMENT_PREFIX_PATH', os.pathsep.join(share.prefixes(os.environ)))
    arguments = {'real_time_factor': '0.0', 'duration': '12', 'record': str(tmp_path / 'drive')}
    source = AnyLaunchDescriptionSource(str(share.share_directory() / 'launch' / 'sim.launch.xml'))
    return LaunchDescription(
        [
            RegisterEventHandler(OnProcessExit(on_exit=exits)),
            IncludeLaunchDescription(source, launch_arguments=arguments.items()),
            launch_pytest.actions.ReadyToTest(),
        ]
    )


@pytest.mark.launch(fixture=drive)
def test_car_keeps_its_lane_and_the_end_of_the_simulation_ends_both(
    exits: Exits, tmp_path: Path
) -> Iterator[None]:
    assert exits.simulated.wait(timeout=60.0)
    yield
    assert exits.codes == {'simulator_node': 0, 'controller_node': 0}
    with np.load(tmp_path / 'drive/simulator.npz') as record:
        assert record['leaves'] == 0
        assert record['progress'] / record['duration'] >= 1.2
    assert (tmp_path / 'drive/controller.npz').is_file()
