from __future__ import annotations

import numpy as np
import pytest

from lnn_ros.core.compiled import CResampler
from lnn_ros.core.view import NumpyResampler, Spans, View
from lnn_ros.observation import CHANNELS, ImageReader
from lnn_ros.policy import ImageContract

ORDER = {'rgb8': 'rgb', 'bgr8': 'bgr', 'mono8': 'l', 'rgba8': 'rgba', 'bgra8': 'bgra'}


def contract(width: int, height: int, channels: int = 3, crop=(0.0, 1.0)) -> ImageContract:
    return ImageContract(width, height, channels, *crop, mean=0.45, scale=0.25, age_scale=1.0)


def brute_force(contract: ImageContract, image: np.ndarray, encoding: str) -> np.ndarray:
    """Average by the definition: every target pixel against every source pixel, in float64."""
    height, width = image.shape[:2]
    bytes_of = {letter: image[:, :, i] / 255.0 for i, letter in enumerate(ORDER[encoding])}
    if 'l' in bytes_of:
        bytes_of = dict.fromkeys('rgb', bytes_of['l'])
    planes = np.stack([bytes_of[letter] for letter in 'rgb'])
    if contract.channels == 1:
        planes = np.tensordot([[0.299, 0.587, 0.114]], planes, 1)

    def shares(cells: int, start: float, stop: float, target: int) -> np.ndarray:
        out = np.zeros((target, cells))
        for t in range(target):
            low = start + (stop - start) * t / target
            high = start + (stop - start) * (t + 1) / target
            for cell in range(cells):
                out[t, cell] = max(min(high, cell + 1) - max(low, cell), 0.0) / (high - low)
        return out

    down = shares(
        height, contract.crop_top * height, contract.crop_bottom * height, contract.height
    )
    across = shares(width, 0.0, width, contract.width)
    return (down @ planes @ across.T - contract.mean) / contract.scale


@pytest.fixture(params=['numpy', 'c'])
def resamplers(request):
    """Return what makes the resamplers of a kind for a view."""
    if request.param == 'numpy':
        return lambda view: [NumpyResampler(view)]
    module = request.getfixturevalue('module')
    return lambda view: [CResampler(view, module, i) for i in range(len(module.variants()))]


@pytest.mark.parametrize('padding', [0, 1, 5, 64])
@pytest.mark.parametrize('encoding', CHANNELS)
def test_every_encoding_and_step_equals_brute_force(
    encoding, padding, resamplers, monkeypatch
) -> None:
    rng = np.random.default_rng(padding)
    for height, width, spec in (
        (48, 64, contract(8, 6)),
        (37, 53, contract(11, 7, crop=(0.23, 0.91))),
        (37, 53, contract(11, 7, channels=1, crop=(0.5, 1.0))),
        (3, 5, contract(8, 6)),  # enlarged
        (1, 1, contract(2, 3, channels=1)),
        (7, 1, contract(1, 1)),
        (600, 11, contract(3, 1, crop=(0.1, 1.0))),  # sums of more than 256 rows
    ):
        channels = CHANNELS[encoding]
        image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        step = width * channels + padding
        rows = np.full((height, step), 255, dtype=np.uint8)
        rows[:, : width * channels] = image.reshape(height, -1)
        expected = brute_force(spec, image, encoding)
        made: list = []

        def open_all(view, made=made):
            made += resamplers(view)
            return made[0]

        monkeypatch.setattr('lnn_ros.observation.open_resampler', open_all)
        ImageReader(spec).read(rows.tobytes(), height, width, encoding, step)
        assert made
        for resampler in made:
            pixels = np.full(expected.shape, np.nan, dtype=np.float32)
            resampler.see(rows.reshape(-1), step, pixels)
            assert np.abs(pixels - expected).max() < 2e-6


def test_white_stays_white_and_black_stays_black(resamplers, monkeypatch) -> None:
    monkeypatch.setattr('lnn_ros.observation.open_resampler', lambda view: resamplers(view)[-1])
    for value, expected in ((0, -0.45 / 0.25), (255, 0.55 / 0.25)):
        image = np.full((480, 640, 3), value, dtype=np.uint8)
        seen = ImageReader(contract(64, 48)).read(image.tobytes(), 480, 640, 'rgb8', 1920)
        assert np.abs(seen - expected).max() < 2e-6


def test_shares_of_every_cell_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        source, target = rng.integers(1, 200, 2)
        start, stop = np.sort(rng.uniform(0.0, source, 2))
        spans = Spans.area(int(source), start, stop + 1e-3, int(target))
        inner = np.maximum(spans.count - 2, 0)
        two = spans.count > 1
        total = spans.shares[0] + inner * spans.shares[1] + two * spans.shares[2]
        assert np.allclose(total, 1.0) and (spans.shares >= 0.0).all()
        assert (spans.first >= 0).all() and (spans.first + spans.count <= source).all()


def test_compiled_resampler_refuses_what_does_not_fit(module) -> None:
    spans = Spans.area(6, 0.0, 6.0, 3)
    view = View(spans, spans, 6, np.eye(3) / 255.0, 0.0, 1.0)
    resampler = CResampler(view, module)
    pixels = np.empty((3, 3, 3), dtype=np.float32)
    resampler.see(np.zeros(6 * 18, np.uint8), 18, pixels)
    with pytest.raises(ValueError, match='too few'):
        resampler.see(np.zeros(6 * 18 - 1, np.uint8), 18, pixels)
    with pytest.raises(ValueError, match='too few'):
        resampler.see(np.zeros(6 * 18, np.uint8), 17, pixels)
    with pytest.raises(ValueError, match='shape'):
        resampler.see(np.zeros(6 * 18, np.uint8), 18, pixels[:2])
    with pytest.raises(ValueError, match='float64'):
        resampler.see(np.zeros(6 * 18, np.uint8), 18, pixels.astype(np.float64))
