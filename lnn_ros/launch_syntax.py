"""Read ROS 2 XML launch files: their tags, attributes and substitutions, each with its line.

The names are those of launch_xml 3.4.3 and launch_ros 0.26.6 (ROS 2 Jazzy). The table RULES is the
subset that `launch_xml` runs; everything else is refused here, by name and line, before anything is
started.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

import yaml

UNSUPPORTED = (
    'is not supported here; use another form, or install the real launch package '
    '(ros-jazzy-launch-xml and ros-jazzy-launch-ros)'
)
_PROCESS = 'if unless output respawn respawn_delay on_exit launch-prefix'
_ACTIONS = 'arg let set_env log group push_ros_namespace include node executable'
# By tag, or parent/tag for the parts of an action: (attributes it needs, may have, child tags).
RULES: dict[str, tuple[str, str, str]] = {
    '': ('', '', 'launch'),
    'launch': ('', '', _ACTIONS),
    'arg': ('name', 'default description if unless', 'choice'),
    'arg/choice': ('value', '', ''),
    'let': ('name value', 'if unless', ''),
    'set_env': ('name value', 'if unless', ''),
    'log': ('message', 'if unless', ''),
    'group': ('', 'if unless', _ACTIONS),
    'push_ros_namespace': ('namespace', 'if unless', ''),
    'include': ('file', 'if unless', 'arg'),
    'include/arg': ('name value', '', ''),
    'node': ('pkg exec', f'{_PROCESS} name namespace args ros_args', 'param remap'),
    'node/param': ('name value', 'type', ''),
    'node/param from': ('from', 'allow_substs', ''),
    'node/remap': ('from to', '', ''),
    'executable': ('cmd', f'{_PROCESS} name', ''),
}
_LITERAL = {('arg', 'name'), ('arg', 'description'), ('arg/choice', 'value')}
# By name: the least and the most arguments.
_SUBSTITUTIONS = {'var': (1, 2), 'env': (1, 2), 'find-pkg-share': (1, 1), 'dirname': (0, 0)}
_SCALARS: dict[str, type] = {'str': str, 'bool': bool, 'int': int, 'float': float}
# What the type of a <param> may be.
TYPES = ('yaml', *_SCALARS, *(f'list_of_{name}' for name in _SCALARS))


class LaunchError(RuntimeError):
    """A launch file, or an argument given to it, is wrong: the text says where and why."""


@dataclass
class Element:
    """One tag; `kind` is its key in RULES and `where` its file:line."""

    tag: str
    kind: str
    attributes: dict[str, str]
    where: str
    children: list['Element'] = field(default_factory=list)

    def fail(self, text: str) -> NoReturn:
        """Raise LaunchError with the place in front."""
        raise LaunchError(f'{self.where}: {text}')


@dataclass
class Call:
    """A substitution, `$(name argument ...)`."""

    name: str
    arguments: list['Template']


Template = list[str | Call]


def read(file: Path) -> Element:
    """Return the <launch> element of a file.

    Raises:
        LaunchError: if the file is not XML or has something that RULES has not.
    """
    parser = expat.ParserCreate()
    root = Element('', '', {}, f'{file}:1')
    ancestors = [root]

    def start(tag: str, attributes: dict[str, str]) -> None:
        parent = ancestors[-1]
        # One tag can be two things: <arg> declares, and inside <include> it gives a value.
        kind = f'{parent.tag}/{tag}' if f'{parent.tag}/{tag}' in RULES else tag
        if f'{kind} from' in RULES and 'from' in attributes:
            kind = f'{kind} from'
        element = Element(tag, kind, attributes, f'{file}:{parser.CurrentLineNumber}')
        _check(element, parent)
        parent.children.append(element)
        ancestors.append(element)

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: ancestors.pop()
    try:
        parser.Parse(file.read_bytes(), True)
    except OSError as error:
        raise LaunchError(f'{file}: {error.strerror}') from None
    except expat.ExpatError as error:
        raise LaunchError(f'{file}:{error.lineno}: {expat.ErrorString(error.code)}') from None
    return root.children[0]


def _check(element: Element, parent: Element) -> None:
    tag, attributes = element.tag, element.attributes
    if tag not in RULES[parent.kind][2].split():
        element.fail(f'<{tag}>{f" in <{parent.tag}>" * bool(parent.tag)} {UNSUPPORTED}')
    needed, optional, _ = (words.split() for words in RULES[element.kind])
    for name, value in attributes.items():
        if name not in needed + optional:
            element.fail(f'attribute "{name}" of <{tag}> {UNSUPPORTED}')
        if (element.kind, name) not in _LITERAL:
            try:
                parse(value)
            except ValueError as error:
                element.fail(f'{name}="{value}": {error}')
    for name in needed:
        if name not in attributes:
            element.fail(f'<{tag}> needs the attribute "{name}"')
    if 'if' in attributes and 'unless' in attributes:
        element.fail(f'<{tag}> has both "if" and "unless"')
    if attributes.get('on_exit', 'shutdown') != 'shutdown':
        element.fail(f'on_exit="{attributes["on_exit"]}" {UNSUPPORTED}')


def parse(text: str) -> Template:
    r"""Split text into literal parts and substitutions; a backslash makes what follows literal.

    Raises:
        ValueError: if a substitution is unknown or malformed.
    """
    return _parse_until(text, 0, '')[0]


def unescape(text: str) -> str:
    """Return text that takes no substitutions without its backslashes."""
    return re.sub(r'\\(.)', r'\1', text)


def _parse_until(text: str, at: int, end: str) -> tuple[Template, int]:
    template: Template = []
    while at < len(text) and text[at] not in end:
        if text.startswith('$(', at):
            call, at = _parse_call(text, at + 2)
            template.append(call)
            continue
        if end == ' )' and text[at] in '(\'"':
            raise ValueError(f'quote or escape {text[at]} inside $(...)')
        if text[at] == '\\' and at + 1 < len(text):
            at += 1
        literal = template.pop() if template and isinstance(template[-1], str) else ''
        template.append(f'{literal}{text[at]}')
        at += 1
    return template, at


def _parse_call(text: str, at: int) -> tuple[Call, int]:
    word = re.compile(r'[A-Za-z][\w-]*', re.ASCII).match(text, at)
    name, at = (word.group(), word.end()) if word else ('', at)
    if name not in _SUBSTITUTIONS:
        raise ValueError(f'$({name}) {UNSUPPORTED}')
    call = Call(name, [])
    while text.startswith(' ', at):
        quote = text[at + 1 : at + 2]
        if quote in ('"', "'"):
            argument, at = _parse_until(text, at + 2, quote)
            if not text.startswith(quote, at):
                raise ValueError(f'no closing {quote} in $({name} ...)')
            at += 1
        else:
            argument, at = _parse_until(text, at + 1, ' )')
            if not argument:
                raise ValueError(f'exactly one space goes before each argument of $({name} ...)')
        call.arguments.append(argument)
    if not text.startswith(')', at):
        raise ValueError(f'no closing ) for $({name} ...)')
    least, most = _SUBSTITUTIONS[name]
    if not least <= len(call.arguments) <= most:
        raise ValueError(f'$({name}) takes {least} to {most} arguments')
    return call, at + 1


def coerce(text: str, kind: str, lenient: bool) -> Any:
    """Convert text to a parameter value of a type in TYPES.

    Args:
        lenient: keep what does not convert as text: it may hold substitutions.

    Raises:
        ValueError: if the text does not convert.
    """
    if kind == 'str' or (kind == 'yaml' and not text):
        return text
    wanted = 'a parameter value, for which type="str" takes any text' if kind == 'yaml' else kind
    digits = {'1': 'true', '0': 'false'}
    try:
        if kind in ('int', 'float'):
            return _SCALARS[kind](text)
        value = yaml.safe_load(digits.get(text, text) if kind == 'bool' else text)
    except (ValueError, yaml.YAMLError):
        if lenient and not kind.startswith('list'):
            return text
        raise ValueError(f'"{text}" is not {wanted}') from None
    items = value if isinstance(value, list) else [value]
    if kind == 'bool':
        fits = isinstance(value, (bool, str) if lenient else bool)
    else:
        fits = kind == 'yaml' or isinstance(value, list)
    if not fits or not all(isinstance(item, tuple(_SCALARS.values())) for item in items):
        raise ValueError(f'"{text}" is not {wanted}')
    return value
