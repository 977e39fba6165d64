import os
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

import pytest

import lnn_ros
from lnn_ros.core import build
from lnn_ros.share import share_directory

CHECKOUT = Path(__file__).resolve().parents[2]
SHARE = share_directory()
PREFIX = SHARE.parents[1]
PACKAGE = Path(lnn_ros.__file__).parent


def files(*patterns):
    return sorted(
        path.relative_to(CHECKOUT).as_posix()
        for pattern in patterns
        for path in CHECKOUT.glob(pattern)
        if path.is_file() and '__pycache__' not in path.parts and not path.name.startswith('.')
    )


def test_tests_run_against_the_installed_package():
    assert PACKAGE.parent != CHECKOUT
    assert CHECKOUT != SHARE


def test_version_is_the_same_everywhere():
    versions = {
        'package.xml': ElementTree.parse(CHECKOUT / 'package.xml').findtext('version'),
        'installed package.xml': ElementTree.parse(SHARE / 'package.xml').findtext('version'),
        'installed distribution': metadata.version('lnn_ros'),
        '__version__': lnn_ros.__version__,
    }
    assert len(set(versions.values())) == 1, versions


@pytest.mark.parametrize('name', files('launch/*', 'config/*', 'policies/*', 'package.xml'))
def test_file_is_installed_in_the_share_directory(name):
    assert (SHARE / name).read_bytes() == (CHECKOUT / name).read_bytes(), 'reinstall the package'


def test_share_directory_holds_nothing_that_the_checkout_has_not():
    folders = ('launch', 'config', 'policies')
    found = [
        path.relative_to(SHARE).as_posix() for name in folders for path in SHARE.glob(f'{name}/*')
    ]
    assert sorted(found) == files('launch/*', 'config/*', 'policies/*')


def test_modules_and_their_data_are_installed_and_no_others():
    found = sorted(
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    )
    modules = tuple(f'lnn_ros/core/{name}.' for name in build.PRECISIONS)
    compiled = [name for name in found if name.startswith(modules)]
    # none: no C compiler was there; `make core` judges that
    assert len(compiled) in (0, len(modules))
    assert [name for name in found if name not in compiled] == files('lnn_ros/**/*')


@pytest.mark.parametrize('name', files('resource/*_node'))
def test_node_is_an_executable_where_launch_looks_for_it(name):
    installed = PREFIX / 'lib' / 'lnn_ros' / Path(name).name
    assert installed.is_file()
    assert os.access(installed, os.X_OK)


def test_every_node_module_has_an_executable():
    names = {Path(name).name for name in files('resource/*_node')}
    assert names == {Path(name).stem for name in files('lnn_ros/nodes/*_node.py')}
    assert names >= {'controller_node', 'simulator_node'}


def test_package_is_in_the_ament_index():
    assert (PREFIX / 'share/ament_index/resource_index/packages/lnn_ros').is_file()
