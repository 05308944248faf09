"""Faces under varying light, drawn as Lambertian height fields: a stand-in for Extended Yale B.

Images of one such face lie near a subspace of nine dimensions, as those of a real one do (Basri
and Jacobs 2003). Needs numpy only, so that worker processes start at once.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import signal

import numpy as np

SIDE = 32  # pixels of a modality's image
ROWS, COLUMNS = 96, 84  # the grid faces are drawn on: half of Extended Yale B's crop
HALF_WIDTH, HALF_HEIGHT = 1.0, 1.15  # of that crop in units of the face; x to the right, y up
MARGIN = 2.0  # grid pixels around the whole-face modality, for the jitter
JITTER = 0.6  # standard deviation of an image's shift, in grid pixels

# Modality: (x, y of the centre, half width, half height); None is the whole crop.
MODALITIES = {"face": None, "left eye": (-0.42, 0.36, 0.32, 0.32), "nose": (0, -0.02, 0.32, 0.36),
              "mouth": (0, -0.5, 0.38, 0.30), "right eye": (0.42, 0.36, 0.32, 0.32)}

# Flash positions of Extended Yale B: |azimuth| -> elevations, degrees; each for both signs.
FLASHES = {0: (0, 20, 45, 90, -20, -35), 5: (10, -10), 10: (0, -20), 15: (20,), 20: (10, -10, -40),
           25: (0,), 35: (15, 40, 65, -20), 50: (0, -40), 60: (20, -20), 70: (0, 45, -35),
           85: (20, -20), 95: (0,), 110: (15, 40, 65, -20), 120: (0,), 130: (20,)}

HEAD = (0.95, 1.05, 1.35)  # depth, and half axes in x and y, of the ellipsoid under the face
HEAD_LEVEL, HEAD_EDGE = 1.25, 0.05  # of the ellipsoid; beyond its edge the ground is flat
# Bumps of the height: (height, |x|, y, sigma x, sigma y); those with |x| > 0 come in pairs.
BUMPS = {
    "socket": (-0.13, 0.42, 0.32, 0.20, 0.12), "eyeball": (0.07, 0.42, 0.32, 0.10, 0.07),
    "brow": (0.06, 0.42, 0.52, 0.22, 0.08), "tip": (0.12, 0, -0.12, 0.10, 0.08),
    "wing": (0.08, 0.13, -0.15, 0.06, 0.06), "upper lip": (0.05, 0, -0.45, 0.16, 0.045),
    "lower lip": (0.06, 0, -0.56, 0.14, 0.05), "groove": (-0.03, 0, -0.505, 0.18, 0.022),
    "cheek": (0.08, 0.5, -0.1, 0.20, 0.18), "chin": (0.12, 0, -0.88, 0.22, 0.14)}
EYES, NOSE, MOUTH, ALONE = ("socket", "eyeball", "brow"), ("tip", "wing"), (
    "upper lip", "lower lip", "groove"), ("cheek", "chin")
RIDGE = (0.20, 0.36, 0.085)  # the nose: height at the tip, y of its upper end, sigma x
POSITION_SPREAD, OWN_SPREAD = 0.03, 0.012  # of a group of bumps together, and of each in it
SIZE_SPREAD, HEIGHT_SPREAD, HEAD_SPREAD = 0.15, 0.15, 0.06  # of logarithms

ALBEDO, ALBEDO_SPREAD, ALBEDO_RANGE = 0.72, 0.10, (0.05, 1.0)
# Shares of the light taken away.
DARK = {"brow": 0.55, "iris": 0.60, "lid": 0.45, "lips": 0.25, "mouth": 0.35, "nostril": 0.45,
        "hair": 0.60, "background": 0.75, "beard": 0.25}
BEARDED = 0.35  # share of subjects
HAIRLINE = 0.95  # y
# Smooth random fields: (cut-off in cycles per image, standard deviation).
HEIGHT_FIELDS = ((4, 0.012), (12, 0.0012))
ALBEDO_FIELDS = ((4, 0.06), (14, 0.04))  # relative

GAIN, AMBIENT, GLOSS, SHININESS = 255 * 1.15, 0.04, 0.06, 12
EXPOSURE_SPREAD, PIXEL_NOISE = 0.08, 2.0  # of the logarithm; grey levels
SHADOW_STEPS, SHADOW_REACH, SHADOW_EDGE = 28, 1.3, 0.02  # along the ray to the light
OUTSIDE = -10.0  # height beyond the grid: casts no shadow

Face = collections.namedtuple("Face", "height normals albedo")


def flash_directions():
    """Unit vectors (x, y, z) to the 64 lights, float64 [64, 3]; z points to the camera."""
    angles = [(sign * azimuth, elevation) for azimuth, elevations in FLASHES.items()
              for sign in ((-1, 1) if azimuth else (1,)) for elevation in elevations]
    azimuth, elevation = np.radians(np.array(angles, float).T)
    return np.stack([np.sin(azimuth) * np.cos(elevation), np.sin(elevation),
                     np.cos(azimuth) * np.cos(elevation)], axis=1)


LIGHTS = flash_directions()


def spread_lights(count):
    """Numbers of `count` of the 64 lights, ascending, spread evenly from frontal to grazing."""
    by_angle = np.argsort(-LIGHTS[:, 2], kind="stable")
    return np.sort(by_angle[(np.arange(count) * len(LIGHTS) + len(LIGHTS) // 2) // count])


# ---------------------------------------------------------------- a face


def grid():
    """x and y of the pixels' centres, float64 [1, 84] and [96, 1]."""
    x = HALF_WIDTH * ((np.arange(COLUMNS) + 0.5) * 2 / COLUMNS - 1)
    y = HALF_HEIGHT * (1 - (np.arange(ROWS) + 0.5) * 2 / ROWS)
    return x[None, :], y[:, None]


def smooth_field(random, cut_off, deviation):
    """Random field float64 [96, 84], Gaussian low-pass at `cut_off` cycles per image."""
    noise = np.fft.rfft2(random.standard_normal((ROWS, COLUMNS)))
    rows, columns = np.fft.fftfreq(ROWS) * ROWS, np.fft.rfftfreq(COLUMNS) * COLUMNS
    squares = (rows[:, None] / cut_off) ** 2 + (columns[None, :] / cut_off) ** 2
    field = np.fft.irfft2(noise * np.exp(-squares / 2), (ROWS, COLUMNS))
    return field * (deviation / field.std())


def draw_bumps(random):
    """BUMPS of one person: parts of one feature move and grow together."""
    bumps = {}
    for group in (EYES, NOSE, MOUTH) + tuple((name,) for name in ALONE):
        shift = POSITION_SPREAD * random.standard_normal(2)
        size = np.exp(SIZE_SPREAD * random.standard_normal(2))
        for name in group:
            height, x, y, wide, high = BUMPS[name]
            own = OWN_SPREAD * random.standard_normal(2)
            height *= np.exp(HEIGHT_SPREAD * random.standard_normal())
            wide, high = np.array([wide, high]) * size * np.exp(
                0.5 * SIZE_SPREAD * random.standard_normal(2))
            moved = x + shift[0] + own[0] if x else 0.3 * shift[0]
            bumps[name] = (height, moved, y + shift[1] + own[1], wide, high)
    return bumps


def bell(x, y, sigma_x, sigma_y):
    """Gaussian bump of height 1 around 0."""
    return np.exp(-0.5 * ((x / sigma_x) ** 2 + (y / sigma_y) ** 2))


def both_sides(x, y, bump):
    """A bump of draw_bumps on the grid, on both sides of the face if it stands off the middle."""
    _, middle, level, wide, high = bump
    right = bell(x - middle, y - level, wide, high)
    return right if abs(middle) < 0.1 else right + bell(x + middle, y - level, wide, high)


def step(value, width):
    """Smooth step from 0 to 1 around value = 0."""
    return 1 / (1 + np.exp(-np.clip(value / width, -50, 50)))


def draw_height(random, bumps):
    """Height of the face above the image plane, float64 [96, 84]."""
    x, y = grid()
    depth, wide, high = HEAD * np.exp(HEAD_SPREAD * random.standard_normal(3))
    level = HEAD_LEVEL - (x / wide) ** 2 - (y / high) ** 2
    height = depth * np.sqrt(HEAD_EDGE * np.logaddexp(0, level / HEAD_EDGE))
    for bump in bumps.values():
        height = height + bump[0] * both_sides(x, y, bump)
    top, tip = RIDGE[1], bumps["tip"]
    rise = np.clip((top - y) / (top - tip[2]), 0, 1) * step(y - tip[2] + 0.03, 0.02)
    sharp = RIDGE[0] * np.exp(HEIGHT_SPREAD * random.standard_normal())
    height = height + sharp * rise * bell(x - tip[1], 0, RIDGE[2], 1)
    return height + sum(smooth_field(random, *field) for field in HEIGHT_FIELDS)


def draw_albedo(random, bumps):
    """Share of the light that the skin returns, float64 [96, 84] in ALBEDO_RANGE."""
    x, y = grid()
    albedo = ALBEDO * np.exp(ALBEDO_SPREAD * random.standard_normal()) * np.ones((ROWS, COLUMNS))
    arch = 0.25 + 0.15 * random.standard_normal()
    wave = [0.04 * random.standard_normal() * np.sin(k * np.pi * (x + random.uniform(-1, 1)))
            for k in (1, 2, 4)]
    bearded = random.uniform() < BEARDED
    lid, iris = eye_masks(x, y, bumps)
    lips, mouth = lips_masks(x, y, bumps)
    masks = {"brow": brow_mask(x, y, bumps["brow"], arch), "iris": iris, "lid": lid, "lips": lips,
             "mouth": mouth, "nostril": nostril_mask(x, y, bumps),
             "hair": step(y - HAIRLINE - sum(wave), 0.03),
             "background": step(np.hypot(x / 1.08, y / 1.42) - 1, 0.015),
             "beard": bearded * beard_mask(x, y, bumps) * (1 - lips)}
    for name, mask in masks.items():
        strength = DARK[name] * np.exp(0.5 * SIZE_SPREAD * random.standard_normal())
        albedo = albedo * (1 - np.minimum(strength, 0.9) * mask)
    for field in ALBEDO_FIELDS:
        albedo = albedo * (1 + smooth_field(random, *field))
    return np.clip(albedo, *ALBEDO_RANGE)


def brow_mask(x, y, bump, arch):
    """Eyebrows: bands over the eyes, bent upwards in the middle."""
    _, middle, level, wide, _ = bump
    off = np.abs(x) - middle
    band = step(0.045 - np.abs(y - level + arch * off ** 2 - 0.02), 0.012)
    return band * step(0.75 * wide - np.abs(off), 0.03)


def eye_masks(x, y, bumps):
    """Edges of the lids, and irises within the opening between them."""
    _, middle, level, wide, high = bumps["eyeball"]
    across, up = (np.abs(x) - middle) / (1.7 * wide), y - level
    upper, lower = (height * high * (1 - across ** 2) for height in (0.9, -0.7))
    opening = step(upper - up, 0.008) * step(up - lower, 0.008) * step(1 - np.abs(across), 0.05)
    lid = bell(up - upper, 0, 0.022, 1) * step(1.1 - np.abs(across), 0.05)
    return lid, opening * step(0.068 - np.hypot(np.abs(x) - middle, up - 0.01), 0.012)


def nostril_mask(x, y, bumps):
    """The dark of the nostrils, under the wings of the nose."""
    _, middle, level, wide, high = bumps["wing"]
    return bell(np.abs(x) - 0.6 * middle, y - level + 0.9 * high, 0.6 * wide, 0.35 * high)


def lips_masks(x, y, bumps):
    """The red of the lips, an ellipse around the groove, and the line between them."""
    (_, middle, upper, wide, _), (_, _, groove, _, _) = bumps["upper lip"], bumps["groove"]
    lower = bumps["lower lip"][2]
    across, high = (x - middle) / (1.55 * wide), (upper - lower) / 2 + 0.045
    red = step(1 - np.hypot(across, (y - (upper + lower) / 2) / high), 0.1)
    return red, bell(y - groove + 0.02 * across ** 2, 0, 0.018, 1) * step(1 - np.abs(across), 0.05)


def beard_mask(x, y, bumps):
    """Moustache and beard: what lies below the nose."""
    return step(bumps["tip"][2] - 0.15 - y - 0.4 * x ** 2, 0.03) * step(0.85 - np.abs(x), 0.05)


def draw_face(random):
    """A new person: Face with height [96, 84], unit normals [3, 96, 84], albedo [96, 84]."""
    bumps = draw_bumps(random)
    height = draw_height(random, bumps)
    down, right = np.gradient(height, 2 * HALF_HEIGHT / ROWS, 2 * HALF_WIDTH / COLUMNS)
    normals = np.stack([-right, down, np.ones_like(height)])  # rows run against y
    return Face(height, normals / np.sqrt((normals ** 2).sum(axis=0)), draw_albedo(random, bumps))


# ---------------------------------------------------------------- an image


def visibility(height, light):
    """Share of the light that reaches each point past the others: float64 [96, 84] in [0, 1].

    Follows the ray from every point towards the light; `light` is a unit vector (x, y, z).
    """
    reach = int(np.ceil(SHADOW_REACH * max(COLUMNS / 2 / HALF_WIDTH, ROWS / 2 / HALF_HEIGHT))) + 1
    padded = np.full((ROWS + 2 * reach, COLUMNS + 2 * reach), OUTSIDE)
    padded[reach:-reach, reach:-reach] = height
    clearance = np.full(height.shape, np.inf)
    for distance in SHADOW_REACH * np.arange(1, SHADOW_STEPS + 1) / SHADOW_STEPS:
        right = distance * light[0] * COLUMNS / 2 / HALF_WIDTH
        down = -distance * light[1] * ROWS / 2 / HALF_HEIGHT
        ground = shifted(padded, reach + down, reach + right)
        np.minimum(clearance, height + distance * light[2] - ground, out=clearance)
    return np.clip(1 + clearance / SHADOW_EDGE, 0, 1)


def shifted(padded, down, right):
    """The [96, 84] part of a matrix that begins at a fractional row and column."""
    (row, rest_down), (column, rest_right) = divmod(down, 1), divmod(right, 1)
    row, column = int(row), int(column)
    band = padded[row:row + ROWS + 1, column:column + COLUMNS + 1]
    band = band[:-1] + rest_down * (band[1:] - band[:-1])
    return band[:, :-1] + rest_right * (band[:, 1:] - band[:, :-1])


def shade(face, light, random):
    """The photograph of a face, float64 [96, 84] grey levels 0..255."""
    halfway = light + np.array([0.0, 0.0, 1.0])
    halfway = halfway / np.sqrt((halfway ** 2).sum())
    facing, mirroring = (np.maximum(np.tensordot(direction, face.normals, 1), 0)
                         for direction in (light, halfway))
    lit = face.albedo * (AMBIENT + facing * visibility(face.height, light))
    exposure = np.exp(EXPOSURE_SPREAD * random.standard_normal())
    noise = PIXEL_NOISE * random.standard_normal(lit.shape)
    return np.clip(GAIN * (lit + GLOSS * mirroring ** SHININESS) * exposure + noise, 0, 255)


def average_weights(begin, end, size):
    """float64 [32, size]: averages of 32 equal parts of the interval begin..end of `size` cells."""
    edges = np.linspace(begin, end, SIDE + 1)
    cells = np.arange(size)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    weights = np.maximum(overlap, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def box(modality):
    """(first row, last row, first column, last column) of a value of MODALITIES on the grid."""
    if modality is None:
        return MARGIN, ROWS - MARGIN, MARGIN, COLUMNS - MARGIN
    x, y, wide, high = modality
    rows = (HALF_HEIGHT - np.array([y + high, y - high])) * ROWS / 2 / HALF_HEIGHT
    columns = (np.array([x - wide, x + wide]) + HALF_WIDTH) * COLUMNS / 2 / HALF_WIDTH
    return tuple(rows) + tuple(columns)


def crop(photograph, shift):
    """The modalities of a photograph, uint8 [5, 32, 32]; shift: (down, right) in grid pixels."""
    images = np.empty((len(MODALITIES), SIDE, SIDE), np.uint8)
    for number, modality in enumerate(MODALITIES.values()):
        top, bottom, left, right = box(modality)
        rows = average_weights(top + shift[0], bottom + shift[0], ROWS)
        columns = average_weights(left + shift[1], right + shift[1], COLUMNS)
        images[number] = np.rint(rows @ photograph @ columns.T)
    return images


def draw_subject(seed, subject, lights):
    """All images of one person; depends on nothing but the arguments, in whatever process.

    Args:
      seed: int 0..2**32-1. subject: int, the person. lights: numbers of LIGHTS, one per image;
        an image depends on its own light only.
    Returns:
      uint8 [5, len(lights), 32, 32], modalities in the order of MODALITIES.
    """
    face = draw_face(np.random.RandomState([seed, subject]))
    images = np.empty((len(MODALITIES), len(lights), SIDE, SIDE), np.uint8)
    for number, light in enumerate(lights):
        random = np.random.RandomState([seed, subject, light + 1])
        shift = np.clip(JITTER * random.standard_normal(2), -MARGIN, MARGIN)
        images[:, number] = crop(shade(face, LIGHTS[light], random), shift)
    return images


def send_subjects(connection, tasks, parents_ends):
    """Body of a worker process: sends draw_subject(*task) of each task through the connection.

    parents_ends are the receiving ends this process inherited. With them closed only the parent
    can receive, so that a killed parent breaks the pipe and the worker ends too.
    """
    for end in parents_ends:
        end.close()
    # Ctrl-C reaches the whole process group; the parent answers it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for task in tasks:
            connection.send(draw_subject(*task))
    except BrokenPipeError:
        pass  # the parent was killed: nobody is left to draw for
