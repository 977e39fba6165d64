"""How our nodes start, run and stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import try_shutdown


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


def run(live: Callable[[SingleThreadedExecutor, Stop], int], args: list[str] | None) -> None:
    """Initialise rclpy, let `live` run until it returns an exit code, exit with that."""
    stop = Stop()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    try:
        code = live(executor, stop)
    finally:
        executor.shutdown()
        try_shutdown()
    sys.exit(code)
