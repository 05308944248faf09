"""Handwriting-like digits drawn with a virtual pen, in MNIST's frame: 28 x 28 grey pixels, ink in a
20 x 20 box, centre of mass in the middle. Needs numpy only, so that worker processes start at once.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.

import collections
import signal

import numpy as np

SIDE = 28  # pixels of an image side
CANVAS = 20  # pixels of the box the ink is drawn in, as in MNIST
CENTRE = 14  # pixel index the centre of mass is moved to, as in MNIST
BLOCK = 1000  # images drawn from one random state
PATH_POINTS = 72  # pen positions along all strokes of one digit
RENDER_CHUNK = 128  # images rendered together: the distance array stays in the processor's cache

JOINT_JITTER = 0.07  # standard deviation, in units of the template square
WARP_AMPLITUDE = 0.08
SLANT_MEAN, SLANT_SPREAD = 0.13, 0.26
ROTATION_SPREAD = 0.12  # radians
WIDTH_SPREAD = 0.24  # standard deviation of the logarithm
WOBBLE_HALF_PERIODS = np.array([3, 5, 7, 9])
WOBBLE_AMPLITUDE = 0.015
PEN_RADIUS, PEN_RADIUS_SPREAD = 1.12, 0.30  # pixels, standard deviation of the logarithm
PEN_PRESSURE = 0.12  # relative change of the radius along the path
PEN_MARGIN = 0.55  # pixels kept free between the pen's edge and the edge of the canvas
EDGE_SOFTNESS, EDGE_GAIN, EDGE_OFFSET = 1.8, 1.34, 0.03  # pixels, and slope / offset of the ink
SUBPIXEL = 1024.0  # pen positions and radii are rounded to this fraction of a pixel

# Width of each digit relative to its height, before the random factor.
WIDTHS = (0.80, 0.12, 0.85, 0.72, 0.80, 0.85, 0.68, 0.72, 0.66, 0.64)

# (digit, probability, strokes): points "x,y" in the unit square, x to the right, y down, strokes
# separated by "|". Points with equal coordinates are one joint and stay together.
STYLES = (
    (0, 1.0, ".50,0 .18,.12 .02,.45 .12,.85 .45,1 .80,.88 .98,.52 .85,.14 .55,0"),
    (1, 0.75, ".5,0 .5,.5 .5,1"),
    (1, 0.25, ".25,.22 .45,.08 .55,0 | .55,0 .53,.5 .5,1"),
    (2, 0.6, ".08,.22 .30,.02 .68,.04 .82,.26 .62,.56 .32,.80 .05,.97 | .05,.97 .45,.93 .97,.96"),
    (
        2,
        0.4,
        ".10,.20 .34,.01 .72,.06 .80,.30 .58,.62 .28,.90 .10,.92 .16,.76 .42,.82 .70,.98 .98,.93",
    ),
    (3, 1.0, ".08,.14 .38,0 .76,.10 .74,.34 .36,.47 | .36,.47 .76,.54 .90,.76 .55,1 .05,.90"),
    (4, 0.65, ".14,.04 .06,.34 .16,.52 .50,.52 .88,.44 | .86,0 .78,.42 .70,1"),
    (4, 0.35, ".62,0 .30,.34 .04,.60 | .04,.60 .45,.60 .96,.56 | .66,.02 .66,.50 .62,1"),
    (
        5,
        1.0,
        ".92,.02 .60,.03 .26,.06 | .26,.06 .20,.24 .16,.44 |"
        " .16,.44 .52,.38 .86,.58 .78,.88 .42,1 .04,.92",
    ),
    (6, 1.0, ".68,0 .36,.20 .10,.56 .12,.88 .48,1 .84,.86 .82,.62 .52,.54 .14,.72"),
    (7, 0.75, ".04,.12 .40,.08 .94,.04 | .94,.04 .70,.42 .42,1"),
    (7, 0.25, ".04,.10 .45,.06 .92,.04 | .92,.04 .68,.46 .44,1 | .34,.54 .60,.51 .88,.48"),
    (
        8,
        1.0,
        ".84,.12 .52,0 .16,.14 .30,.38 .66,.58 .86,.82 .50,1 .16,.86 .34,.60 .70,.38 .84,.12",
    ),
    (9, 0.6, ".82,.16 .52,0 .14,.14 .12,.38 .46,.46 .80,.24 .84,.14 | .84,.14 .80,.55 .70,1"),
    (
        9,
        0.4,
        ".80,.16 .50,0 .12,.16 .12,.40 .48,.46 .80,.26 .84,.14 |"
        " .84,.14 .84,.56 .62,.92 .24,.98",
    ),
)

# joints: float64 [K, 2]; spline: float64 [PATH_POINTS, K], joints to pen positions.
Template = collections.namedtuple("Template", "digit probability joints spline")

# Random numbers of n images; every field has the images on its first axis.
Variation = collections.namedtuple(
    "Variation", "style jitter width warp slant rotation wobble wobble_phase radius pressure_phase"
)


def parse_strokes(text):
    """Returns joints float64 [K, 2] and, per stroke, the list of its joint numbers."""
    joints = []
    strokes = []
    for stroke_text in text.split("|"):
        points = [tuple(float(number) for number in p.split(",")) for p in stroke_text.split()]
        joints.extend(p for p in points if p not in joints)
        strokes.append([joints.index(p) for p in points])
    return np.array(joints), strokes


def segment_lengths(joints, stroke):
    """Straight lengths between a stroke's successive joints, float64 [joints of the stroke - 1]."""
    steps = np.diff(joints[stroke], axis=0)
    return np.sqrt((steps**2).sum(axis=1))


def share_points(lengths):
    """Splits PATH_POINTS among strokes in proportion to their lengths; the longest takes the rest.

    Returns a list of ints that sums to PATH_POINTS.
    """
    counts = [int(round(PATH_POINTS * length / sum(lengths))) for length in lengths]
    counts[int(np.argmax(lengths))] += PATH_POINTS - sum(counts)
    return counts


def catmull_rom_weights(t):
    """Weights of the four neighbouring joints at fraction t of the middle segment.

    Args:
      t: float64 [P], 0 at the second joint and 1 at the third.
    Returns:
      float64 [4, P], columns sum to 1.
    Source: Catmull and Rom 1974, the uniform cubic with tension 1/2.
    """
    return 0.5 * np.array(
        [
            -t + 2 * t**2 - t**3,
            2 - 5 * t**2 + 3 * t**3,
            t + 4 * t**2 - 3 * t**3,
            -(t**2) + t**3,
        ]
    )


def stroke_spline(lengths, stroke, count, joint_count):
    """Matrix float64 [count, joint_count]: joints to evenly spaced points of one stroke."""
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    position = np.linspace(0.0, ends[-1], count)
    segment = np.clip(np.searchsorted(ends, position, side="right") - 1, 0, len(lengths) - 1)
    weights = catmull_rom_weights((position - ends[segment]) / lengths[segment])
    # The first and last joint are repeated: the curve needs a neighbour beyond each end.
    padded = np.array([stroke[0]] + stroke + [stroke[-1]])
    matrix = np.zeros((count, joint_count))
    for neighbour in range(4):
        np.add.at(matrix, (np.arange(count), padded[segment + neighbour]), weights[neighbour])
    return matrix


def build_template(digit, probability, text):
    """Turns one entry of STYLES into a Template."""
    joints, strokes = parse_strokes(text)
    natural = joints * [WIDTHS[digit], 1.0]
    lengths = [segment_lengths(natural, stroke) for stroke in strokes]
    counts = share_points([length.sum() for length in lengths])
    pieces = [
        stroke_spline(length, stroke, count, len(joints))
        for length, stroke, count in zip(lengths, strokes, counts)
    ]
    return Template(digit, probability, joints, np.concatenate(pieces))


TEMPLATES = tuple(build_template(*style) for style in STYLES)
MAX_JOINTS = max(len(template.joints) for template in TEMPLATES)


def draw_variation(count, rng):
    """Draws the random numbers of `count` images, the same amount for every digit and style."""
    terms = len(WOBBLE_HALF_PERIODS)
    return Variation(
        style=rng.uniform(size=count),
        jitter=JOINT_JITTER * rng.standard_normal((count, MAX_JOINTS, 2)),
        width=np.exp(WIDTH_SPREAD * rng.standard_normal(count)),
        warp=WARP_AMPLITUDE * rng.standard_normal((count, 4, 2)),
        slant=SLANT_MEAN + SLANT_SPREAD * rng.standard_normal(count),
        rotation=ROTATION_SPREAD * rng.standard_normal(count),
        wobble=WOBBLE_AMPLITUDE * rng.standard_normal((count, terms, 2)),
        wobble_phase=rng.uniform(0.0, 2 * np.pi, size=(count, terms, 2)),
        radius=PEN_RADIUS * np.exp(PEN_RADIUS_SPREAD * rng.standard_normal(count)),
        pressure_phase=rng.uniform(0.0, 2 * np.pi, size=count),
    )


def choose_templates(labels, style):
    """Template number of each image: int [n]; style is uniform in [0, 1), float64 [n]."""
    chosen = np.zeros(len(labels), dtype=int)
    reached = np.zeros(10)
    for number, template in enumerate(TEMPLATES):
        # A later style of the same digit replaces an earlier one where its share begins.
        chosen[(labels == template.digit) & (style >= reached[template.digit])] = number
        reached[template.digit] += template.probability
    return chosen


def bend(points, warp):
    """Smooth random warp: adds four slow waves of x and y to both coordinates.

    Args:
      points: float64 [n, K, 2], centred at 0, about one unit wide and high.
      warp: float64 [n, 4, 2], amplitudes per wave and axis.
    Returns:
      float64 [n, K, 2].
    """
    x, y = points[..., 0], points[..., 1]
    waves = np.stack(
        [
            np.sin(np.pi * y),
            2 * x * np.cos(np.pi * y),
            np.sin(np.pi * x),
            2 * y * np.cos(np.pi * x),
        ],
        axis=-1,
    )
    return points + np.einsum("nkw,nwa->nka", waves, warp)


def slant_and_rotate(points, slant, rotation):
    """Leans points [n, K, 2] to the right by slant [n] and turns them by rotation [n] radians."""
    x, y = points[..., 0], points[..., 1]
    x = x - slant[:, None] * y
    cosine, sine = np.cos(rotation)[:, None], np.sin(rotation)[:, None]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)


def pen_paths(labels, variation):
    """Pen positions of n digits in template units, centred roughly at 0: float64 [n, P, 2]."""
    chosen = choose_templates(labels, variation.style)
    paths = np.empty((len(labels), PATH_POINTS, 2))
    for number, template in enumerate(TEMPLATES):
        own = np.flatnonzero(chosen == number)
        joints = template.joints - 0.5 + variation.jitter[own, : len(template.joints)]
        joints[..., 0] *= WIDTHS[template.digit] * variation.width[own, None]
        joints = bend(joints, variation.warp[own])
        joints = slant_and_rotate(joints, variation.slant[own], variation.rotation[own])
        paths[own] = np.einsum("pk,nka->npa", template.spline, joints)
    return paths + pen_wobble(variation)


def pen_wobble(variation):
    """The hand's tremble along the path, in template units: float64 [n, P, 2]."""
    time = np.linspace(0.0, 1.0, PATH_POINTS)[None, :, None]
    wobble = np.zeros((len(variation.style), PATH_POINTS, 2))
    for term, half_periods in enumerate(WOBBLE_HALF_PERIODS):
        angle = np.pi * half_periods * time + variation.wobble_phase[:, None, term]
        wobble += variation.wobble[:, None, term] / np.sqrt(half_periods) * np.sin(angle)
    return wobble


def pen_radii(variation):
    """Pen radius at every pen position, in pixels: float64 [n, P]."""
    time = np.linspace(0.0, 2 * np.pi, PATH_POINTS)
    pressure = 1 + PEN_PRESSURE * np.sin(time + variation.pressure_phase[:, None])
    return variation.radius[:, None] * pressure


def fit_to_canvas(paths, radius):
    """Scales and centres paths so that the longer side, pen included, fills the canvas.

    Args:
      paths: float64 [n, P, 2], any unit.
      radius: float64 [n], the pen's mean radius in pixels.
    Returns:
      float64 [n, P, 2] in pixels, 0 at the centre of the canvas.
    """
    low, high = paths.min(axis=1), paths.max(axis=1)
    room = CANVAS - 2 * (radius * (1 + PEN_PRESSURE) + PEN_MARGIN)
    scale = room / (high - low).max(axis=1)
    return (paths - ((low + high) / 2)[:, None]) * scale[:, None, None]


def round_subpixel(values):
    """Rounds to 1/SUBPIXEL pixel, float32.

    Versions of numpy differ in the last bit of sin and exp; rounding here, before steps that are
    exact in every version, makes all of them draw the same bytes.
    """
    return (np.round(values * SUBPIXEL) / SUBPIXEL).astype(np.float32)


def edge_distances(paths, radii):
    """Distance of every canvas pixel to the edge of the pen's trace, negative inside.

    Args:
      paths: float32 [n, P, 2] pixels, 0 at the centre of the canvas.
      radii: float32 [n, P] pixels.
    Returns:
      float32 [row, column, n] pixels.
    """
    pixels = (np.arange(CANVAS, dtype=np.float32) - (CANVAS - 1) / 2).astype(np.float32)
    # Images on the last axis: every inner loop below then runs over contiguous memory.
    squares = (pixels[:, None] - np.ascontiguousarray(paths.T)[:, :, None, :]) ** 2
    radii = np.ascontiguousarray(radii.T)
    nearest = np.full((CANVAS, CANVAS, len(paths)), np.inf, dtype=np.float32)
    distance = np.empty_like(nearest)
    for point in range(PATH_POINTS):
        np.add(squares[1, point][:, None], squares[0, point][None], out=distance)
        np.sqrt(distance, out=distance)
        distance -= radii[point]
        np.minimum(nearest, distance, out=nearest)
    return nearest


def render(paths, radii):
    """Draws traces of a soft round pen: uint8 [n, CANVAS, CANVAS]; arguments as edge_distances."""
    ink = (0.5 - edge_distances(paths, radii) / EDGE_SOFTNESS) * EDGE_GAIN - EDGE_OFFSET
    grey = np.round(np.clip(ink, 0, 1) * 255).astype(np.uint8)
    return np.moveaxis(grey, -1, 0)


def place_by_mass(canvases):
    """Puts each canvas into a 28 x 28 image, its centre of mass at pixel (14, 14) to half a pixel.

    Args:
      canvases: uint8 [n, CANVAS, CANVAS], each with some ink.
    Returns:
      uint8 [n, 28, 28]; a canvas is never cut, however far its mass lies from its middle.
    """
    # Sums of integers are exact, so every version of numpy finds the same shift.
    mass = canvases.sum(axis=(1, 2), dtype=np.int64)
    index = np.arange(CANVAS)
    slots = []
    for axis in (2, 1):
        centre = (canvases.sum(axis=axis, dtype=np.int64) * index).sum(axis=1) / mass
        start = np.floor(CENTRE - centre + 0.5).astype(int)
        slots.append(np.clip(start, 0, SIDE - CANVAS)[:, None] + index)
    rows, columns = slots
    images = np.zeros((len(canvases), SIDE, SIDE), dtype=np.uint8)
    image = np.arange(len(canvases))[:, None, None]
    images[image, rows[:, :, None], columns[:, None, :]] = canvases
    return images


def draw_digits(labels, rng):
    """Draws one digit per label.

    Args:
      labels: integers 0..9, [n].
      rng: numpy.random.RandomState, advanced by an amount that depends on n only.
    Returns:
      uint8 [n, 28, 28], 0 is paper and 255 full ink, as in MNIST.
    Raises:
      ValueError: if a label is not a digit.
    """
    labels = np.asarray(labels)
    if len(labels) and (labels.min() < 0 or labels.max() > 9):
        raise ValueError(f"labels must be digits 0..9, found {labels.min()}..{labels.max()}")
    variation = draw_variation(len(labels), rng)
    paths = round_subpixel(fit_to_canvas(pen_paths(labels, variation), variation.radius))
    radii = round_subpixel(pen_radii(variation))
    images = np.empty((len(labels), SIDE, SIDE), dtype=np.uint8)
    for start in range(0, len(labels), RENDER_CHUNK):
        part = slice(start, start + RENDER_CHUNK)
        images[part] = place_by_mass(render(paths[part], radii[part]))
    return images


def draw_block(seed, split, block, count=BLOCK):
    """Draws the first `count` images of one block; depends on nothing else, in whatever process.

    The whole block is drawn and then cut, so that a small set is the beginning of a larger one.

    Args:
      seed: int 0..2**32-1.
      split: int, 0 for the training set and 1 for the test set.
      block: int, image number // BLOCK.
      count: int 1..BLOCK.
    Returns:
      (images uint8 [count, 28, 28], labels uint8 [count], every class equally likely).
    """
    rng = np.random.RandomState([seed, split, block])
    labels = rng.randint(0, 10, size=BLOCK)
    return draw_digits(labels, rng)[:count], labels[:count].astype(np.uint8)


def send_blocks(connection, tasks, parents_ends):
    """Body of a worker process: sends draw_block(*task) of each task through the connection.

    parents_ends are the receiving ends this process inherited. With them closed only the parent
    can receive, so that a killed parent breaks the pipe and the worker ends too.
    """
    for end in parents_ends:
        end.close()
    # Ctrl-C reaches the whole process group; the parent answers it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for task in tasks:
            connection.send(draw_block(*task))
    except BrokenPipeError:
        pass  # the parent was killed: nobody is left to draw for
