import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lnn_ros

ROOT = Path(lnn_ros.__file__).parent
MODULES = {
    '.'.join(('lnn_ros', *path.relative_to(ROOT).with_suffix('').parts)).removesuffix(
        '.__init__'
    ): path
    for path in sorted(ROOT.rglob('*.py'))
}
CHECKOUT = Path(__file__).resolve().parents[2]
FILES = MODULES | {
    str(path.relative_to(CHECKOUT)): path
    for folder in ('test', 'benchmarks')
    for path in sorted((CHECKOUT / folder).rglob('*.py'))
}
ROS = {
    'rclpy', 'rcl_interfaces', 'builtin_interfaces', 'diagnostic_msgs', 'geometry_msgs',
    'lifecycle_msgs', 'rosgraph_msgs', 'sensor_msgs', 'std_msgs', 'std_srvs',
}  # fmt: skip
BELOW = {'lnn_ros.core', 'lnn_ros.observation', 'lnn_ros.policy', 'lnn_ros.safety'}

# Module or package: what it may import besides the standard library and itself.
RULES = {
    'lnn_ros.timing': set(),
    'lnn_ros.safety': {'numpy'},
    'lnn_ros.schema': set(),
    'lnn_ros.policy': {'numpy', 'safetensors', 'lnn_ros.schema'},
    'lnn_ros.observation': {'numpy', 'lnn_ros.policy', 'lnn_ros.core'},
    'lnn_ros.core': {'numpy', 'lnn_ros.policy', 'lnn_ros.schema'},
    'lnn_ros.controller': {'numpy', 'lnn_ros.timing', *BELOW},
    'lnn_ros.liquid': {
        'numpy',
        'torch',
        'lnn_ros.core',
        'lnn_ros.policy',
        'lnn_ros.schema',
        'ncps',
    },
    'lnn_ros.share': set(),
}


def imports_of(path):
    """Return every module that a file imports, wherever in it, in full dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative imports are not followed here'
            names = {f'{node.module}.{alias.name}' for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found - {'lnn_ros'}


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def inside(module, package):
    return module == package or module.startswith(package + '.')


def importers(*packages):
    """Return the modules that import any of `packages`."""
    return {m for m, names in IMPORTS.items() if any(inside(n, p) for n in names for p in packages)}


@pytest.mark.parametrize('part', RULES)
def test_part_imports_only_what_its_rule_allows(part):
    members = [module for module in MODULES if inside(module, part)]
    assert members
    for module in members:
        for name in IMPORTS[module]:
            allowed = (
                name.partition('.')[0] in sys.stdlib_module_names
                or inside(name, part)
                or any(inside(name, package) for package in RULES[part])
            )
            assert allowed, f'{module} imports {name}'


@pytest.mark.parametrize(
    ('package', 'users'),
    [
        ('torch', ('lnn_ros.liquid', 'lnn_ros.training')),
        ('lnn_ros.liquid', ('lnn_ros.liquid', 'lnn_ros.training')),
        (
            'ncps',
            (
                'lnn_ros.liquid.ncps_bridge',
                'lnn_ros.training.core_contenders',
                'lnn_ros.training.rate_nets',
            ),
        ),
        ('mujoco', ('lnn_ros.sim',)),
        ('safetensors', ('lnn_ros.policy',)),
        ('lnn_ros.nodes', ('lnn_ros.nodes', 'lnn_ros.cli')),  # bench node
        *((package, ('lnn_ros.nodes',)) for package in sorted(ROS)),
    ],
)
def test_package_is_imported_nowhere_else(package, users):
    strangers = {m for m in importers(package) if not any(inside(m, user) for user in users)}
    assert not strangers


@pytest.mark.parametrize('module', ['lnn_ros.nodes.controller_node', 'lnn_ros.controller'])
def test_nothing_that_the_controller_process_imports_leads_to_torch(module):
    reached, left = set(), {module}
    while left:
        name = left.pop()
        reached.add(name)
        left |= IMPORTS.get(name, set()) - reached
    heavy = {
        name for name in reached if name.partition('.')[0] in {'torch', 'mujoco', 'matplotlib'}
    }
    assert not heavy
    assert 'lnn_ros.core.numpy_engine' in reached  # the walk does follow imports in functions


def test_running_the_shipped_policy_loads_neither_torch_nor_mujoco_nor_ros(tmp_path):
    script = """
import sys
from lnn_ros import policy
from lnn_ros.controller import Controller
from lnn_ros.share import share_directory
controller = Controller(policy.load(share_directory() / 'policies' / 'car.safetensors'))
controller.on_image(bytes(64 * 48 * 3), 48, 64, 'rgb8', 192, 10**9)
command = None
for i in range(7):
    command = controller.on_imu((0.0, 0.0, 0.0), (0.0, 0.0, 9.81), 10**9 + i * 10**7)
print(command.mode.value)
print(*sorted({'torch', 'mujoco', 'matplotlib', 'rclpy', 'yaml'} & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, '-c', script],
        cwd=tmp_path,  # not the checkout, which -c would put on sys.path
        env=dict(os.environ, PYTHONDONTWRITEBYTECODE='1'),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split('\n') == ['running', '', '']


@pytest.mark.parametrize('name', FILES)
def test_file_can_be_read_in_one_sitting(name):
    assert len(FILES[name].read_text().splitlines()) <= 400
