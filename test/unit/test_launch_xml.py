"""The launch files run the same where `launch` is not installed: what they may say of nodes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lnn_ros import launch_xml
from lnn_ros.launch_xml import Argument, LaunchError, Plan

NODE = '<node pkg="fake" exec="node"'
PlanOf = Callable[..., Plan]


def words(plan: Plan, index: int = 0) -> list[str]:
    """Return what follows the executable, up to the arguments that launch adds by itself."""
    command = plan.processes[index].command
    last = max(i for i, word in enumerate(command) if word == '--ros-args')
    return list(command[1:last])


def ros_arguments(plan: Plan, index: int = 0) -> list[str]:
    command = plan.processes[index].command
    last = max(i for i, word in enumerate(command) if word == '--ros-args')
    return list(command[last + 1 :])


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
    plan: PlanOf, write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / 'sub').mkdir()
    inner = '<arg name="a"/><arg name="b" default="inner"/><let name="leak" value="yes"/>'
    write(f'{inner}{NODE} args="$(var a) $(var b) $(dirname)"/>', 'sub/test.launch.xml')
    result = plan(f"""
      <let name="b" value="outer"/>
      <include file="$(dirname)/sub/test.launch.xml"><arg name="a" value="$(var b)!"/></include>
      {NODE} args="$(var leak) $(var a) $(dirname)"/>""")
    assert words(result) == ['outer!', 'outer', f'{tmp_path}/sub']
    assert words(result, 1) == ['yes', 'outer!', f'{tmp_path}']


def test_error_in_an_included_file_names_that_file_and_its_line(
    plan: PlanOf, write: Callable[..., Path]
) -> None:
    write('\n\n<timer period="1"/>', 'inner.launch.xml')
    with pytest.raises(LaunchError, match=r'inner\.launch\.xml:4: <timer> in <launch> is not sup'):
        plan('<include file="$(dirname)/inner.launch.xml"/>')


def test_log_shows_its_message(plan: PlanOf, said: list[tuple[str, str, str]]) -> None:
    plan('<log message="speed $(var v)"/>', v='3')
    assert said[0] == ('INFO', 'launch.user', 'speed 3')


def test_arguments_are_listed_in_order_with_defaults_as_written(write: Callable[..., Path]) -> None:
    file = write(
        """<arg name="a" description="First."/>
      <group><arg name="b" default="$(var a)"><choice value="x"/></arg></group>""",
    )
    assert launch_xml.arguments(file) == [
        Argument('a', None, 'First.'), Argument('b', '$(var a)', '', ('x',)),
    ]  # fmt: skip


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
