"""What a launch file says and this launcher does not understand is refused, never passed over."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lnn_ros import share
from lnn_ros.launch_xml import LaunchError, Plan

NODE = '<node pkg="fake" exec="node"'
PlanOf = Callable[..., Plan]


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
