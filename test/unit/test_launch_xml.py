"""The launch files run the same where `launch` is not installed; nothing outlives the launcher."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from lnn_ros import launch_xml, share
from lnn_ros.launch_process import Log, Process, run
from lnn_ros.launch_xml import Argument, LaunchError, Plan

ROOT = Path(__file__).resolve().parents[2]
NODE = '<node pkg="fake" exec="node"'
READY = 'echo ready; while :; do sleep 0.02; done'
PlanOf = Callable[..., Plan]


@pytest.fixture(autouse=True)
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package called fake and point the environment at it."""
    prefix = tmp_path / 'prefix'
    (prefix / 'share/fake').mkdir(parents=True)
    install(prefix, 'node', 'exit 0')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(prefix))
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    monkeypatch.setenv('SET', 'from outside')
    monkeypatch.delenv('UNSET', raising=False)
    return prefix


@pytest.fixture
def said() -> list[tuple[str, str, str]]:
    return []


@pytest.fixture
def plan(tmp_path: Path, said: list[tuple[str, str, str]]) -> PlanOf:
    def plan(body: str, **arguments: str) -> Plan:
        scratch = tmp_path / 'scratch'
        scratch.mkdir(exist_ok=True)
        return Plan(write(tmp_path, body), arguments, scratch, lambda *event: said.append(event))

    return plan


def install(prefix: Path, name: str, script: str, package: str = 'fake') -> None:
    file = prefix / 'lib' / package / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'#!/bin/sh\n{script}\n')
    file.chmod(0o755)


def write(folder: Path, body: str, name: str = 'test.launch.xml') -> Path:
    file = folder / name
    file.write_text(f'<launch>\n{body}\n</launch>\n')
    return file


def words(plan: Plan, index: int = 0) -> list[str]:
    """Return what follows the executable, up to the arguments that launch adds by itself."""
    command = plan.processes[index].command
    last = max(i for i, word in enumerate(command) if word == '--ros-args')
    return list(command[1:last])


def ros_arguments(plan: Plan, index: int = 0) -> list[str]:
    command = plan.processes[index].command
    last = max(i for i, word in enumerate(command) if word == '--ros-args')
    return list(command[last + 1 :])


def parameter_files(plan: Plan, index: int = 0) -> list[dict]:
    command = plan.processes[index].command
    files = [command[i + 1] for i, word in enumerate(command) if word == '--params-file']
    return [yaml.safe_load(Path(file).read_text()) for file in files]


# --- arguments, variables, conditions, scopes -------------------------------------------------


def test_given_argument_wins_over_its_default(plan: PlanOf) -> None:
    body = f'<arg name="a" default="1"/><arg name="b" default="$(var a)2"/>{NODE} args="$(var b)"/>'
    assert words(plan(body)) == ['12']
    assert words(plan(body, a='x')) == ['x2']


def test_required_argument_that_is_missing_is_an_error_with_its_description(plan: PlanOf) -> None:
    with pytest.raises(LaunchError, match=r'xml:2: argument "a" \(the speed\) is required'):
        plan('<arg name="a" description="the speed"/>')
    assert not plan('<arg name="a"/>', a='1').processes


def test_argument_that_is_none_of_its_choices_is_refused(plan: PlanOf) -> None:
    body = '<arg name="a" default="x"><choice value="x"/><choice value="y"/></arg>'
    plan(body, a='y')
    with pytest.raises(LaunchError, match='xml:2: a:=z is none of x, y'):
        plan(body, a='z')


def test_unknown_argument_is_warned_about(plan: PlanOf, said: list[tuple[str, str, str]]) -> None:
    plan('<arg name="policy" default=""/>', polciy='x')
    assert said[0][0] == 'WARNING'
    assert 'has no argument "polciy", only: policy' in said[0][2]


def test_settings_of_launch_itself_are_known_arguments(
    plan: PlanOf, said: list[tuple[str, str, str]]
) -> None:
    given = {'launch-prefix': 'nice -n 5', 'sigterm_timeout': '1.5', 'sigkill_timeout': '2'}
    result = plan(f'{NODE}/>', **given)
    assert result.processes[0].command[:3] == ('nice', '-n', '5')
    assert (result.sigterm_timeout, result.sigkill_timeout) == (1.5, 2.0)
    assert said == []


@pytest.mark.parametrize(
    ('text', 'value'),
    [('true', True), ('1', True), (' True ', True), ('FALSE', False), ('0', False)],
)
def test_if_and_unless_take_true_false_1_and_0(plan: PlanOf, text: str, value: bool) -> None:
    result = plan(f'{NODE} if="{text}" name="a"/>{NODE} unless="$(var v)" name="b"/>', v=text)
    assert [process.command[3] for process in result.processes] == [
        '__node:=a' if value else '__node:=b'
    ]


def test_group_scopes_variables_environment_and_namespace(plan: PlanOf) -> None:
    result = plan(f"""
      <let name="v" value="out"/><set_env name="E" value="out"/>
      <group>
        <let name="v" value="in"/><set_env name="E" value="$(env E)-in"/>
        <push_ros_namespace namespace="g"/>
        {NODE} args="$(var v)"/>
      </group>
      {NODE} args="$(var v)"/>
      <group if="false"><let name="v" value="never"/></group>
      <group unless="false">{NODE} args="$(var v)"/></group>""")
    assert [words(result, i) for i in range(3)] == [['in'], ['out'], ['out']]
    assert [process.environment['E'] for process in result.processes] == ['out-in', 'out', 'out']
    assert [ros_arguments(result, i) for i in range(3)] == [['-r', '__ns:=/g'], [], []]


def test_include_gives_arguments_and_shares_its_variables_as_launch_does(
    plan: PlanOf, tmp_path: Path
) -> None:
    (tmp_path / 'sub').mkdir()
    inner = '<arg name="a"/><arg name="b" default="inner"/><let name="leak" value="yes"/>'
    write(tmp_path / 'sub', f'{inner}{NODE} args="$(var a) $(var b) $(dirname)"/>')
    result = plan(f"""
      <let name="b" value="outer"/>
      <include file="$(dirname)/sub/test.launch.xml"><arg name="a" value="$(var b)!"/></include>
      {NODE} args="$(var leak) $(var a) $(dirname)"/>""")
    assert words(result) == ['outer!', 'outer', f'{tmp_path}/sub']
    assert words(result, 1) == ['yes', 'outer!', f'{tmp_path}']


def test_error_in_an_included_file_names_that_file_and_its_line(
    plan: PlanOf, tmp_path: Path
) -> None:
    write(tmp_path, '\n\n<timer period="1"/>', 'inner.launch.xml')
    with pytest.raises(LaunchError, match=r'inner\.launch\.xml:4: <timer> in <launch> is not sup'):
        plan('<include file="$(dirname)/inner.launch.xml"/>')


def test_log_shows_its_message(plan: PlanOf, said: list[tuple[str, str, str]]) -> None:
    plan('<log message="speed $(var v)"/>', v='3')
    assert said[0] == ('INFO', 'launch.user', 'speed 3')


# --- substitutions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('plain', 'plain'),
        ('$(var v)', 'x y'),
        ('a$(var v)b', 'ax yb'),
        ('$(var $(var name))', 'x y'),
        ('$(var nope fallback)', 'fallback'),
        ("$(var nope 'two words')", 'two words'),
        ('$(var nope &quot;$(var v)&quot;)', 'x y'),
        ("$(var nope '')", ''),
        ('$(env SET)', 'from outside'),
        ('$(env UNSET default)', 'default'),
        ('$(env UNSET $(var v))', 'x y'),
        (r'\$(var v)', '$(var v)'),
        ('5$ (x)', '5$ (x)'),
        (r'a\\b', r'a\b'),
    ],
)
def test_substitution_gives(
    plan: PlanOf, said: list[tuple[str, str, str]], text: str, value: str
) -> None:
    plan(f'<let name="v" value="x y"/><let name="name" value="v"/><log message="{text}"/>')
    assert said[0][2] == value


def test_find_pkg_share_and_dirname(
    plan: PlanOf, said: list[tuple[str, str, str]], prefix: Path, tmp_path: Path
) -> None:
    plan('<log message="$(find-pkg-share fake)/a:$(dirname)"/>')
    assert said[0][2] == f'{prefix}/share/fake/a:{tmp_path}'


def test_package_that_pip_installed_is_found_without_ament_prefix_path(
    plan: PlanOf, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('AMENT_PREFIX_PATH')
    monkeypatch.setattr(sys, 'prefix', str(prefix))
    process = plan(f'{NODE} args="$(find-pkg-share fake)"/>').processes[0]
    assert process.command[:2] == (f'{prefix}/lib/fake/node', f'{prefix}/share/fake')
    assert process.environment['AMENT_PREFIX_PATH'] == str(prefix)


# --- nodes ------------------------------------------------------------------------------------


def test_node_gets_arguments_name_namespace_parameters_and_remaps_in_the_order_of_launch(
    plan: PlanOf, prefix: Path
) -> None:
    result = plan(
        f"""
      {NODE} name="n" namespace="ns" args="--fast 1" ros_args="--log-level debug">
        <remap from="a" to="$(var t)"/><param name="p" value="1"/><remap from="/b" to="c"/>
      </node>""",
        t='/x',
    )
    command = list(result.processes[0].command)
    file = command.index('--params-file') + 1
    assert Path(command.pop(file)).is_file()
    assert command == [
        f'{prefix}/lib/fake/node', '--fast', '1', '--ros-args', '--log-level', 'debug',
        '--ros-args', '-r', '__node:=n', '-r', '__ns:=/ns', '--params-file',
        '-r', 'a:=/x', '-r', '/b:=c',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('pushed', 'given', 'result'),
    [
        (None, None, None), (None, '', '/'), (None, 'a', '/a'), (None, '/a/b/', '/a/b'),
        ('p', None, '/p'), ('p', '', '/p'), ('p', 'a', '/p/a'), ('/p/q', '/a', '/a'),
        ('/', 'a', '/a'),
    ],
)  # fmt: skip
def test_namespace_is_joined_to_the_pushed_one_unless_absolute(
    plan: PlanOf, pushed: str | None, given: str | None, result: str | None
) -> None:
    push = '' if pushed is None else f'<push_ros_namespace namespace="{pushed}"/>'
    namespace = '' if given is None else f'namespace="{given}"'
    arguments = ros_arguments(plan(f'{push}{NODE} {namespace}/>'))
    assert arguments == ([] if result is None else ['-r', f'__ns:={result}'])


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ("a  'b c' d", ['a', 'b c', 'd']),
        ('a a a', ['a', 'a', 'a']),
        ('$(var v) $(var v)z', ['one two', 'one twoz']),
        ('--p=$(var v) --q', ['--p=one two', '--q']),
        ('x y$(var v) z', ['x', 'yone two', 'z']),
        ('$(var e)', ['']),
    ],
)
def test_args_are_split_at_blanks_but_not_what_is_substituted(
    plan: PlanOf, text: str, expected: list[str]
) -> None:
    assert words(plan(f'{NODE} args="{text}"/>', v='one two', e='')) == expected


def test_launch_prefix_comes_before_the_executable(plan: PlanOf, prefix: Path) -> None:
    process = plan(f'{NODE} launch-prefix="nice -n $(var n)"/>', n='3').processes[0]
    assert process.command[:4] == ('nice', '-n', '3', f'{prefix}/lib/fake/node')
    assert process.name == 'nice-1'


def test_executable_runs_a_command_line(plan: PlanOf) -> None:
    result = plan('<executable cmd="sh -c \'exit 3\'"/><executable cmd="true" name="b"/>')
    assert [process.command for process in result.processes] == [('sh', '-c', 'exit 3'), ('true',)]
    assert [process.name for process in result.processes] == ['sh-1', 'b-2']


def test_child_environment_stays_on_this_host_and_finds_installed_packages(
    plan: PlanOf, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('ROS_AUTOMATIC_DISCOVERY_RANGE', raising=False)
    monkeypatch.delenv('PYTHONUNBUFFERED', raising=False)
    monkeypatch.setenv('LD_LIBRARY_PATH', '/somewhere')
    monkeypatch.setenv('_ROS_WHEELS_BOOTSTRAP_COMPLETE', '1')
    environment = plan(f'{NODE}/>').processes[0].environment
    assert environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert environment['PYTHONUNBUFFERED'] == '1'
    assert environment['AMENT_PREFIX_PATH'] == f'{prefix}:{sys.prefix}'
    assert environment['LD_LIBRARY_PATH'] == '/somewhere'
    assert environment['_ROS_WHEELS_BOOTSTRAP_COMPLETE'] == '1'
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    assert plan(f'{NODE}/>').processes[0].environment['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'SUBNET'


# --- parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'kind', 'value'),
    [
        ('1', '', 1), ('30.0', '', 30.0), ('1e3', '', '1e3'), ('true', '', True),
        ('yes', '', True), ('', '', ''), ('a b', '', 'a b'), ("'5'", '', '5'),
        ('[1, 2]', '', [1, 2]), ('[a, b]', '', ['a', 'b']), ('$(var i)', '', 10),
        ('$(var f)', '', 2.5), ('$(var b)', '', True), ('$(var e)', '', ''),
        ("'$(var i)'", '', 10), ('[1, $(var i)]', '', [1, 10]), ('$(var l)', '', [1, 2]),
        ('$(var i)', 'float', 10.0), ('1e3', 'float', 1000.0), ('$(var i)', 'int', 10),
        ('$(var i)', 'str', '10'), ('$(var e)', 'str', ''), ("'q'", 'str', "'q'"),
        ('null', 'str', 'null'), ('1', 'bool', True), ('$(var b)', 'bool', True),
        ('off', 'bool', False), ('[1, $(var i)]', 'list_of_int', [1, 10]),
        ('[1.0, $(var i)]', 'list_of_float', [1.0, 10.0]),
        ('[a, $(var i)]', 'list_of_str', ['a', '10']), ('[true, $(var b)]', 'list_of_bool', [1, 1]),
        ('$(var i)', 'yaml', 10), ('{', '', '{'),
    ],
)  # fmt: skip
def test_parameter_value_has_the_type_that_launch_gives_it(
    plan: PlanOf, text: str, kind: str, value: object
) -> None:
    kind = f'type="{kind}"' if kind else ''
    given = {'i': '10', 'f': '2.5', 'b': 'True', 'e': '', 'l': '[1, 2]'}
    result = plan(f'{NODE}><param name="p" value="{text}" {kind}/></node>', **given)
    found = parameter_files(result)[0]['/**']['ros__parameters']['p']
    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.parametrize(
    ('text', 'kind'),
    [
        ('~', 'yaml'), ('{a: 1}', 'yaml'), ('2020-01-01', 'yaml'), ('[1, 2.0]', 'yaml'),
        ('[1, a]', 'yaml'), ('[[1]]', 'yaml'), ('1.5', 'int'), ('$(var f)', 'int'),
        ('abc', 'float'), ('abc', 'bool'), ('$(var i)', 'bool'), ('[true]', 'bool'), ('', 'bool'),
        ('[1]', 'list_of_float'), ('1', 'list_of_int'), ('$(var l)', 'list_of_int'),
        ('1', 'double'),
    ],
)  # fmt: skip
def test_parameter_value_that_launch_would_not_take_is_refused(
    plan: PlanOf, text: str, kind: str
) -> None:
    with pytest.raises(LaunchError, match=r'xml:3: '):
        plan(
            f'{NODE}>\n<param name="p" value="{text}" type="{kind}"/></node>',
            i='10', f='2.5', l='[1, 2]',
        )  # fmt: skip


def test_parameters_are_under_the_node_name_only_if_name_and_namespace_are_known(
    plan: PlanOf,
) -> None:
    param = '<param name="a.b" value="1"/></node>'
    body = f'{NODE} name="n">{param}{NODE} name="n" namespace="">{param}'
    body += f'{NODE} namespace="/s">{param}{NODE} name="n" namespace="/s/t">{param}'
    result = plan(body)
    keys = [list(parameter_files(result, i)[0]) for i in range(4)]
    assert keys == [['/**'], ['/n'], ['/**'], ['/s/t/n']]
    assert parameter_files(result)[0]['/**'] == {'ros__parameters': {'a.b': 1}}


def test_parameter_file_is_passed_as_it_is_unless_substitutions_are_allowed(
    plan: PlanOf, tmp_path: Path
) -> None:
    file = tmp_path / 'p.yaml'
    file.write_text('/**: {ros__parameters: {a: $(var v)}}')
    param = f'<param from="{file}"/><param from="{file}" allow_substs="true"/>'
    result = plan(f'{NODE}>{param}</node>', v='7')
    assert str(file) in result.processes[0].command
    values = [found['/**']['ros__parameters']['a'] for found in parameter_files(result)]
    assert values == ['$(var v)', 7]


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        ('<timer period="1"/>', '<timer> in <launch> is not supported here'),
        ('<param name="a" value="1"/>', '<param> in <launch> is not supported here'),
        (f'{NODE}><env name="a" value="1"/></node>', '<env> in <node> is not supported here'),
        (f'{NODE} exec_name="a"/>', 'attribute "exec_name" of <node> is not supported here'),
        ('<group scoped="false"/>', 'attribute "scoped" of <group> is not supported'),
        (f'{NODE} on_exit="restart"/>', 'on_exit="restart" is not supported'),
        ('<log message="$(eval 1)"/>', r'message="$(eval 1)": $(eval) is not supported here'),
        ('<group if="0"><log message="$(command ls)"/></group>', '$(command) is not supported'),
        ('<log message="$(var a"/>', 'no closing ) for $(var ...)'),
        ('<log message="$(var  a)"/>', 'exactly one space goes before each argument'),
        ('<log message="$(dirname a)"/>', '$(dirname) takes 0 to 0 arguments'),
        ('<log message="$(var \'a)"/>', "no closing ' in $(var ...)"),
        ('<log message="$(var nope)"/>', '$(var nope): not set, and no default given'),
        ('<log message="$(env UNSET)"/>', '$(env UNSET): not set, and no default given'),
        ('<log message="$(find-pkg-share nope)"/>', 'no package "nope" in '),
        ('<node pkg="fake"/>', '<node> needs the attribute "exec"'),
        ('<node pkg="fake" exec="nope"/>', 'no executable "nope" in lib/fake of '),
        (f'{NODE} name="a-b"/>', '"a-b" is not a node name'),
        (f'{NODE} namespace="a-b"/>', '"/a-b" is not a namespace'),
        (f'{NODE} output="full"/>', 'output="full" is none of screen, log, both'),
        (f'{NODE} respawn="maybe"/>', '"maybe" is not bool'),
        (f'{NODE} respawn_delay="-1"/>', 'respawn_delay="-1" is negative'),
        (f'{NODE} if="1" unless="1"/>', '<node> has both "if" and "unless"'),
        (f'{NODE} if="maybe"/>', 'if="maybe" is none of true, 1, false, 0'),
        (f'{NODE} args="\'a"/>', 'No closing quotation'),
        (f'{NODE}><param name="a"/></node>', '<param> needs the attribute "value"'),
        (f'{NODE}><param from="/nope.yaml"/></node>', '/nope.yaml: no such parameter file'),
        (f'{NODE}><param name="a" value="$(find-pkg-share x)"/></node>', 'no package "x" in '),
        ('<include file="/nope.launch.xml"/>', '/nope.launch.xml: no such launch file'),
        ('<executable cmd=""/>', 'the command is empty'),
        ('<group>', 'mismatched tag'),
    ],
)
def test_what_is_not_understood_is_refused_by_name_and_line(
    plan: PlanOf, body: str, message: str
) -> None:
    with pytest.raises(LaunchError) as error:
        plan(f'\n{body}')
    assert re.search(r'test\.launch\.xml:[34]: ', str(error.value))
    assert message in str(error.value)


def test_refusal_says_what_to_install(plan: PlanOf) -> None:
    with pytest.raises(LaunchError, match='install the real launch package'):
        plan('<timer/>')


def test_source_checkout_without_executables_says_pip_install(
    plan: PlanOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / 'package.xml').touch()
    (tmp_path / 'setup.py').touch()
    monkeypatch.setattr(sys, 'prefix', str(tmp_path / 'nowhere'))
    monkeypatch.setattr(share, '__file__', str(tmp_path / 'lnn_ros/share.py'))
    with pytest.raises(LaunchError, match='source checkout: `pip install .` first'):
        plan('<node pkg="lnn_ros" exec="controller_node"/>')


# --- share ------------------------------------------------------------------------------------


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


# --- our own launch files ---------------------------------------------------------------------


@pytest.fixture
def our_package(prefix: Path) -> Path:
    folder = prefix / 'share/lnn_ros'
    (folder / 'config').mkdir(parents=True)
    (folder / 'launch').symlink_to(ROOT / 'launch')
    for name in ('controller', 'simulator'):
        (folder / f'config/{name}.yaml').write_text('/**: {ros__parameters: {}}')
        install(prefix, f'{name}_node', 'exit 0', package='lnn_ros')
    return folder / 'launch'


def parameters(plan: Plan, index: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for file in parameter_files(plan, index):
        for node in file.values():
            found.update(node['ros__parameters'])
    return found


def test_sim_launch_starts_simulator_and_controller_with_typed_parameters(
    our_package: Path, tmp_path: Path
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


def test_controller_launch_remaps_its_topics(our_package: Path, tmp_path: Path) -> None:
    given = {'image': '/cam/image', 'name': 'left', 'log_level': 'debug'}
    plan = Plan(our_package / 'controller.launch.xml', given, tmp_path, print)
    command = plan.processes[0].command
    assert words(plan) == ['--ros-args', '--log-level', 'debug']
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


def test_arguments_are_listed_in_order_with_defaults_as_written(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """<arg name="a" description="First."/>
      <group><arg name="b" default="$(var a)"><choice value="x"/></arg></group>""",
    )
    assert launch_xml.arguments(file) == [
        Argument('a', None, 'First.'), Argument('b', '$(var a)', '', ('x',)),
    ]  # fmt: skip


# --- running ----------------------------------------------------------------------------------


def sh(script: str, name: str = 'a-1', **how: object) -> Process:
    return Process(name, ('sh', '-c', script), dict(os.environ), **{'output': 'screen', **how})


def run_here(*processes: Process, patience: float = 5.0) -> int:
    with Log() as log:
        return run(processes, log, patience, patience)


def test_output_lines_carry_the_name_of_their_process(capfd: pytest.CaptureFixture[str]) -> None:
    script = "printf 'one\\ntwo\\nend'; printf 'caf\\303\\251\\n' >&2"
    assert run_here(sh(script)) == 0
    out = capfd.readouterr().out.splitlines()
    assert {'[a-1] one', '[a-1] two', '[a-1] end', '[a-1] café'} <= set(out)
    assert re.fullmatch(r'\[INFO\] \[a-1\]: process started with pid \[\d+\]', out[0])
    assert re.fullmatch(r'\[INFO\] \[a-1\]: process has finished cleanly \[pid \d+\]', out[-1])


def test_lines_of_two_processes_do_not_mix(capfd: pytest.CaptureFixture[str]) -> None:
    script = 'i=0; while [ $i -lt 200 ]; do printf half; printf "half\\n"; i=$((i+1)); done'
    run_here(sh(script), sh(script, 'b-2'))
    out = capfd.readouterr().out.splitlines()
    assert (out.count('[a-1] halfhalf'), out.count('[b-2] halfhalf')) == (200, 200)


@pytest.mark.parametrize(
    ('output', 'on_screen', 'in_file'),
    [('screen', 'oe', ''), ('log', 'e', 'oe'), ('both', 'oe', 'oe')],
)
def test_output_goes_where_launch_sends_it(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, output: str, on_screen: str, in_file: str
) -> None:
    run_here(sh('echo :o:; echo :e: >&2', output=output))
    screen = capfd.readouterr().out
    file = next((tmp_path / 'log').glob('*/launch.log')).read_text()
    assert ''.join(c for c in 'oe' if f'[a-1] :{c}:' in screen) == on_screen
    assert ''.join(c for c in 'oe' if f'[a-1] :{c}:' in file) == in_file
    assert 'process started' in screen and 'process started' in file


def test_death_of_a_required_process_ends_the_others_with_its_code(
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = sh('trap "echo stopped; exit 0" INT; ' + READY, 'b-2')
    assert run_here(sh('sleep 0.2; exit 7', required=True), other) == 7
    out = capfd.readouterr().out
    assert '[b-2] stopped' in out
    assert "exit code 7, cmd 'sh -c sleep 0.2; exit 7']" in out


def test_required_process_that_a_signal_killed_gives_128_and_the_signal() -> None:
    assert run_here(sh('kill -SEGV $$', required=True)) == 128 + signal.SIGSEGV


def test_death_of_a_process_that_is_not_required_leaves_the_others_running(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run_here(sh('exit 3'), sh('sleep 0.2; echo still here', 'b-2')) == 0
    assert '[b-2] still here' in capfd.readouterr().out


def test_death_of_a_required_process_shows_though_a_grandchild_holds_its_output() -> None:
    # The background job of a shell ignores SIGINT.
    begin = time.monotonic()
    assert run_here(sh('sleep 60 & exit 4', required=True)) == 4
    assert time.monotonic() - begin < 4


def test_process_is_respawned_after_its_delay(prefix: Path, tmp_path: Path) -> None:
    install(
        prefix,
        'node',
        f"""
      echo x >> {tmp_path}/runs
      test "$(grep -c x {tmp_path}/runs)" -lt 3 || kill -INT $PPID""",
    )
    begin = time.monotonic()
    result = launch_outside(tmp_path, f'{NODE} respawn="true" respawn_delay="0.2"/>')
    assert result.wait(10) == 0
    assert (tmp_path / 'runs').read_text().count('x') == 3
    assert time.monotonic() - begin >= 0.4


def test_program_that_cannot_be_started_ends_the_launch(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run_here(sh(READY), Process('b-2', ('/nope',), {})) == 1
    assert '[ERROR] [b-2]: cannot start:' in capfd.readouterr().out


def test_stubborn_process_gets_sigint_then_sigterm_then_sigkill(
    capfd: pytest.CaptureFixture[str],
) -> None:
    stubborn = sh('trap "echo INT" INT; trap "echo TERM" TERM; ' + READY, 'b-2')
    assert run_here(sh('sleep 0.3; exit 1', required=True), stubborn, patience=0.3) == 1
    out = capfd.readouterr().out
    order = [out.index(text) for text in ('sent SIGINT', 'sent SIGTERM', 'sent SIGKILL')]
    assert order == sorted(order)
    assert '[b-2] INT' in out and '[b-2] TERM' in out
    assert 'exit code -9' in out


# --- the launcher as a program ----------------------------------------------------------------

LAUNCHER = """
import sys
from pathlib import Path
from lnn_ros import launch_xml
launch_xml._is_installed = lambda name: False
given = dict(argument.split(':=', 1) for argument in sys.argv[2:])
sys.exit(launch_xml.launch(Path(sys.argv[1]), given))
"""
launched: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_launcher_survives() -> Iterator[None]:
    yield
    while launched:
        launcher = launched.pop()
        launcher.kill()
        launcher.wait()


def launch_outside(
    tmp_path: Path, body: str, *arguments: str, until: int = 0
) -> 'subprocess.Popen[str]':
    """Start a launcher of its own, and wait until `until` of its processes have said ready."""
    launcher = subprocess.Popen(
        [sys.executable, '-c', LAUNCHER, str(write(tmp_path, body)), *arguments],
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    launched.append(launcher)
    assert launcher.stdout is not None
    while until:
        line = launcher.stdout.readline()
        assert line, 'the launcher ended early'
        until -= line.endswith('ready\n')
    return launcher


def is_alive(pid: int) -> bool:
    try:
        status = Path(f'/proc/{pid}/stat').read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(')')[2].split()[0] != 'Z'


def wait_until(condition: Callable[[], bool], timeout: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def install_pid_writer(prefix: Path, name: str, traps: str = '') -> None:
    install(prefix, name, f'{traps}\necho $$ > $PIDS/{name}; {READY}')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_launcher_alone_stops_all_nodes_and_leaves_no_orphan(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv('PIDS', str(tmp_path))
    install_pid_writer(prefix, 'polite', 'trap "echo safe command sent; exit 0" INT')
    install_pid_writer(prefix, 'stubborn', 'trap "" INT TERM')
    nodes = ''.join(
        f'<node pkg="fake" exec="{name}" output="screen"/>' for name in ('polite', 'stubborn')
    )
    timeouts = ('sigterm_timeout:=0.2', 'sigkill_timeout:=0.2')
    launcher = launch_outside(tmp_path, nodes, *timeouts, until=2)
    pids = [int((tmp_path / name).read_text()) for name in ('polite', 'stubborn')]
    assert all(is_alive(pid) for pid in pids)
    os.kill(launcher.pid, number)
    out, _ = launcher.communicate(timeout=10)
    assert launcher.returncode == 0
    assert '[polite-1] safe command sent' in out
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != 'linux', reason='PR_SET_PDEATHSIG is Linux only')
def test_node_gets_sigterm_when_the_launcher_is_killed(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('PIDS', str(tmp_path))
    install_pid_writer(prefix, 'node', 'trap "exit 0" TERM')
    launcher = launch_outside(tmp_path, f'{NODE} output="screen"/>', until=1)
    pid = int((tmp_path / 'node').read_text())
    launcher.kill()
    assert wait_until(lambda: not is_alive(pid))


def test_launch_returns_the_code_of_the_node_that_ended_it(prefix: Path, tmp_path: Path) -> None:
    install(prefix, 'node', 'exit 6')
    launcher = launch_outside(tmp_path, f'{NODE} on_exit="shutdown"/>')
    assert launcher.wait(10) == 6


def test_closed_console_does_not_stop_the_nodes(prefix: Path, tmp_path: Path) -> None:
    body = f'<executable cmd="sh -c \'echo ready; sleep 0.2; echo a; touch {tmp_path}/end\'" '
    launcher = launch_outside(tmp_path, f'{body} output="screen"/>', until=1)
    assert launcher.stdout is not None
    launcher.stdout.close()
    assert launcher.wait(10) == 0
    assert (tmp_path / 'end').exists()


def test_launch_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match='no such launch file'):
        launch_xml.launch(tmp_path / 'nope.launch.xml', {})


def test_folder_named_launch_does_not_pass_for_the_real_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'folder_like_launch').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not launch_xml._is_installed('folder_like_launch')
    assert launch_xml._is_installed('yaml')
