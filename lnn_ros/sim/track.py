"""A random closed road: its centre line, where a point lies along it, and its picture."""

from typing import TypeVar

import numpy as np

WORLD_SIZE = 24.0  # m, side of the square that the texture covers
LANE_HALF_WIDTH = 0.45  # m, centre line to the outer border of a white edge line
SPACING = 0.02  # m, nominal distance of centre-line samples

_LINE_WIDTH = 0.05  # m, white and yellow lines
_DASH = 0.30  # m, a yellow dash, and the gap after it
_ASPHALT_HALF_WIDTH = 0.50  # m
_ROAD_HALF_WIDTH = 0.66  # m, with the verge, which fades into the grass
_MIN_RADIUS = 1.3  # m
_CLEARANCE = 2.0  # m between the centre lines of two stretches of road
_TRIES = 500
_ORDERS = np.arange(2, 7)  # of the Fourier series

_Angle = TypeVar('_Angle', float, np.ndarray)


class Track:
    """A closed road in the square |x|, |y| <= 12 m, the same for the same seed.

    Arc length s runs along the driving direction, in [0, length); lateral offsets and curvature
    are positive to the left.

    Attributes: `centre` (N, 2) m, `heading` (N,) rad in [-pi, pi), `curvature` (N,) 1/m,
    `length` m, `spacing` m between samples, `seed`.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.centre, heading, self.length = _random_loop(np.random.default_rng([seed, 0]))
        self.spacing = self.length / len(self.centre)
        self.heading = _wrap(heading)
        self.curvature = _curvature(heading, self.spacing)

    def point(self, s: float) -> tuple[float, float, float, float]:
        """Return (x m, y m, heading rad, curvature 1/m) of the centre line at arc length `s`."""
        position = s / self.spacing
        index = int(np.floor(position))
        part = position - index
        i, j = index % len(self.centre), (index + 1) % len(self.centre)
        x, y = (1.0 - part) * self.centre[i] + part * self.centre[j]
        curvature = (1.0 - part) * self.curvature[i] + part * self.curvature[j]
        turn = _wrap(self.heading[j] - self.heading[i])
        return float(x), float(y), float(_wrap(self.heading[i] + part * turn)), float(curvature)

    def locate(self, x: float, y: float, near: float | None = None) -> tuple[float, float, float]:
        """Return (s m, lateral m, centre-line heading rad) of the road point nearest to (x, y).

        With `near`, an arc length, only the road within 1 m of it is searched: cheap, and a car
        far off the road cannot jump to another stretch.
        """
        if near is None:
            candidates = np.arange(len(self.centre))
        else:
            reach = int(1.0 / self.spacing)
            candidates = int(near / self.spacing) + np.arange(-reach, reach + 1)
        nodes = self.centre.take(candidates, axis=0, mode='wrap')
        i = int(candidates[np.argmin((nodes[:, 0] - x) ** 2 + (nodes[:, 1] - y) ** 2)])
        i %= len(self.centre)
        dx, dy = x - self.centre[i, 0], y - self.centre[i, 1]
        cos, sin = np.cos(self.heading[i]), np.sin(self.heading[i])
        along = np.clip(dx * cos + dy * sin, -0.5 * self.spacing, 0.5 * self.spacing)
        heading = _wrap(self.heading[i] + self.curvature[i] * along)
        s = (i * self.spacing + along) % self.length
        return float(s), float(dy * cos - dx * sin), float(heading)

    def texture(self, size: int = 2048) -> np.ndarray:
        """Paint the world from above: uint8 (size, size, 3) rgb.

        Row 0 is y = +12 m and column 0 is x = -12 m, as MuJoCo maps a texture onto a plane.
        Shades of asphalt, grass and lines vary with the seed (domain randomisation).
        """
        rng = np.random.default_rng([self.seed, 1])
        pixel = WORLD_SIZE / size
        picture = _grass(rng, size)

        rows, columns, s, lateral = self._road_pixels(size)
        across = np.abs(lateral)
        colour = picture[rows, columns].astype(np.float32)
        fine = rng.standard_normal(len(across), dtype=np.float32)[:, None]

        def paint(share: np.ndarray, above: np.ndarray) -> None:
            """Cover that share of each pixel, (pixels,), with a colour, (3,) or (pixels, 3)."""
            colour[:] += share[:, None] * (above - colour)

        def inside(distance: np.ndarray) -> np.ndarray:
            """Return the share of a pixel within a border `distance` m away, negative inside."""
            return np.clip(0.5 - distance / pixel, 0.0, 1.0)

        asphalt = rng.uniform(72, 112) * np.array([0.98, 1.0, 1.04], np.float32)
        verge = rng.uniform(0.9, 1.1) * np.array([138, 124, 98], np.float32)
        white = rng.uniform(200, 250) * np.array([1.0, 1.0, 0.98], np.float32)
        yellow = rng.uniform(0.85, 1.0) * np.array([240, 190, 45], np.float32)

        fade = (_ROAD_HALF_WIDTH - across) / (_ROAD_HALF_WIDTH - _ASPHALT_HALF_WIDTH)
        paint(0.8 * np.clip(fade, 0.0, 1.0), verge + 10.0 * fine)
        paint(inside(across - _ASPHALT_HALF_WIDTH), asphalt + 5.0 * fine)
        edge = np.abs(across - (LANE_HALF_WIDTH - 0.5 * _LINE_WIDTH)) - 0.5 * _LINE_WIDTH
        paint(inside(edge), white + 4.0 * fine)
        # A whole number of dashes goes round the loop, so that the line closes.
        period = self.length / round(self.length / (2 * _DASH))
        dash = np.abs(s % period - 0.5 * period) - 0.5 * _DASH
        paint(inside(across - 0.5 * _LINE_WIDTH) * inside(dash), yellow + 4.0 * fine)

        picture[rows, columns] = np.clip(colour, 0, 255).astype(np.uint8)
        return picture

    def _road_pixels(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return (row, column, s, lateral) of the pixels within the road, verge included.

        The road is swept by points denser than pixels, each of which hands its pixel the number
        of its centre-line sample; the pixel's own coordinates are then exact. One pass over the
        road's area, where a distance field would take one over the whole picture per sample.
        """
        pixel = WORLD_SIZE / size
        lateral = np.arange(-_ROAD_HALF_WIDTH, _ROAD_HALF_WIDTH, 0.6 * pixel)
        # Outside a bend the sweep's lines diverge by up to 1 + 0.66/1.3 = 1.5.
        along = np.arange(-0.5, 0.5, 0.6 * pixel / (1.5 * self.spacing)) * self.spacing
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        owner = np.full((size, size), -1, np.int32)
        number = np.repeat(np.arange(len(cos), dtype=np.int32)[:, None], len(lateral), axis=1)
        for step in along:
            x = (self.centre[:, 0] + step * cos)[:, None] - lateral * sin[:, None]
            y = (self.centre[:, 1] + step * sin)[:, None] + lateral * cos[:, None]
            column = ((x + 0.5 * WORLD_SIZE) / pixel).astype(np.int32)
            row = ((0.5 * WORLD_SIZE - y) / pixel).astype(np.int32)
            owner[row, column] = number
        rows, columns = np.nonzero(owner >= 0)
        i = owner[rows, columns]
        dx = ((columns + 0.5) * pixel - 0.5 * WORLD_SIZE - self.centre[i, 0]).astype(np.float32)
        dy = (0.5 * WORLD_SIZE - (rows + 0.5) * pixel - self.centre[i, 1]).astype(np.float32)
        cos, sin = cos[i].astype(np.float32), sin[i].astype(np.float32)
        s = i * np.float32(self.spacing) + dx * cos + dy * sin
        return rows, columns, s, dy * cos - dx * sin


def _random_loop(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw closed curves until one makes a road.

    Returns its evenly spaced points (N, 2) m, their headings (N,) rad and the length m.
    Raises RuntimeError after 500 curves (about 6 are needed).
    """
    for _ in range(_TRIES):
        series = _ORDERS[:, None] ** -1.0 * rng.uniform(-1.4, 1.4, (len(_ORDERS), 2))
        direction, start = rng.choice([-1.0, 1.0]), rng.uniform(0.0, 2.0 * np.pi)
        length = rng.uniform(27.0, 43.0)
        for count in (256, round(length / SPACING)):
            heading = start + direction * _closed_heading(series, count)
            centre = _integrate(heading, length / count)
            if not _is_road(centre, heading, length / count):
                break
        else:
            return centre, heading, length
    raise RuntimeError(f'no drivable track in {_TRIES} random curves: use another seed')


def _closed_heading(series: np.ndarray, count: int) -> np.ndarray:
    """Return the heading (count,) rad, along evenly spaced points, of one closed left-hand loop.

    heading(t) = t + sum_k a_k cos(kt) + b_k sin(kt), a Fourier series of the tangent angle (Zahn
    and Roskies 1972): unlike a series of x and y it sets the curvature directly, and equal steps
    of t are equal steps of the way. `series` (5, 2) holds a and b of k = 2..6; those of k = 1 are
    solved for by Newton's method so that the end meets the start.
    """
    t = 2.0 * np.pi * np.arange(count) / count
    kt = t[:, None] * _ORDERS
    open_heading = t + np.cos(kt) @ series[:, 0] + np.sin(kt) @ series[:, 1]
    wave = np.stack([np.cos(t), np.sin(t)])
    first = np.zeros(2)
    for _ in range(12):
        step = np.exp(1j * (open_heading + first @ wave))
        slope = (1j * step * wave).mean(axis=1)
        gap = step.mean()
        first -= np.linalg.solve([slope.real, slope.imag], [gap.real, gap.imag])
    heading: np.ndarray = open_heading + first @ wave
    return heading


def _integrate(heading: np.ndarray, spacing: float) -> np.ndarray:
    """Return the points (N, 2) m of a closed curve with these headings, centred on the origin."""
    tangent = np.column_stack([np.cos(heading), np.sin(heading)])
    points = np.cumsum(0.5 * spacing * (tangent + np.roll(tangent, 1, axis=0)), axis=0)
    points -= 0.5 * (points.min(axis=0) + points.max(axis=0))
    return points


def _is_road(centre: np.ndarray, heading: np.ndarray, spacing: float) -> bool:
    """Tell whether a curve closes, fits the world, bends both ways and keeps clear of itself."""
    # Without convergence in _closed_heading the last step is not as long as the others.
    if np.hypot(*(centre[0] - centre[-1])) > 1.01 * spacing:
        return False
    if np.abs(centre).max() + _ROAD_HALF_WIDTH > 0.5 * WORLD_SIZE:
        return False
    curvature = _curvature(heading, spacing)
    if np.abs(curvature).max() > 1.0 / _MIN_RADIUS:
        return False
    # At least a tenth of the way with a radius below 5 m, to either side.
    if min(np.mean(curvature > 0.2), np.mean(curvature < -0.2)) < 0.1:
        return False
    stride = max(1, round(0.15 / spacing))
    points, s = centre[::stride], spacing * np.arange(len(centre))[::stride]
    way = np.abs(s[:, None] - s)
    way = np.minimum(way, spacing * len(centre) - way)
    apart = np.hypot(*(points[:, None] - points).transpose(2, 0, 1))
    # Within 3 m of road even the tightest bend is still closing in on itself.
    return bool(apart[way > 3.0].min() > _CLEARANCE)


def _curvature(heading: np.ndarray, spacing: float) -> np.ndarray:
    """Return the signed curvature (N,) 1/m of an evenly sampled closed curve."""
    return _wrap(np.roll(heading, -1) - np.roll(heading, 1)) / (2.0 * spacing)


def _grass(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a meadow uint8 (size, size, 3): one hue, soft patches, fine grain."""
    base = np.array([rng.uniform(62, 100), rng.uniform(118, 148), rng.uniform(48, 70)], np.float32)
    shade = np.zeros((size, size), np.float32)
    for cells, strength in ((12, 0.05), (96, 0.04)):
        stretch = _interpolation(size, cells)
        patches = strength * rng.standard_normal((cells, cells), dtype=np.float32)
        shade += stretch @ patches @ stretch.T
    shade += 0.06 * rng.standard_normal((size, size), dtype=np.float32)
    shade = np.clip(1.0 + shade, 0.0, 1.6)
    picture = np.empty((size, size, 3), np.uint8)
    for channel in range(3):
        picture[:, :, channel] = base[channel] * shade
    return picture


def _interpolation(size: int, cells: int) -> np.ndarray:
    """Return the weights (size, cells) that stretch `cells` values linearly over `size`."""
    at = np.linspace(0.0, cells - 1.0, size, dtype=np.float32)[:, None]
    return np.maximum(1.0 - np.abs(at - np.arange(cells, dtype=np.float32)), 0.0)


def _wrap(angle: _Angle) -> _Angle:
    """Return the angle in [-pi, pi)."""
    return (angle + np.pi) % (2.0 * np.pi) - np.pi
