import json
import math

import pytest

from lnn_ros.cli import main
from lnn_ros.core import instructions
from lnn_ros.training import core_bench


def test_quick_run_measures_every_thing_that_other_tools_read(tmp_path, capsys):
    pytest.importorskip('ncps')
    file = tmp_path / 'core.json'
    assert main(['bench', 'core', '--quick', '--json', str(file)]) == 0
    rows = {(r['name'], r['metric']): r for r in json.loads(file.read_text())['rows']}
    for name in (
        *('step/ncp32', 'step/dense64', 'step/dense128', 'train/ncp32', 'train/dense64'),
        *('callback/64x48', 'callback/640x480', 'step/ncp32/1 unfold'),
    ):
        assert rows[name, 'ratio_to_ncps']['value'] > 0.0
        assert rows[name, 'us_p50']['value'] <= rows[name, 'us_p99']['value']
    assert {('train/dense64', 'MB'), ('start/controller', 'MB')} <= set(rows)
    assert {('encoder/64x48', 'us_p50'), ('resize/640x480', 'us_p50')} <= set(rows)
    assert set(core_bench.TARGETS) <= set(rows)
    for row in rows.values():
        assert math.isfinite(row['value'])
        assert row['low'] <= row['value'] <= row['high']
    said = capsys.readouterr().out
    assert 'not measured: torch.compile' in said and 'times faster' in said


@pytest.mark.skipif(bool(instructions.missing()), reason=instructions.missing())
def test_more_instructions_than_written_down_are_a_failure(monkeypatch, capsys):
    monkeypatch.setitem(instructions.KNOWN, 'step/ncp32', 100)
    rows, good = core_bench._instructions()
    assert not good and 'TOO MANY' in capsys.readouterr().out
    counted = {row['name']: row['value'] for row in rows}
    assert counted.keys() == {f'instructions/{name}' for name in instructions.KNOWN}
    assert 100 < counted['instructions/step/ncp32'] < counted['instructions/step/dense128'] < 1e5
