"""The network's view of an image: rows and columns averaged, channels mixed, normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Spans:
    """Which source cells each target cell averages.

    Attributes:
        first, count: (target,) int64; the cells first, first + 1 ... first + count - 1.
        shares: (3, target) float64: how much the first cell, every inner one, and the last one (if
            there are two or more) count; each target's shares sum to 1.
    """

    first: NDArray[np.int64]
    count: NDArray[np.int64]
    shares: NDArray[np.float64]

    @classmethod
    def area(cls, source: int, start: float, stop: float, target: int) -> Spans:
        """Average cells [start, stop) of `source` into `target` cells by the area they cover.

        Partly covered cells count by their share, so no detail is skipped and none aliases.
        """
        edges = np.linspace(start, stop, target + 1)
        low, high = edges[:-1], edges[1:]
        first = np.clip(np.floor(low), 0, source - 1)
        last = np.clip(np.ceil(high) - 1, first, source - 1)
        of_first = np.clip(np.minimum(high, first + 1) - low, 0.0, None)
        of_last = np.where(last > first, np.clip(high - last, 0.0, None), 0.0)
        inner = np.maximum(last - first - 1, 0)
        total = of_first + inner + of_last
        shares = np.stack((of_first, np.ones(target), of_last)) / total
        return cls(first.astype(np.int64), (last - first).astype(np.int64) + 1, shares)

    def matrix(self, source: int) -> F32:
        """Return the (target, source) matrix of all shares."""
        cells = np.arange(source)
        last = self.first + self.count - 1
        inside = (cells > self.first[:, None]) & (cells < last[:, None])
        weights = np.where(inside, self.shares[1][:, None], 0.0)
        rows = np.arange(self.first.size)
        weights[rows, last] = self.shares[2]
        weights[rows, self.first] = self.shares[0]
        return weights.astype(np.float32)


@dataclass(frozen=True)
class View:
    """How one source format becomes the network's view.

    Attributes:
        rows, columns: of the source that make the view's.
        source_width: pixels in a row of the source.
        mix: (channels, source channels): how a source byte counts in each channel.
        mean, scale: a channel becomes (value - mean) / scale.
    """

    rows: Spans
    columns: Spans
    source_width: int
    mix: NDArray[np.float64]
    mean: float
    scale: float


class Resampler(Protocol):
    """Makes the network's view of images of one format."""

    def see(self, buffer: NDArray[np.uint8], step: int, pixels: Any) -> None:
        """Fill `pixels` (channels, height, width) from an image.

        Args:
            buffer: the image's bytes; the caller has checked that all rows are in it.
            step: bytes from one row to the next.
        """


class NumpyResampler:
    """Two matrix products; see `Resampler`."""

    def __init__(self, view: View) -> None:
        self._view = view
        top = int(view.rows.first[0])
        bottom = int((view.rows.first + view.rows.count).max())
        self._rows = slice(top, bottom)
        self._down = view.rows.matrix(bottom)[:, top:]
        self._across = view.columns.matrix(view.source_width)
        self._mix = view.mix.astype(np.float32)
        height, channels = view.rows.first.size, view.mix.shape[1]
        row = view.source_width * channels
        self._cropped = np.empty((bottom - top, row), dtype=np.float32)
        self._squashed = np.empty((height, row), dtype=np.float32)
        self._planes = np.empty((channels, height, view.source_width), dtype=np.float32)

    def see(self, buffer: NDArray[np.uint8], step: int, pixels: F32) -> None:
        view, row = self._view, self._cropped.shape[1]
        channels, source_channels = view.mix.shape
        rows = buffer[: self._rows.stop * step].reshape(-1, step)
        np.copyto(self._cropped, rows[self._rows, :row])
        np.matmul(self._down, self._cropped, out=self._squashed)
        # a copy with the channels first makes the second product one product, not one per row
        interleaved = self._squashed.reshape(-1, view.source_width, source_channels)
        np.copyto(self._planes, interleaved.transpose(2, 0, 1))
        small = self._planes.reshape(-1, view.source_width) @ self._across.T
        flat = pixels.reshape(channels, -1)
        np.matmul(self._mix, small.reshape(source_channels, -1), out=flat)
        flat -= np.float32(view.mean)
        flat /= np.float32(view.scale)
