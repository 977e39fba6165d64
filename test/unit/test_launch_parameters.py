"""The parameters in a launch file have the types and the scope that `launch` gives them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lnn_ros.launch_xml import LaunchError, Plan

NODE = '<node pkg="fake" exec="node"'
PlanOf = Callable[..., Plan]
FilesOf = Callable[..., list[dict]]


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
    plan: PlanOf, parameter_files: FilesOf, text: str, kind: str, value: object
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
    plan: PlanOf, parameter_files: FilesOf
) -> None:
    param = '<param name="a.b" value="1"/></node>'
    body = f'{NODE} name="n">{param}{NODE} name="n" namespace="">{param}'
    body += f'{NODE} namespace="/s">{param}{NODE} name="n" namespace="/s/t">{param}'
    result = plan(body)
    keys = [list(parameter_files(result, i)[0]) for i in range(4)]
    assert keys == [['/**'], ['/n'], ['/**'], ['/s/t/n']]
    assert parameter_files(result)[0]['/**'] == {'ros__parameters': {'a.b': 1}}


def test_parameter_file_is_passed_as_it_is_unless_substitutions_are_allowed(
    plan: PlanOf, parameter_files: FilesOf, tmp_path: Path
) -> None:
    file = tmp_path / 'p.yaml'
    file.write_text('/**: {ros__parameters: {a: $(var v)}}')
    param = f'<param from="{file}"/><param from="{file}" allow_substs="true"/>'
    result = plan(f'{NODE}>{param}</node>', v='7')
    assert str(file) in result.processes[0].command
    values = [found['/**']['ros__parameters']['a'] for found in parameter_files(result)]
    assert values == ['$(var v)', 7]
