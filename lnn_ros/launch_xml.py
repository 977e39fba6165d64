"""Run ROS 2 XML launch files, also where the `launch` package is not installed.

Nodes can be installed with pip (ros-jazzy-*), `launch` can not. With the real package importable,
`launch` below hands the file to it. Without, it is read by `launch_syntax`, carried out here and
run by `launch_process`: the same file starts the same processes with the same arguments and
parameter values either way. The behaviour is that of launch 3.4.3 and launch_ros 0.26.6 (Jazzy).

Departures from them, on purpose: the launch returns the exit code of the node whose
on_exit="shutdown" ended it; SIGTERM ends the nodes too; $(dirname) keeps its meaning after an
<include>; a missing parameter file is an error, and an unknown argument is warned about.
"""

import importlib
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from lnn_ros import launch_process
from lnn_ros.launch_process import Process
from lnn_ros.launch_syntax import (
    TYPES,
    Call,
    Element,
    LaunchError,
    Template,
    coerce,
    parse,
    read,
    unescape,
)
from lnn_ros.share import find_executable, find_share, prefixes

Say = Callable[[str, str, str], None]  # level, who, text

_SETTINGS = ('launch-prefix', 'sigterm_timeout', 'sigkill_timeout')  # launch has these built in


@dataclass(frozen=True)
class Argument:
    """A declared <arg>; one without a default must be given."""

    name: str
    default: str | None
    description: str
    choices: tuple[str, ...] = ()


def launch(file: Path, arguments: dict[str, str]) -> int:
    """Run a launch file until all its processes have ended, by the real `launch` where importable.

    Args:
        arguments: values for the file's <arg>s, as in `name:=value` on the command line.

    Returns:
        0, or the exit code of the node with on_exit="shutdown" that ended the launch.

    Raises:
        LaunchError: if the file or an argument is wrong; nothing was started then.
    """
    if not file.is_file():
        raise LaunchError(f'{file}: no such launch file')
    if all(_is_installed(name) for name in ('launch', 'launch_xml', 'launch_ros')):
        os.environ['AMENT_PREFIX_PATH'] = os.pathsep.join(prefixes(os.environ))
        return _launch_with_ros(file, arguments)
    with TemporaryDirectory(prefix='launch_params_') as scratch, launch_process.Log() as log:
        log.say('INFO', 'launch', f'All log files can be found below {log.directory}')
        plan = Plan(file, arguments, Path(scratch), log.say)
        return launch_process.run(plan.processes, log, plan.sigterm_timeout, plan.sigkill_timeout)


def arguments(file: Path) -> list[Argument]:
    """Return the arguments that a launch file declares, in order, with defaults as written."""
    found: list[Argument] = []

    def collect(element: Element) -> None:
        for child in element.children:
            if child.tag == 'group':
                collect(child)
            elif child.tag == 'arg':
                name = unescape(child.attributes['name'])
                about = unescape(child.attributes.get('description', ''))
                default = child.attributes.get('default')
                found.append(Argument(name, default, about, _choices(child)))

    collect(read(file))
    return found


def _is_installed(name: str) -> bool:
    # A folder called launch in the working directory, such as ours, is a namespace package to
    # Python: found, but without an origin.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _launch_with_ros(file: Path, arguments: dict[str, str]) -> int:
    ros = importlib.import_module('launch')
    codes = [0]

    def keep_code(event: Any, context: Any) -> None:
        # LaunchService.run() returns 0 however the node that ended the launch fared.
        on_exit = event.action.get_sub_entities()
        if not context.is_shutdown and any(isinstance(a, ros.actions.Shutdown) for a in on_exit):
            codes.append(event.returncode if event.returncode >= 0 else 128 - event.returncode)

    source = ros.launch_description_sources.AnyLaunchDescriptionSource(str(file))
    actions = [
        ros.actions.RegisterEventHandler(ros.event_handlers.OnProcessExit(on_exit=keep_code)),
        ros.actions.IncludeLaunchDescription(source, launch_arguments=arguments.items()),
    ]
    service = ros.LaunchService(noninteractive=not sys.stdin.isatty())
    service.include_launch_description(ros.LaunchDescription(actions))
    return int(service.run()) or max(codes)


class Plan:
    """What a launch file starts: `processes`, after every action in it has been carried out."""

    def __init__(self, file: Path, arguments: dict[str, str], scratch: Path, say: Say) -> None:
        """Carry out the file; a LaunchError gives file:line.

        Args:
            scratch: where parameter files are written; keep it while the processes run.
            say: shows a <log> or a warning.
        """
        self.processes: list[Process] = []
        self._configurations = dict(arguments)
        self._environment = dict(os.environ)
        # A child finds installed packages by this variable alone; pip puts them under sys.prefix.
        self._environment['AMENT_PREFIX_PATH'] = os.pathsep.join(prefixes(os.environ))
        # Without ROS around this is somebody's computer, not a robot: stay off its network.
        self._environment.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        self._environment.setdefault('PYTHONUNBUFFERED', '1')
        self._scratch, self._say = scratch, say
        self._declared: set[str] = set()
        self._run_file(file)
        for name in sorted(arguments.keys() - self._declared - set(_SETTINGS)):
            known = ', '.join(sorted(self._declared)) or 'none'
            say('WARNING', 'launch', f'{file} has no argument "{name}", only: {known}')
        self.sigterm_timeout, self.sigkill_timeout = (
            _timeout(name, self._configurations.get(name, '5'))
            for name in ('sigterm_timeout', 'sigkill_timeout')
        )

    def _run_file(self, file: Path) -> None:
        self._directory = file.absolute().parent
        for element in read(file).children:
            self._run(element)

    def _run(self, element: Element) -> None:
        for attribute, wanted in (('if', True), ('unless', False)):
            if attribute in element.attributes:
                text = self._get(element, attribute).strip().lower()
                if text not in ('true', '1', 'false', '0'):
                    element.fail(f'{attribute}="{text}" is none of true, 1, false, 0')
                if (text in ('true', '1')) != wanted:
                    return
        getattr(self, f'_{element.tag}')(element)

    # Each action, by its tag.

    def _arg(self, element: Element) -> None:
        name = unescape(element.attributes['name'])
        self._declared.add(name)
        if name not in self._configurations:
            if 'default' not in element.attributes:
                about = unescape(element.attributes.get('description', 'no description'))
                element.fail(f'argument "{name}" ({about}) is required: give {name}:=VALUE')
            self._configurations[name] = self._get(element, 'default')
        value, choices = self._configurations[name], _choices(element)
        if choices and value not in choices:
            element.fail(f'{name}:={value} is none of {", ".join(choices)}')

    def _let(self, element: Element) -> None:
        self._configurations[self._get(element, 'name')] = self._get(element, 'value')

    def _set_env(self, element: Element) -> None:
        self._environment[self._get(element, 'name')] = self._get(element, 'value')

    def _log(self, element: Element) -> None:
        self._say('INFO', 'launch.user', self._get(element, 'message'))

    def _group(self, element: Element) -> None:
        outside = self._configurations.copy(), self._environment.copy()
        for child in element.children:
            self._run(child)
        self._configurations, self._environment = outside

    def _push_ros_namespace(self, element: Element) -> None:
        namespace = self._namespace(element)
        assert namespace is not None
        self._configurations['ros_namespace'] = namespace

    def _include(self, element: Element) -> None:
        file = Path(self._get(element, 'file'))
        if not file.is_file():
            element.fail(f'{file}: no such launch file')
        # As in launch, arguments and whatever the file sets stay set after it: only <group> scopes.
        for argument in element.children:
            self._let(argument)
        directory = self._directory
        self._run_file(file)
        self._directory = directory

    def _executable(self, element: Element) -> None:
        self._start(element, self._words(element, 'cmd'), self._get(element, 'name', ''))

    def _node(self, element: Element) -> None:
        package, executable = self._get(element, 'pkg'), self._get(element, 'exec')
        try:
            command = [find_executable(package, executable, self._environment)]
        except (ValueError, FileNotFoundError) as error:
            element.fail(str(error))
        if 'args' in element.attributes:
            command += self._words(element, 'args')
        if 'ros_args' in element.attributes:
            command += ['--ros-args', *self._words(element, 'ros_args')]
        command.append('--ros-args')
        key, namespace = '/**', self._namespace(element)
        if 'name' in element.attributes:
            name = self._get(element, 'name')
            if not re.fullmatch('[A-Za-z_][A-Za-z0-9_]*', name):
                element.fail(f'"{name}" is not a node name: letters, digits and _, no digit first')
            command += ['-r', f'__node:={name}']
            if namespace is not None:
                key = f'{namespace.rstrip("/")}/{name}'
        if namespace is not None:
            command += ['-r', f'__ns:={namespace}']
        for param in element.children:
            if param.tag == 'param':
                command += ['--params-file', str(self._parameter_file(param, key))]
        for remap in element.children:
            if remap.tag == 'remap':
                command += ['-r', f'{self._get(remap, "from")}:={self._get(remap, "to")}']
        self._start(element, command)

    # What the actions are made of.

    def _start(self, element: Element, command: list[str], name: str = '') -> None:
        prefix = self._get(element, 'launch-prefix', self._configurations.get('launch-prefix', ''))
        output = self._get(element, 'output', 'log')
        respawn = self._get(element, 'respawn', 'false')
        try:
            command = shlex.split(prefix) + command
            delay = float(element.attributes.get('respawn_delay', '0'))
            is_respawned = coerce(respawn, 'bool', lenient=False)
        except ValueError as error:
            element.fail(str(error))
        if not any(command):
            element.fail('the command is empty')
        if delay < 0:
            element.fail(f'respawn_delay="{delay:g}" is negative')
        if output not in launch_process.OUTPUTS:
            element.fail(f'output="{output}" is none of {", ".join(launch_process.OUTPUTS)}')
        name = f'{name or os.path.basename(command[0])}-{len(self.processes) + 1}'
        process = Process(
            name,
            tuple(command),
            self._environment.copy(),
            output,
            required='on_exit' in element.attributes,
            respawn=is_respawned,
            respawn_delay=delay,
        )
        self.processes.append(process)

    def _parameter_file(self, param: Element, key: str) -> Path:
        """Return the file that gives a node this parameter; launch passes each in its own."""
        if param.kind == 'node/param':
            name, value = self._get(param, 'name'), self._value(param)
            text = yaml.dump({key: {'ros__parameters': {name: value}}}, default_flow_style=False)
        else:
            file = Path(self._get(param, 'from'))
            if not file.is_file():
                param.fail(f'{file}: no such parameter file')
            try:
                if not coerce(param.attributes.get('allow_substs', 'false'), 'bool', False):
                    return file
                text = self._perform(parse(file.read_text(encoding='utf-8')))
                yaml.safe_load(text)
            except (ValueError, OSError, yaml.YAMLError) as error:
                param.fail(f'{file}: {error}')
        written = self._scratch / f'launch_params_{len(list(self._scratch.iterdir()))}'
        written.write_text(text, encoding='utf-8')
        return written

    def _value(self, param: Element) -> Any:
        """Return the typed value of a <param>: by its `type`, else as YAML would read it."""
        kind, text = self._get(param, 'type', 'yaml'), param.attributes['value']
        if kind not in TYPES:
            param.fail(f'type="{kind}" is none of {", ".join(TYPES)}')

        def finish(item: Any, kind: str) -> Any:
            if not isinstance(item, str):
                return item
            template = parse(item)
            calls = any(isinstance(part, Call) for part in template)
            text = self._perform(template)
            return coerce(text, kind, lenient=False) if calls else text

        try:
            # First as written, so that '[1, $(var x)]' is a list; then what was substituted.
            value = coerce(text, kind, lenient=True)
            if isinstance(value, list):
                value = [finish(item, kind.removeprefix('list_of_')) for item in value]
            else:
                value = finish(value, kind)
        except (ValueError, FileNotFoundError) as error:
            param.fail(str(error))
        items = value if isinstance(value, list) else [value]
        kinds = {type(item).__name__ for item in items}
        if len(kinds) > 1 or (kind != 'yaml' and not kinds <= {kind.removeprefix('list_of_')}):
            param.fail(f'{value!r} mixes types, or is not of type="{kind}"')
        return value

    def _namespace(self, element: Element) -> str | None:
        """Return the absolute namespace of a <node> or after a push, None where none is set."""
        base = self._configurations.get('ros_namespace')
        namespace = self._get(element, 'namespace') if 'namespace' in element.attributes else base
        if namespace is None:
            return None
        if 'namespace' in element.attributes and base and not namespace.startswith('/'):
            namespace = f'{base}/{namespace}'
        namespace = '/' + namespace.strip('/')
        if not re.fullmatch('/|(/[A-Za-z_][A-Za-z0-9_]*)+', namespace):
            element.fail(f'"{namespace}" is not a namespace: letters, digits, _ and / between')
        return namespace

    def _words(self, element: Element, attribute: str) -> list[str]:
        """Split a command line; what a substitution gives stays one word, spaces and all."""
        words: list[str] = []
        word: str | None = None
        for part in parse(element.attributes[attribute]) or ['']:
            if isinstance(part, Call):
                word = (word or '') + self._try(element, [part])
                continue
            try:
                tokens = shlex.split(part)
            except ValueError as error:
                element.fail(f'{attribute}="{part}": {error}')
            if not tokens:  # blank: as in launch it ends a word, be it an empty one
                words.append(word or '')
                word = None
                continue
            if word is not None and not part[0].isspace():
                tokens[0] = word + tokens[0]
            elif word is not None:
                words.append(word)
            words += tokens[:-1]
            word = tokens[-1]
            if part[-1].isspace():
                words.append(word)
                word = None
        return words if word is None else [*words, word]

    def _get(self, element: Element, attribute: str, default: str = '') -> str:
        if attribute not in element.attributes:
            return default
        return self._try(element, parse(element.attributes[attribute]))

    def _try(self, element: Element, template: Template) -> str:
        try:
            return self._perform(template)
        except (ValueError, FileNotFoundError) as error:
            element.fail(str(error))

    def _perform(self, template: Template) -> str:
        return ''.join(p if isinstance(p, str) else self._substitute(p) for p in template)

    def _substitute(self, call: Call) -> str:
        if call.name == 'dirname':
            return str(self._directory)
        name, *default = (self._perform(argument) for argument in call.arguments)
        if call.name == 'find-pkg-share':
            return str(find_share(name, self._environment))
        values = self._configurations if call.name == 'var' else self._environment
        if name not in values and not default:
            raise ValueError(f'$({call.name} {name}): not set, and no default given')
        return values[name] if name in values else default[0]


def _choices(arg: Element) -> tuple[str, ...]:
    return tuple(unescape(choice.attributes['value']) for choice in arg.children)


def _timeout(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise LaunchError(f'{name}:={text} is no number of seconds') from None
