"""docs/network.md names a test for each claim, and starts with an example."""

import re
import textwrap
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'network.md').read_text()


def test_every_test_that_the_page_names_exists():
    tests = '\n'.join(path.read_text() for path in Path(__file__).parent.glob('test_*.py'))
    names = re.findall(r'`(test_\w+)`', PAGE)
    assert len(names) > 30
    assert [name for name in names if f'def {name}' not in tests] == []
    assert all((Path(__file__).parent / f).exists() for f in re.findall(r'`(test_\w+\.py)`', PAGE))


def test_example_of_the_page_runs():
    found = re.search(r'\n\n((?:    .*\n|\n)+)\n*## One form', PAGE)
    assert found
    names = {}
    exec(textwrap.dedent(found.group(1)), names)
    assert names['states'].shape == (8, 50, 32) and names['commands'].shape == (8, 50, 2)
    torch.testing.assert_close(names['y'], names['net'](names['u'], names['dt']), rtol=0, atol=1e-6)
