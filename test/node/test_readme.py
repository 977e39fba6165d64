"""What the README says of the parameters is what the nodes declare."""

from pathlib import Path

import pytest

from lnn_ros import policy as policy_file
from lnn_ros.nodes import controller_node
from lnn_ros.nodes.commands import limit_parameters
from lnn_ros.share import share_directory

README = Path(__file__).resolve().parents[2] / 'README.md'


def row(parameter):
    """Return the line of the README's table that describes a parameter."""
    bounds = ''
    if parameter.bounds:
        bounds = f' ({parameter.bounds[0]} to {parameter.bounds[1]})'
    live = '' if parameter.read_only else ' *live*'
    default = "''" if parameter.default == '' else str(parameter.default).lower()
    return f'| `{parameter.name}` | {default} | {parameter.description}{bounds}{live} |'


def rows():
    policy = policy_file.load(share_directory() / 'policies' / 'car.safetensors')
    limits = [p for output in policy.contract.outputs for p in limit_parameters(output)]
    return [row(parameter) for parameter in (*controller_node.PARAMETERS, *limits)]


@pytest.mark.parametrize('line', rows())
def test_readme_describes_every_parameter_as_declared(line):
    assert line in README.read_text().splitlines()


def test_readme_has_no_hole_left_to_fill():
    assert '@' not in README.read_text()
