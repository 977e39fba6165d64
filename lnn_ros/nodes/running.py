"""How our nodes start, run and stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import try_shutdown

from lnn_ros.nodes.parameters import Parameter

EXECUTOR = Parameter(
    'executor', 'lean', "What calls the node's callbacks: lean, or rclpy's own single_threaded"
)


class Stop:
    """Becomes true when SIGINT, SIGTERM or SIGHUP (a closed terminal) asks the process to stop.

    rclpy's own handler shuts the context down at once, before a safe command could go out.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked


def guard(node: Node) -> None:
    """Let what any peer may send, and rclpy cannot deal with, fail alone.

    An illegal lifecycle transition, a parameter of an unknown type or a negative /clock raises out
    of spin(): any peer could end the node.
    """
    for service in node.services:
        service.callback = partial(_serve, node, service.srv_name, service.callback)
    for subscription in node.subscriptions:
        if subscription.topic_name == '/clock':
            subscription.callback = partial(_take, node, subscription.callback)


def _take(node: Node, callback: Callable[[Any], None], message: Any) -> None:
    try:
        callback(message)
    except Exception as error:
        node.get_logger().error(f'/clock: ignored {message}: {error}', throttle_duration_sec=2.0)


def _serve(
    node: Node, name: str, callback: Callable[[Any, Any], Any], request: Any, response: Any
) -> Any:
    try:
        return callback(request, response)
    except Exception as error:
        node.get_logger().error(f'{name}: refused {request}: {error}')
        return response  # as it was made: success=False, or no results


def open_executor(node: Node) -> Executor:
    """Return the executor that the parameter `executor` names, with the node; a context manager.

    Where the lean one does not fit the rclpy that is installed, it is the single-threaded one.

    Raises:
        ValueError: when there is no executor of that name.
    """
    name = node.get_parameter('executor').value
    if name not in ('lean', 'single_threaded'):
        raise ValueError(f"parameter executor is '{name}', there are lean and single_threaded")
    executor: Executor | None = None
    if name == 'lean':
        try:
            from lnn_ros.nodes.lean_executor import LeanExecutor

            executor = LeanExecutor()
        except (AttributeError, ImportError, RuntimeError) as error:
            node.get_logger().warning(f'single_threaded instead of lean executor: {error}')
    executor = executor or SingleThreadedExecutor()
    executor.add_node(node)
    return executor


N = TypeVar('N', bound=Node)


def run(
    make: Callable[[], N],
    live: Callable[[N, Executor, Stop], int],
    args: list[str] | None,
) -> None:
    """Make a node, let `live` run it until it returns an exit code, and exit with that code.

    A parameter that the node refuses at start is the user's mistake: one line and exit code 1.
    """
    stop = Stop()
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # what --ros-args says cannot be understood
        sys.exit(f'not started: {error}')
    code = 1
    try:
        try:
            node = make()
            executor = open_executor(node)
        except (ParameterException, ValueError, RuntimeError, OSError) as error:
            print(f'not started: {error}', file=sys.stderr)
        else:
            guard(node)
            with executor:
                code = live(node, executor, stop)
                node.destroy_node()
    finally:
        try_shutdown()
    sys.exit(code)
