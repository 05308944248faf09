"""Pictures that stand in for PACS: seven shapes (classes) in four styles (domains), 227 x 227 RGB.

A shape is a union of ellipses, boxes, capsules and triangles, each a signed distance; a style turns
the distance into colours. Needs numpy only, so that worker processes start at once.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import functools
import signal

import numpy as np

SIDE = 227  # pixels of an image side
HALF = SIDE / 2  # pixels of a unit of the picture's coordinates, which run from -1 to 1
SIZE_JITTER = 0.10  # largest relative change of every size
PLACE_JITTER = 0.025  # largest change of every coordinate of a part
ROTATION = np.deg2rad(15)  # largest
SCALES = (0.62, 0.95)
SHIFT = 0.12  # largest, along each axis
WARPS = {"art_painting": (0.055, 5), "sketch": (0.012, 9)}  # amplitude and cells of bent contours
CONTOUR_CARTOON, PIXEL_NOISE = 4.0, 5.0  # pixels; grey levels


# ---------------------------------------------------------------- shapes


class Outline:
    """A union of parts: `distance` float32 [227, 227], negative inside.

    Args:
      x, y: float32 [227, 227], the shape's coordinates at each pixel; y points down.
      random: numpy.random.RandomState that varies all sizes and places.
    """

    def __init__(self, x, y, random):
        self._x, self._y, self._random = x, y, random
        self.distance = np.full_like(x, np.inf)

    def _sizes(self, *values):
        return [np.float32(value * self._random.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER))
                for value in values]

    def _place(self, x, y):
        return (np.float32(x + self._random.uniform(-PLACE_JITTER, PLACE_JITTER)),
                np.float32(y + self._random.uniform(-PLACE_JITTER, PLACE_JITTER)))

    def _join(self, distance, cut):
        if cut:
            np.maximum(self.distance, -distance, out=self.distance)
        else:
            np.minimum(self.distance, distance, out=self.distance)

    def ellipse(self, x, y, half_width, half_height, cut=False):
        """An axis-parallel ellipse; its distance is exact to first order at the contour."""
        (x, y), (width, height) = self._place(x, y), self._sizes(half_width, half_height)
        across, down = (self._x - x) / width, (self._y - y) / height
        level = np.sqrt(across ** 2 + down ** 2)
        slope = np.sqrt((across / width) ** 2 + (down / height) ** 2) + np.float32(1e-6)
        self._join(level * (level - 1) / slope, cut)

    def box(self, x, y, half_width, half_height, cut=False):
        """An axis-parallel rectangle."""
        (x, y), (width, height) = self._place(x, y), self._sizes(half_width, half_height)
        across, down = np.abs(self._x - x) - width, np.abs(self._y - y) - height
        outside = np.sqrt(np.maximum(across, 0) ** 2 + np.maximum(down, 0) ** 2)
        self._join(outside + np.minimum(np.maximum(across, down), 0), cut)

    def capsule(self, begin, end, radius, end_radius=None):
        """A thick line between two points, getting thinner or thicker if end_radius is given."""
        (x, y), (x_end, y_end) = self._place(*begin), self._place(*end)
        first, last = self._sizes(radius, end_radius or radius)
        across, down = x_end - x, y_end - y
        along = ((self._x - x) * across + (self._y - y) * down) / (across ** 2 + down ** 2)
        along = np.clip(along, 0, 1)
        off = np.sqrt((self._x - x - along * across) ** 2 + (self._y - y - along * down) ** 2)
        self._join(off - first - along * (last - first), cut=False)

    def triangle(self, *corners):
        """A triangle of three (x, y), in any order; outside its corners the distance is too low."""
        points = np.array([self._place(*corner) for corner in corners], np.float32)
        centre, distance = points.mean(axis=0), np.full_like(self._x, -np.inf)
        for point, following in zip(points, np.roll(points, -1, axis=0)):
            edge = following - point
            normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
            normal *= np.sign(normal.dot(point - centre))
            np.maximum(distance, (self._x - point[0]) * normal[0]
                       + (self._y - point[1]) * normal[1], out=distance)
        self._join(distance, cut=False)


def dog(outline):
    """Oval body, four short legs, raised tail, ear, snout."""
    outline.ellipse(0, 0.06, 0.48, 0.23)
    for x in (-0.37, -0.24, 0.22, 0.35):
        outline.capsule((x, 0.12), (x, 0.56), 0.066)
    outline.capsule((-0.42, -0.02), (-0.72, -0.46), 0.06, 0.04)
    outline.capsule((0.34, -0.02), (0.54, -0.22), 0.14)
    outline.ellipse(0.58, -0.27, 0.20, 0.17)
    outline.capsule((0.64, -0.22), (0.88, -0.17), 0.085)
    outline.triangle((0.40, -0.30), (0.58, -0.36), (0.42, -0.64))


def elephant(outline):
    """Large body, thick legs, trunk, ear."""
    outline.ellipse(-0.14, -0.04, 0.56, 0.42)
    for x in (-0.52, -0.28, 0.04, 0.26):
        outline.capsule((x, 0.18), (x, 0.64), 0.115)
    outline.ellipse(0.50, -0.22, 0.26, 0.27)
    outline.capsule((0.68, -0.14), (0.86, 0.18), 0.12, 0.09)
    outline.capsule((0.86, 0.18), (0.80, 0.54), 0.09, 0.06)
    outline.ellipse(0.30, -0.40, 0.20, 0.27)
    outline.capsule((-0.66, -0.10), (-0.82, 0.26), 0.035)


def giraffe(outline):
    """Small body, long neck and legs, two horns."""
    outline.ellipse(-0.16, 0.12, 0.34, 0.18)
    for x in (-0.42, -0.30, 0.00, 0.12):
        outline.capsule((x, 0.18), (x, 0.90), 0.046)
    outline.capsule((0.06, 0.04), (0.40, -0.70), 0.11, 0.065)
    outline.capsule((0.40, -0.72), (0.68, -0.60), 0.085, 0.06)
    outline.capsule((0.36, -0.74), (0.32, -0.94), 0.026)
    outline.capsule((0.46, -0.76), (0.46, -0.95), 0.026)
    outline.capsule((-0.48, 0.06), (-0.60, 0.42), 0.03)


def guitar(outline):
    """Two discs, neck, head; the sound hole is cut out."""
    outline.ellipse(0, 0.50, 0.38, 0.36)
    outline.ellipse(0, 0.08, 0.28, 0.26)
    outline.box(0, -0.42, 0.06, 0.44)
    outline.box(0, -0.86, 0.12, 0.10)
    outline.ellipse(0, 0.30, 0.12, 0.12, cut=True)


def horse(outline):
    """Oval body, neck, long head, long legs, hanging tail."""
    outline.ellipse(-0.06, 0.02, 0.46, 0.22)
    for x in (-0.43, -0.31, 0.20, 0.32):
        outline.capsule((x, 0.06), (x, 0.76), 0.06)
    outline.capsule((0.26, -0.08), (0.54, -0.52), 0.17, 0.12)
    outline.capsule((0.54, -0.56), (0.86, -0.28), 0.12, 0.07)
    outline.triangle((0.44, -0.60), (0.56, -0.62), (0.48, -0.82))
    outline.capsule((-0.48, -0.06), (-0.66, 0.14), 0.06)
    outline.capsule((-0.66, 0.14), (-0.68, 0.56), 0.07, 0.05)


def house(outline):
    """Box, roof, chimney; door and windows are cut out."""
    outline.box(0.36, -0.46, 0.08, 0.20)
    outline.box(0, 0.30, 0.62, 0.45)
    outline.triangle((-0.82, -0.03), (0.82, -0.03), (0, -0.72))
    outline.box(0, 0.54, 0.11, 0.22, cut=True)
    for x in (-0.36, 0.36):
        outline.box(x, 0.24, 0.13, 0.12, cut=True)


def person(outline):
    """Head, torso, arms, legs."""
    outline.ellipse(0, -0.70, 0.17, 0.19)
    outline.capsule((0, -0.60), (0, -0.40), 0.08)
    outline.box(0, -0.12, 0.20, 0.32)
    for side in (-1, 1):
        outline.capsule((0.20 * side, -0.36), (0.46 * side, -0.06), 0.085)
        outline.capsule((0.46 * side, -0.06), (0.52 * side, 0.24), 0.07)
        outline.capsule((0.11 * side, 0.16), (0.20 * side, 0.90), 0.10, 0.08)


SHAPES = (dog, elephant, giraffe, guitar, horse, house, person)  # in the order of the labels


# ---------------------------------------------------------------- styles


@functools.lru_cache(maxsize=None)
def interpolation(cells):
    """float32 [227, cells + 1]: smooth interpolation of values at the borders of equal cells."""
    position = np.linspace(0, cells, SIDE)
    left = np.minimum(position.astype(int), cells - 1)
    weight = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    matrix = np.zeros((SIDE, cells + 1), np.float32)
    matrix[np.arange(SIDE), left] = 1 - weight
    matrix[np.arange(SIDE), left + 1] = weight
    return matrix


def noise(random, cells, channels=1):
    """Smooth noise of about unit variance with `cells` cells along a side: [227, 227, channels]."""
    values = random.standard_normal((cells + 1, cells + 1, channels)).astype(np.float32)
    matrix = interpolation(cells)
    return np.einsum("yi,ijc,xj->yxc", matrix, values, matrix, optimize=True)


def colour(hue, saturation, value):
    """float32 [3] RGB 0..255 of hue (in turns), saturation and value in 0..1."""
    sector = (np.array([5, 3, 1]) + 6 * hue) % 6
    share = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (255 * value * (1 - saturation * share)).astype(np.float32)


def two_colours(random, saturations, values, ground_saturations, ground_values):
    """Colours of shape and ground, their hues at least a quarter turn apart."""
    hue = random.uniform()
    return (colour(hue, random.uniform(*saturations), random.uniform(*values)),
            colour(hue + random.uniform(0.25, 0.75), random.uniform(*ground_saturations),
                   random.uniform(*ground_values)))


def inside(distance, softness):
    """Share of the shape in each pixel, [227, 227, 1]; the edge is `softness` pixels wide."""
    return np.clip(0.5 - distance / softness, 0, 1)[..., None]


def line(distance, width):
    """Share of a contour of `width` pixels in each pixel, [227, 227, 1]."""
    return np.clip(width / 2 + 0.5 - np.abs(distance), 0, 1)[..., None]


def mix(share, first, second):
    """share * first + (1 - share) * second."""
    return second + share * (first - second)


def strokes(random, base):
    """A painted surface: a colour with slow random changes and bent brush strokes over it."""
    v, u = np.mgrid[-1:1:SIDE * 1j, -1:1:SIDE * 1j].astype(np.float32)
    angle, waves = random.uniform(0, np.pi), random.uniform(45, 75)
    phase = waves * (np.cos(angle) * u + np.sin(angle) * v) + 4 * noise(random, 4)[..., 0]
    bristles = 0.6 + 0.4 * noise(random, 12)[..., 0]
    return base + 30 * noise(random, 4, 3) + (20 * bristles * np.sin(phase))[..., None]


def art_painting(distance, random):
    """Brush strokes and slow colour changes in shape and ground."""
    shape, ground = two_colours(random, (0.4, 0.9), (0.35, 0.9), (0.2, 0.7), (0.3, 0.9))
    return mix(inside(distance, 3), strokes(random, shape), strokes(random, ground))


def cartoon(distance, random):
    """Flat pastel ground, flat saturated shape, thick black contour."""
    shape, ground = two_colours(random, (0.7, 1), (0.7, 1), (0.08, 0.3), (0.88, 1))
    picture = mix(inside(distance, 1), shape, ground)
    return picture * (1 - line(distance, CONTOUR_CARTOON * random.uniform(0.8, 1.2)))


def photo(distance, random):
    """Shaded muted shape with a soft edge before a blurred ground; noise in every pixel."""
    light = random.uniform() < 0.5
    values, ground_values = ((0.65, 0.9), (0.2, 0.5)) if light else ((0.2, 0.45), (0.6, 0.9))
    shape, ground = two_colours(random, (0.15, 0.5), values, (0.1, 0.4), ground_values)
    v, u = np.mgrid[-1:1:SIDE * 1j, -1:1:SIDE * 1j].astype(np.float32)
    angle = random.uniform(0, 2 * np.pi)
    slope = (np.cos(angle) * u + np.sin(angle) * v)[..., None]
    ground = ground + 25 * slope + sum(
        strength * noise(random, cells, 3) for cells, strength in ((3, 16), (8, 10), (28, 7)))
    height = np.sqrt(np.clip(-distance / 22, 0, 1))  # a rounded body, lit from one side
    down, across = np.gradient(height)
    side = np.clip(9 * (np.cos(angle) * across + np.sin(angle) * down), -1, 1)
    lit = 0.85 + 0.25 * height + 0.25 * side + 0.05 * noise(random, 20)[..., 0]
    picture = mix(inside(distance, 4), shape * lit[..., None], ground)
    return picture + PIXEL_NOISE * random.standard_normal((SIDE, SIDE, 1)).astype(np.float32)


def sketch(distance, random):
    """White ground, thin dark contour, no fill."""
    ink = line(distance, random.uniform(1.2, 2.4)) * random.uniform(0.85, 1)
    return np.repeat(255 * (1 - ink), 3, axis=2)


STYLES = (art_painting, cartoon, photo, sketch)  # in the order of the domains
DOMAINS = tuple(style.__name__ for style in STYLES)
CLASSES = tuple(shape.__name__ for shape in SHAPES)


# ---------------------------------------------------------------- pictures


def posed_coordinates(random):
    """The shape's coordinates at each pixel, x and y float32 [227, 227], and its scale."""
    v, u = np.mgrid[-1:1:SIDE * 1j, -1:1:SIDE * 1j]
    angle, scale = random.uniform(-ROTATION, ROTATION), random.uniform(*SCALES)
    u, v = u - random.uniform(-SHIFT, SHIFT), v - random.uniform(-SHIFT, SHIFT)
    x = (np.cos(angle) * u + np.sin(angle) * v) / scale * random.choice([-1, 1])
    y = (np.cos(angle) * v - np.sin(angle) * u) / scale
    return x.astype(np.float32), y.astype(np.float32), scale


def draw(seed, domain, label, number):
    """One picture, uint8 [227, 227, 3]; depends on nothing else, in whatever process.

    Args:
      seed: int 0..2**32-1. domain: 0..3, of STYLES. label: 0..6, of SHAPES. number: from 0.
    """
    random = np.random.RandomState([seed, domain, label, number])
    x, y, scale = posed_coordinates(random)
    amplitude, cells = WARPS.get(DOMAINS[domain], (0, 1))
    bend = amplitude * noise(random, cells, 2)
    outline = Outline(x + bend[..., 0], y + bend[..., 1], random)
    SHAPES[label](outline)
    picture = STYLES[domain](outline.distance * np.float32(scale * HALF), random)
    return np.round(np.clip(picture, 0, 255)).astype(np.uint8)


def send_pictures(connection, tasks, parents_ends):
    """Body of a worker process: sends draw(*task) of each task through the connection.

    parents_ends are the receiving ends this process inherited. With them closed only the parent
    can receive, so that a killed parent breaks the pipe and the worker ends too.
    """
    for end in parents_ends:
        end.close()
    # Ctrl-C reaches the whole process group; the parent answers it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for task in tasks:
            connection.send(draw(*task))
    except BrokenPipeError:
        pass  # the parent was killed: nobody is left to draw for
