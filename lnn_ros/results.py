"""The result file: what every evaluation and benchmark of this package writes with --json."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lnn_ros import __version__


def write_results(
    path: Path, command: str, seeds: Sequence[int], rows: list[dict[str, Any]]
) -> None:
    """Write one flat row per figure: name, metric, value, low, high, n, unit."""
    document = {
        'command': command,
        'version': __version__,
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'machine': f'{platform.machine()} {platform.system()}, Python {platform.python_version()}',
        'seeds': list(seeds),
        'rows': rows,
    }
    path.write_text(json.dumps(document, indent=1) + '\n')
