"""Where packages keep what they install beside their code: launch files, policies, executables."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path


def share_directory() -> Path:
    """Return the share directory of lnn_ros: launch/, config/, policies/.

    In a source checkout it is the checkout itself, which has the same folders as the installed
    share directory. Installed by pip or colcon, the code is at
    <prefix>/lib/pythonX.Y/{site,dist}-packages/lnn_ros and the files at <prefix>/share/lnn_ros.

    Raises:
        FileNotFoundError: if neither exists.
    """
    here = Path(__file__).absolute()
    if (here.parents[1] / 'package.xml').is_file():
        return here.parents[1]
    share = here.parents[4] / 'share' / 'lnn_ros'
    if not share.is_dir():
        raise FileNotFoundError(
            f'{share}: the launch files and policies of lnn_ros are not there; '
            'install the package again with `pip install .` or `colcon build`'
        )
    return share


def prefixes(environment: Mapping[str, str]) -> list[str]:
    """Return where packages are installed: AMENT_PREFIX_PATH, and where pip puts them."""
    found = [path for path in environment.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if path]
    return found if sys.prefix in found else [*found, sys.prefix]


def find_share(package: str, environment: Mapping[str, str]) -> Path:
    """Return the share directory of a package; FileNotFoundError if there is none."""
    for prefix in prefixes(environment):
        share = Path(prefix, 'share', package)
        if share.is_dir():
            return share
    if package == 'lnn_ros':
        return share_directory()
    raise FileNotFoundError(f'no package "{package}" in {", ".join(prefixes(environment))}')


def find_executable(package: str, name: str, environment: Mapping[str, str]) -> str:
    """Return the path of a package's executable; FileNotFoundError if there is none."""
    for prefix in prefixes(environment):
        found = shutil.which(name, path=Path(prefix, 'lib', package))
        if found:
            return found
    share = find_share(package, environment)
    checkout = '; this is a source checkout: `pip install .` first'
    raise FileNotFoundError(
        f'no executable "{name}" in lib/{package} of {", ".join(prefixes(environment))} '
        f'(package "{package}" is {share}{checkout if (share / "setup.py").is_file() else ""})'
    )


def module_command(name: str) -> list[str]:
    """Return the command that runs a module with this interpreter and this installation."""
    # -P: the working directory may be a checkout, whose lnn_ros is not the one that runs here
    return [sys.executable, *(['-P'] if sys.version_info >= (3, 11) else []), '-m', name]
