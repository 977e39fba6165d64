"""How our nodes start, run and stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import try_shutdown

from lnn_ros.nodes.parameters import Parameter

EXECUTOR = Parameter(
    'executor', 'lean', "What calls the node's callbacks: lean, or rclpy's own single_threaded"
)


class Stop:
    """Becomes true when SIGINT or SIGTERM asks the process to stop.

    rclpy's own handler shuts the context down at once, before a safe command could go out.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked


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


def run(live: Callable[[Stop], int], args: list[str] | None) -> None:
    """Initialise rclpy, let `live` run until it returns an exit code, exit with that."""
    stop = Stop()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        code = live(stop)
    finally:
        try_shutdown()
    sys.exit(code)
