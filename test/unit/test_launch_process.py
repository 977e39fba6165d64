"""The processes of a launch file: their output, their end, and that nothing outlives it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lnn_ros import launch_xml
from lnn_ros.launch_process import Log, Process, run
from lnn_ros.launch_xml import LaunchError

pytestmark = pytest.mark.usefixtures('prefix')
ROOT = Path(__file__).resolve().parents[2]
NODE = '<node pkg="fake" exec="node"'
READY = 'echo ready; while :; do sleep 0.02; done'
LAUNCHER = """
import signal
import sys
from pathlib import Path
from lnn_ros import launch_xml
launch_xml._is_installed = lambda name: False
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which tests may run, ignores it
given = dict(argument.split(':=', 1) for argument in sys.argv[2:])
sys.exit(launch_xml.launch(Path(sys.argv[1]), given))
"""
Install = Callable[..., None]
LaunchOutside = Callable[..., 'subprocess.Popen[str]']


@pytest.fixture
def launch_outside(write: Callable[..., Path], tmp_path: Path) -> Iterator[LaunchOutside]:
    """Start a launcher of its own, and wait until `until` of its processes have said ready."""
    launched: list[subprocess.Popen[str]] = []

    def launch_outside(body: str, *arguments: str, until: int = 0) -> 'subprocess.Popen[str]':
        launcher = subprocess.Popen(
            [sys.executable, '-c', LAUNCHER, str(write(body)), *arguments],
            env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        launched.append(launcher)
        assert launcher.stdout is not None
        while until:
            line = launcher.stdout.readline()
            assert line, 'the launcher ended early'
            until -= line.endswith('ready\n')
        return launcher

    yield launch_outside
    for launcher in launched:
        launcher.kill()
        launcher.wait()


# --- running ----------------------------------------------------------------------------------


def sh(script: str, name: str = 'a-1', **how: object) -> Process:
    return Process(name, ('sh', '-c', script), dict(os.environ), **{'output': 'screen', **how})


def run_here(*processes: Process, patience: float = 5.0) -> int:
    with Log() as log:
        return run(processes, log, patience, patience)


def test_output_lines_carry_the_name_of_their_process(capfd: pytest.CaptureFixture[str]) -> None:
    script = "printf 'one\\ntwo\\nend'; printf 'caf\\303\\251\\n' >&2"
    assert run_here(sh(script)) == 0
    out = capfd.readouterr().out.splitlines()
    assert {'[a-1] one', '[a-1] two', '[a-1] end', '[a-1] café'} <= set(out)
    assert re.fullmatch(r'\[INFO\] \[a-1\]: process started with pid \[\d+\]', out[0])
    assert re.fullmatch(r'\[INFO\] \[a-1\]: process has finished cleanly \[pid \d+\]', out[-1])


def test_lines_of_two_processes_do_not_mix(capfd: pytest.CaptureFixture[str]) -> None:
    script = 'i=0; while [ $i -lt 200 ]; do printf half; printf "half\\n"; i=$((i+1)); done'
    run_here(sh(script), sh(script, 'b-2'))
    out = capfd.readouterr().out.splitlines()
    assert (out.count('[a-1] halfhalf'), out.count('[b-2] halfhalf')) == (200, 200)


@pytest.mark.parametrize(
    ('output', 'on_screen', 'in_file'),
    [('screen', 'oe', ''), ('log', 'e', 'oe'), ('both', 'oe', 'oe')],
)
def test_output_goes_where_launch_sends_it(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, output: str, on_screen: str, in_file: str
) -> None:
    run_here(sh('echo :o:; echo :e: >&2', output=output))
    screen = capfd.readouterr().out
    file = next((tmp_path / 'log').glob('*/launch.log')).read_text()
    assert ''.join(c for c in 'oe' if f'[a-1] :{c}:' in screen) == on_screen
    assert ''.join(c for c in 'oe' if f'[a-1] :{c}:' in file) == in_file
    assert 'process started' in screen and 'process started' in file


def test_death_of_a_required_process_ends_the_others_with_its_code(
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = sh('trap "echo stopped; exit 0" INT; ' + READY, 'b-2')
    assert run_here(sh('sleep 0.2; exit 7', required=True), other) == 7
    out = capfd.readouterr().out
    assert '[b-2] stopped' in out
    assert "exit code 7, cmd 'sh -c sleep 0.2; exit 7']" in out


def test_required_process_that_a_signal_killed_gives_128_and_the_signal() -> None:
    assert run_here(sh('kill -SEGV $$', required=True)) == 128 + signal.SIGSEGV


def test_death_of_a_process_that_is_not_required_leaves_the_others_running(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run_here(sh('exit 3'), sh('sleep 0.2; echo still here', 'b-2')) == 0
    assert '[b-2] still here' in capfd.readouterr().out


def test_death_of_a_required_process_shows_though_a_grandchild_holds_its_output() -> None:
    # The background job of a shell ignores SIGINT.
    begin = time.monotonic()
    assert run_here(sh('sleep 60 & exit 4', required=True)) == 4
    assert time.monotonic() - begin < 4


def test_process_is_respawned_after_its_delay(
    install: Install, launch_outside: LaunchOutside, tmp_path: Path
) -> None:
    install(
        'node',
        f"""
      echo x >> {tmp_path}/runs
      test "$(grep -c x {tmp_path}/runs)" -lt 3 || kill -INT $PPID""",
    )
    begin = time.monotonic()
    result = launch_outside(f'{NODE} respawn="true" respawn_delay="0.2"/>')
    assert result.wait(60) == 0
    assert (tmp_path / 'runs').read_text().count('x') == 3
    assert time.monotonic() - begin >= 0.4


def test_program_that_cannot_be_started_ends_the_launch(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run_here(sh(READY), Process('b-2', ('/nope',), {})) == 1
    assert '[ERROR] [b-2]: cannot start:' in capfd.readouterr().out


def test_stubborn_process_gets_sigint_then_sigterm_then_sigkill(
    capfd: pytest.CaptureFixture[str],
) -> None:
    stubborn = sh('trap "echo INT" INT; trap "echo TERM" TERM; ' + READY, 'b-2')
    assert run_here(sh('sleep 0.3; exit 1', required=True), stubborn, patience=0.3) == 1
    out = capfd.readouterr().out
    order = [out.index(text) for text in ('sent SIGINT', 'sent SIGTERM', 'sent SIGKILL')]
    assert order == sorted(order)
    assert '[b-2] INT' in out and '[b-2] TERM' in out
    assert 'exit code -9' in out


# --- the launcher as a program ----------------------------------------------------------------


def is_alive(pid: int) -> bool:
    try:
        status = Path(f'/proc/{pid}/stat').read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(')')[2].split()[0] != 'Z'


def wait_until(condition: Callable[[], bool], timeout: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def pid_writer(name: str, traps: str = '') -> str:
    return f'{traps}\necho $$ > $PIDS/{name}; {READY}'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_launcher_alone_stops_all_nodes_and_leaves_no_orphan(
    install: Install,
    launch_outside: LaunchOutside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    monkeypatch.setenv('PIDS', str(tmp_path))
    install('polite', pid_writer('polite', 'trap "echo safe command sent; exit 0" INT'))
    install('stubborn', pid_writer('stubborn', 'trap "" INT TERM'))
    nodes = ''.join(
        f'<node pkg="fake" exec="{name}" output="screen"/>' for name in ('polite', 'stubborn')
    )
    timeouts = ('sigterm_timeout:=0.2', 'sigkill_timeout:=0.2')
    launcher = launch_outside(nodes, *timeouts, until=2)
    pids = [int((tmp_path / name).read_text()) for name in ('polite', 'stubborn')]
    assert all(is_alive(pid) for pid in pids)
    os.kill(launcher.pid, number)
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0
    assert '[polite-1] safe command sent' in out
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != 'linux', reason='PR_SET_PDEATHSIG is Linux only')
def test_node_gets_sigterm_when_the_launcher_is_killed(
    install: Install,
    launch_outside: LaunchOutside,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('PIDS', str(tmp_path))
    install('node', pid_writer('node', 'trap "exit 0" TERM'))
    launcher = launch_outside(f'{NODE} output="screen"/>', until=1)
    pid = int((tmp_path / 'node').read_text())
    launcher.kill()
    assert wait_until(lambda: not is_alive(pid))


def test_launch_returns_the_code_of_the_node_that_ended_it(
    install: Install, launch_outside: LaunchOutside
) -> None:
    install('node', 'exit 6')
    launcher = launch_outside(f'{NODE} on_exit="shutdown"/>')
    assert launcher.wait(10) == 6


def test_closed_console_does_not_stop_the_nodes(
    launch_outside: LaunchOutside, tmp_path: Path
) -> None:
    body = f'<executable cmd="sh -c \'echo ready; sleep 0.2; echo a; touch {tmp_path}/end\'" '
    launcher = launch_outside(f'{body} output="screen"/>', until=1)
    assert launcher.stdout is not None
    launcher.stdout.close()
    assert launcher.wait(10) == 0
    assert (tmp_path / 'end').exists()


def test_launch_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match='no such launch file'):
        launch_xml.launch(tmp_path / 'nope.launch.xml', {})


def test_folder_named_launch_does_not_pass_for_the_real_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'folder_like_launch').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not launch_xml._is_installed('folder_like_launch')
    assert launch_xml._is_installed('yaml')
