"""What `lnn_ros demo` refuses before anything starts, and what it says of a drive."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

demo = pytest.importorskip('lnn_ros.demo')


def simulator_record(**counts: int) -> dict[str, Any]:
    counts = {'image': 9, 'image lost': 2, 'imu': 90, 'imu lost': 20, **counts}
    return {
        'count_names': np.array(list(counts)), 'counts': np.array(list(counts.values())),
        'progress': 5.0, 'duration': 3.0, 'mean_error': 0.01, 'max_error': 0.02, 'leaves': 0,
        'latency': np.array([0.001]),
    }  # fmt: skip


def controller_record(dt: list[float], **received: int) -> dict[str, Any]:
    counts = {f'received/{name}': count for name, count in received.items()}
    return {
        'count_names': np.array(list(counts)), 'counts': np.array(list(counts.values()), int),
        'dt': np.array(dt), 'step_time': np.full(len(dt), 1e-5),
    }  # fmt: skip


@pytest.mark.parametrize(
    ('argument', 'value', 'said'),
    [
        ('use_sim_time', 'maybe', "use_sim_time is 'maybe'.*leave it out"),
        ('duration', 'abc', "duration is 'abc', must be a number.*duration:=30.0"),
        ('duration', '0', 'duration is 0 s.*needs an end.*above 0'),
        ('duration', 'nan', 'duration is nan s.*needs an end'),
        ('drop', '20%', "drop is '20%', must be a number"),
        ('seed', '1.5', "seed is '1.5', must be a whole number"),
        ('record', 'here', '--out'),
        ('rate', '3', "no argument 'rate'"),
    ],
)
def test_what_the_demo_cannot_serve_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, value: str, said: str
) -> None:
    monkeypatch.setattr(demo, '_launch', lambda *_: pytest.fail('it was started'))
    with pytest.raises(ValueError, match=said) as refusal:
        demo.run(tmp_path / 'results', {argument: value})
    assert '\n' not in str(refusal.value)
    assert not (tmp_path / 'results').exists()


def test_table_says_what_was_lost_on_the_way_and_only_then() -> None:
    text = demo.table(simulator_record(), controller_record([0.01], image=6, imu=90))
    frames, samples = (line for line in text.splitlines() if 'by the sensor' in line)
    assert '9 sent, 2 more lost by the sensor; 6 received, 3 lost on the way, 0 dropped' in frames
    assert '90 sent, 20 more lost by the sensor; 90 received, 0 dropped' in samples


@pytest.mark.parametrize('dt', [[], [0.0, 0.0]])
def test_drive_without_an_interval_ends_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dt: list[float],
) -> None:
    def launch(arguments: Mapping[str, str], log: Path) -> int:
        np.savez(tmp_path / 'simulator.npz', **simulator_record(image=0))
        np.savez(tmp_path / 'controller.npz', **controller_record(dt, imu=90))
        return 0

    monkeypatch.setattr(demo, '_launch', launch)
    assert demo.run(tmp_path, {}) == 1
    said = capsys.readouterr().err
    assert said.startswith('the network never stepped') and said.count('\n') == 1
    assert '0 sent' in said and '90 received' in said and 'duration' in said
