"""Keep the processes of a launch running, show what they print, and end them together.

`launch_xml` turns a launch file into a list of Process; `run` starts them and returns when all of
them have ended. Two rules shape this file. The death of a required process ends the launch at
once. And no process outlives the launcher: each one leads a process group of its own, so that a
terminal's Ctrl-C reaches the launcher alone, which then ends the groups in order, SIGINT first,
because a node publishes its last, safe command on SIGINT.
"""

import asyncio
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

OUTPUTS = ('screen', 'log', 'both')
_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec the child must do as little as possible.
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Process:
    """What to start, and what its end means for the others."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    output: str = 'log'
    required: bool = False
    respawn: bool = False
    respawn_delay: float = 0.0


class Log:
    """The console and launch.log, written a whole line at a time."""

    def __init__(self) -> None:
        """Open launch.log in a new folder where the ROS log files are ($ROS_LOG_DIR, ~/.ros)."""
        home = os.environ.get('ROS_HOME') or '~/.ros'
        base = Path(os.environ.get('ROS_LOG_DIR') or f'{home}/log').expanduser()
        stamp = f'{datetime.now():%Y-%m-%d-%H-%M-%S-%f}'
        self.directory = base / f'{stamp}-{socket.gethostname()}-{os.getpid()}'
        self.directory.mkdir(parents=True)
        self._file = (self.directory / 'launch.log').open('w', encoding='utf-8', buffering=1)

    def __enter__(self) -> 'Log':
        """Return the log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def say(self, level: str, name: str, text: str) -> None:
        """Report an event of the launch itself, on the console and in the file."""
        line = f'[{level}] [{name}]: {text}'
        self._screen(line)
        self._file.write(f'{time.time():.7f} {line}\n')

    def pass_on(self, process: Process, source: str, text: str) -> None:
        """Show a line that a process wrote to `source` (stdout or stderr), as its output asks."""
        line = f'[{process.name}] {text}'
        # An output of `log` still shows stderr on the console: that is where errors go.
        if process.output != 'log' or source == 'stderr':
            self._screen(line)
        if process.output != 'screen':
            self._file.write(f'{time.time():.7f} {line}\n')

    @staticmethod
    def _screen(line: str) -> None:
        encoding = sys.stdout.encoding or 'utf-8'
        try:
            print(line.encode(encoding, 'replace').decode(encoding), flush=True)
        except OSError:
            # A closed terminal or pipe must not stop a robot's nodes. What stays in the buffer
            # would fail once more at exit, and change the exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(
    processes: Sequence[Process],
    log: Log,
    sigterm_timeout: float = 5.0,
    sigkill_timeout: float = 5.0,
) -> int:
    """Start the processes and wait until all have ended.

    SIGINT, SIGTERM and SIGHUP to this process end them all, as does the end of a required one.

    Args:
        sigterm_timeout: seconds from SIGINT to SIGTERM.
        sigkill_timeout: seconds from SIGTERM to SIGKILL.

    Returns:
        the exit code of the required process that ended the launch (128 + n for signal n),
            1 if a process could not be started, else 0.
    """
    return asyncio.run(_Launch(log, sigterm_timeout, sigkill_timeout).run(processes))


class _Launch:
    """One run: the event `stopping` is what its processes have in common."""

    def __init__(self, log: Log, sigterm_timeout: float, sigkill_timeout: float) -> None:
        self.log = log
        self.stopping = asyncio.Event()
        self.escalation = (signal.SIGINT, sigterm_timeout), (signal.SIGTERM, sigkill_timeout)

    async def run(self, processes: Sequence[Process]) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup ignores SIGHUP on purpose. A shell's `&` ignores SIGINT too, but a launch that
            # cannot be interrupted has no use.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal, number)
        codes = await asyncio.gather(*(self._keep(process) for process in processes))
        return next((code for code in codes if code), 0)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self.stopping.is_set():
            self.log.say('WARNING', 'launch', f'{number.name} received, stopping all processes')
            self.stopping.set()

    async def _keep(self, process: Process) -> int:
        """Run one process until the launch stops or it ends for good; return its share of code."""
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            while not self.stopping.is_set():
                try:
                    code, died = await self._run_once(process, stopping)
                except OSError as error:
                    self.log.say('ERROR', process.name, f'cannot start: {error}')
                    self.stopping.set()
                    return 1
                if died and process.required:
                    return code if code >= 0 else 128 - code
                if not died or not process.respawn:
                    return 0
                await asyncio.wait({stopping}, timeout=process.respawn_delay)
            return 0
        finally:
            stopping.cancel()

    async def _run_once(self, process: Process, stopping: 'asyncio.Task[bool]') -> tuple[int, bool]:
        """Run one process to its end; return its code and whether it ended of its own accord."""
        # Own pipes, not asyncio's: from Python 3.12 on its wait() returns only when the pipes are
        # closed, so a grandchild that holds one would hide the death of the node.
        (out, stdout), (err, stderr) = os.pipe(), os.pipe()
        readers = {
            asyncio.create_task(self._read(process, 'stdout', out)),
            asyncio.create_task(self._read(process, 'stderr', err)),
        }
        try:
            child = await asyncio.create_subprocess_exec(
                *process.command,
                env=process.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=_end_with_launcher,
            )
        finally:
            os.close(stdout)
            os.close(stderr)
        self.log.say('INFO', process.name, f'process started with pid [{child.pid}]')

        exited = asyncio.create_task(child.wait())
        await asyncio.wait({exited, stopping}, return_when=asyncio.FIRST_COMPLETED)
        died = exited.done() and not self.stopping.is_set()
        if died and process.required:
            self.log.say('INFO', process.name, 'on_exit="shutdown": stopping all processes')
            self.stopping.set()
        await self._end_group(process, child.pid, exited)  # all of it, or what it left behind
        code = await exited
        _, unread = await asyncio.wait(readers, timeout=1.0)
        for reader in unread:
            reader.cancel()
        if code == 0:
            self.log.say('INFO', process.name, f'process has finished cleanly [pid {child.pid}]')
        else:
            self.log.say(
                'ERROR',
                process.name,
                f'process has died [pid {child.pid}, exit code {code}, '
                f"cmd '{' '.join(process.command)}'].",
            )
        return code, died

    async def _read(self, process: Process, source: str, descriptor: int) -> None:
        stream = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, 'rb', 0)
        )
        rest = b''
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b'\n')
            for line in lines:
                self.log.pass_on(process, source, line.decode(errors='replace'))
        if rest:
            self.log.pass_on(process, source, rest.decode(errors='replace'))

    async def _end_group(self, process: Process, group: int, exited: 'asyncio.Task[int]') -> None:
        for number, patience in self.escalation:
            if not _signal_group(group, number):
                return
            if not exited.done():
                self.log.say('INFO', process.name, f'sent {number.name}')
                await asyncio.wait({exited}, timeout=patience)
            if exited.done():
                break
            late = f'still running {patience:g} s after {number.name}'
            self.log.say('ERROR', process.name, late)
        # A node that runs behind a launch-prefix may take a moment longer than the prefix. No more
        # than that: where nothing reaps orphans, in many containers, dead ones count as there.
        deadline = time.monotonic() + 1.0
        while exited.done() and time.monotonic() < deadline and _signal_group(group, 0):
            await asyncio.sleep(0.02)
        if _signal_group(group, signal.SIGKILL) and not exited.done():
            self.log.say('INFO', process.name, 'sent SIGKILL')


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group (0 only asks); return whether it was there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        return False
    return True


def _end_with_launcher() -> None:
    """In the child: ask Linux for SIGTERM should the launcher be killed before it can send it."""
    if sys.platform == 'linux':
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
