"""Our own two launch files, and the share directory that they are found in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lnn_ros import launch_xml, share
from lnn_ros.launch_xml import Plan

ROOT = Path(__file__).resolve().parents[2]
ParametersOf = Callable[[Plan, int], dict[str, object]]


@pytest.fixture
def our_package(prefix: Path, install: Callable[..., None]) -> Path:
    folder = prefix / 'share/lnn_ros'
    (folder / 'config').mkdir(parents=True)
    (folder / 'launch').symlink_to(ROOT / 'launch')
    for name in ('controller', 'simulator'):
        (folder / f'config/{name}.yaml').write_text('/**: {ros__parameters: {}}')
        install(f'{name}_node', 'exit 0', package='lnn_ros')
    return folder / 'launch'


@pytest.fixture
def parameters(parameter_files: Callable[..., list[dict]]) -> ParametersOf:
    def parameters(plan: Plan, index: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for file in parameter_files(plan, index):
            for node in file.values():
                found.update(node['ros__parameters'])
        return found

    return parameters


def test_sim_launch_starts_simulator_and_controller_with_typed_parameters(
    our_package: Path, parameters: ParametersOf, tmp_path: Path
) -> None:
    given = {'camera_rate': '10', 'seed': '7', 'record': '2024', 'namespace': 'robot1'}
    plan = Plan(our_package / 'sim.launch.xml', given, tmp_path, lambda *event: pytest.fail(event))
    simulator, controller = plan.processes
    assert (simulator.name, controller.name) == ('simulator_node-1', 'controller_node-2')
    assert simulator.required and controller.required
    assert simulator.output == controller.output == 'both'
    for process in plan.processes:
        assert '__ns:=/robot1' in process.command
        assert process.environment['ROS_AUTOMATIC_DISCOVERY_RANGE']
    assert parameters(plan, 0) == {
        'world': 'car', 'seed': 7, 'camera_rate': 10.0, 'imu_rate': 100.0, 'jitter': 0.0,
        'drop': 0.0, 'latency': 0.0, 'real_time_factor': 1.0, 'duration': 0.0,
        'record': '2024',
    }  # fmt: skip
    assert isinstance(parameters(plan, 0)['camera_rate'], float)
    assert parameters(plan, 1) == {
        'policy': f'{our_package.parent}/policies/car.safetensors', 'autostart': True,
        'use_sim_time': True, 'record': '2024',
    }  # fmt: skip


def test_sim_launch_remaps_the_topics_of_both_nodes(our_package: Path, tmp_path: Path) -> None:
    given = {'image': '/cam', 'imu': '/foo', 'cmd_vel': 'base/cmd_vel'}
    plan = Plan(our_package / 'sim.launch.xml', given, tmp_path, lambda *event: pytest.fail(event))
    for process in plan.processes:
        assert process.command[-6:] == (
            '-r', 'image:=/cam', '-r', 'imu/data:=/foo', '-r', 'cmd_vel:=base/cmd_vel',
        )  # fmt: skip


def test_controller_launch_remaps_its_topics(
    our_package: Path, parameters: ParametersOf, tmp_path: Path
) -> None:
    given = {'image': '/cam/image', 'name': 'left', 'log_level': 'debug'}
    plan = Plan(our_package / 'controller.launch.xml', given, tmp_path, print)
    command = plan.processes[0].command
    assert command[1:5] == ('--ros-args', '--log-level', 'debug', '--ros-args')
    assert command.count('--ros-args') == 2
    assert command[-6:] == (
        '-r', 'image:=/cam/image', '-r', 'imu/data:=imu/data', '-r', 'cmd_vel:=cmd_vel',
    )  # fmt: skip
    assert '__node:=left' in command
    assert parameters(plan, 0)['use_sim_time'] is False
    assert parameters(plan, 0)['record'] == ''


@pytest.mark.parametrize('name', ['controller', 'sim'])
def test_every_argument_of_our_launch_files_has_default_and_description(name: str) -> None:
    for argument in launch_xml.arguments(ROOT / f'launch/{name}.launch.xml'):
        assert argument.default is not None
        assert len(argument.description) > 10


def test_share_directory_is_the_checkout_or_the_installed_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / 'lib/python3.12/site-packages/lnn_ros/share.py'
    monkeypatch.setattr(share, '__file__', str(installed))
    with pytest.raises(FileNotFoundError, match='install the package again'):
        share.share_directory()
    (tmp_path / 'share/lnn_ros').mkdir(parents=True)
    assert share.share_directory() == tmp_path / 'share/lnn_ros'
    (tmp_path / 'lib/python3.12/site-packages/package.xml').parent.mkdir(parents=True)
    (tmp_path / 'lib/python3.12/site-packages/package.xml').touch()
    assert share.share_directory() == tmp_path / 'lib/python3.12/site-packages'
