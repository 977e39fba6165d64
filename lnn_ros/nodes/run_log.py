"""What a node did, one row per step, kept in memory and written as one .npz when the run ends."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np

MOST_ROWS = 5_000_000  # 40 MB per column: a run that is left on for days does not eat the machine


class RunLog:
    """Columns of numbers, appended to row by row.

    Args:
        path: file to write; its folder is made.
        columns: names of the columns.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f'record: no folder {path.parent} can be made ({error})') from None
        self.path = path
        self._columns = {name: array('d') for name in columns}
        self._rows = 0

    def add(self, *values: float) -> None:
        """Append a row; rows beyond `MOST_ROWS` are not kept."""
        if self._rows < MOST_ROWS:
            self._rows += 1
            for column, value in zip(self._columns.values(), values, strict=True):
                column.append(value)

    def save(self, **more: Any) -> None:
        """Write the columns and `more` arrays; the file appears whole or not at all."""
        partial = self.path.with_name(self.path.name + '.part')
        with partial.open('wb') as file:
            arrays: dict[str, Any] = {n: np.array(column) for n, column in self._columns.items()}
            # not compressed: that takes seconds, which a process that was told to stop has not got
            np.savez(file, **arrays, **more)
        partial.replace(self.path)
