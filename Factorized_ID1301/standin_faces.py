"""Painted faces with known landmarks, in CelebA's aligned frame: 178 x 218 RGB pixels.

A small 3-D head is jittered, posed and projected; the picture is painted back to front and the five
annotated points are projections of the same head. Needs numpy only, so that workers start at once.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import signal

import numpy as np

WIDTH, HEIGHT = 178, 218  # pixels of a CelebA aligned image
ORIGIN = (88.7, 111.5)  # pixel between the eyes, where CelebA's alignment puts it
COLUMN, ROW = np.meshgrid(np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))
EDGE = 1.5  # pixels over which the edge of a shape fades

# The head in pixels: origin between the eyes, x to the right, y down, z to the camera.
EYE, NOSE, MOUTH, BROW = (19.0, 0.0, 0.0), (0.0, 25.0, 22.0), (16.5, 40.6, 6.0), (19.0, -15.0, 5.0)
HEAD, HALF_WIDTH, HALF_HEIGHT = (0.0, 14.0, -25.0), 44.0, 60.0
JAW = (0.0, 37.0, -16.0)

# Pose: standard deviation and bound, radians. A little less than what the points of CelebA suggest
# one by one; together they give its spread of the nose and the mouth.
YAW, PITCH, ROLL = (0.24, 0.7), (0.11, 0.35), (0.045, 0.3)

SKIN_TINT, SKIN_DEPTH = np.array([1.0, 0.80, 0.68]), np.array([0.0, 0.16, 0.26])
LIP_TINT = np.array([0.86, 0.50, 0.50])
HAIR_COLOURS = np.array([[0.06, 0.05, 0.05], [0.20, 0.12, 0.08], [0.36, 0.22, 0.12],
                         [0.50, 0.24, 0.12], [0.80, 0.64, 0.36], [0.62, 0.61, 0.60]])
IRIS_COLOURS = np.array([[0.25, 0.15, 0.08], [0.22, 0.40, 0.58], [0.26, 0.42, 0.26],
                         [0.42, 0.45, 0.47]])
BLACK, WHITE = np.zeros(3), np.ones(3)

# distance: function (x, y in pixels) -> signed distance to the edge, negative inside.
# low, high: float64 [2], corners (x, y) of a box that holds the shape.
Shape = collections.namedtuple("Shape", "distance low high")

# Identity as factors near 1 (smile and opening in pixels), pose in radians, origin in pixels.
Head = collections.namedtuple(
    "Head", "eyes nose_length nose_height mouth_width mouth_height size smile opening lids "
            "yaw pitch roll scale origin")
Look = collections.namedtuple(
    "Look", "skin hair iris shirt light has_hair long_hair beard glasses fringe contrast "
            "brightness noise")


# ---------------------------------------------------------------- the head


def draw_head(random):
    """A Head of a person and a pose, from a numpy RandomState."""
    eyes, nose_length, nose_height, mouth_width, mouth_height, size = 1 + np.array(
        [0.06, 0.08, 0.15, 0.10, 0.06, 0.07]) * random.standard_normal(6)
    smile, opening = 2 * random.standard_normal(), max(0.0, 2.5 * random.standard_normal())
    lids = random.uniform(0.75, 1.25)
    yaw, pitch, roll = (float(np.clip(spread * random.standard_normal(), -bound, bound))
                        for spread, bound in (YAW, PITCH, ROLL))
    scale = 1 + 0.05 * random.standard_normal()
    origin = ORIGIN + 1.5 * random.standard_normal(2)
    return Head(eyes, nose_length, nose_height, mouth_width, mouth_height, size, smile, opening,
                lids, yaw, pitch, roll, scale, origin)


def project(head, points):
    """Where points (x, y, z) of the head, [..., 3], are in the picture: float64 [..., 2], (x, y).

    Turned by yaw about y, pitch about x and roll about z, then seen from infinitely far.
    """
    x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    x, z = (x * np.cos(head.yaw) + z * np.sin(head.yaw),
            z * np.cos(head.yaw) - x * np.sin(head.yaw))
    y = y * np.cos(head.pitch) + z * np.sin(head.pitch)
    cosine, sine = np.cos(head.roll), np.sin(head.roll)
    flat = np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=-1)
    return head.scale * flat + head.origin


def feature_points(head):
    """The five annotated points on the head, float64 [5, 3]: eyes, nose tip, mouth corners."""
    eye = EYE[0] * head.eyes
    nose = (0.0, NOSE[1] * head.nose_length, NOSE[2] * head.nose_height)
    mouth = (MOUTH[0] * head.mouth_width, MOUTH[1] * head.mouth_height - head.smile, MOUTH[2])
    return np.array([(-eye, 0.0, 0.0), (eye, 0.0, 0.0), nose, (-mouth[0],) + mouth[1:], mouth])


def landmarks(head):
    """CelebA's five points in the picture, float64 [5, 2] (x, y), not yet rounded.

    Left and right are the picture's, as in CelebA's aligned list.
    """
    return project(head, feature_points(head))


# ---------------------------------------------------------------- shapes and paint


def ellipse(centre, axes, angle=0.0):
    """Ellipse Shape: centre (x, y), half axes (a, b) in pixels, turned by angle in radians.

    The distance is exact to first order at the edge.
    """
    (centre_x, centre_y), (a, b) = centre, axes
    cosine, sine = np.cos(angle), np.sin(angle)

    def distance(x, y):
        u = (cosine * (x - centre_x) + sine * (y - centre_y)) / a
        v = (cosine * (y - centre_y) - sine * (x - centre_x)) / b
        radius = np.sqrt(u * u + v * v) + 1e-6
        slope = np.sqrt((u / a) ** 2 + (v / b) ** 2) / radius + 1e-6
        return (radius - 1) / slope

    reach = np.hypot([a * cosine, a * sine], [b * sine, b * cosine])
    return Shape(distance, np.asarray(centre) - reach, np.asarray(centre) + reach)


def stroke(points, radius):
    """Round brush of `radius` pixels along straight lines through points [N, 2], N at least 2."""
    points = np.asarray(points, np.float64)

    def distance(x, y):
        nearest = None
        for (x0, y0), (x1, y1) in zip(points[:-1], points[1:]):
            dx, dy = x1 - x0, y1 - y0
            along = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-6)
            along = np.clip(along, 0, 1)
            squared = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2
            nearest = squared if nearest is None else np.minimum(nearest, squared)
        return np.sqrt(nearest) - radius

    return Shape(distance, points.min(axis=0) - radius, points.max(axis=0) + radius)


def union(first, second):
    """Shape of all that is in one of two Shapes."""
    return Shape(lambda x, y: np.minimum(first.distance(x, y), second.distance(x, y)),
                 np.minimum(first.low, second.low), np.maximum(first.high, second.high))


def outline(shape, width):
    """Shape of the line of `width` pixels along the edge of a Shape."""
    return Shape(lambda x, y: np.abs(shape.distance(x, y)) - width / 2,
                 shape.low - width, shape.high + width)


def paint(picture, shape, colour, opacity=1.0, edge=EDGE, inside=None):
    """Paints a Shape over the picture float32 [HEIGHT, WIDTH, 3], in place.

    Args:
      colour: RGB in [0,1]. opacity: 0..1. edge: pixels over which the edge fades.
      inside: None, or a Shape outside which nothing is painted.
    """
    column, row = np.maximum(np.floor(shape.low - edge), 0).astype(int)
    last_column, last_row = np.ceil(shape.high + edge).astype(int)
    if last_column < 0 or last_row < 0:
        return
    box = (slice(row, last_row + 1), slice(column, last_column + 1))
    x, y = COLUMN[box], ROW[box]
    cover = opacity * np.clip(0.5 - shape.distance(x, y) / edge, 0, 1)
    if inside is not None:
        cover = cover * np.clip(0.5 - inside.distance(x, y) / EDGE, 0, 1)
    cover = cover[..., None].astype(np.float32)
    picture[box] += cover * (np.asarray(colour, np.float32) - picture[box])


# ---------------------------------------------------------------- the picture


def draw_look(random):
    """A Look: colours, hair, beard, glasses, light and the camera's settings."""
    brightness = random.uniform(0.35, 1.05)
    skin = brightness * (SKIN_TINT - (1 - brightness) * SKIN_DEPTH)  # dark skin is the warmer one
    hair = HAIR_COLOURS[random.randint(len(HAIR_COLOURS))] * random.uniform(0.8, 1.2)
    iris, shirt = IRIS_COLOURS[random.randint(len(IRIS_COLOURS))], muted_colour(random)
    light = random.choice([-1.0, 1.0]) * random.uniform(0.3, 1.0)  # -1: from the left, 1: right
    chance = random.uniform(size=4)
    return Look(np.minimum(skin, 1), np.minimum(hair, 1), iris, shirt, light,
                chance[0] > 0.08, chance[1] < 0.55, chance[2] < 0.14, chance[3] < 0.12,
                random.uniform(-18, 18), random.uniform(0.75, 1.15), random.uniform(-0.1, 0.1),
                random.uniform(0.005, 0.025))


def interpolation(length, knots):
    """float32 [length, knots]: rows interpolate smoothly between evenly spaced knots."""
    position = np.linspace(0, knots - 1, length)
    offset = np.abs(position[:, None] - np.arange(knots))
    return np.where(offset < 1, 0.5 + 0.5 * np.cos(np.pi * offset), 0).astype(np.float32)


BACKGROUND_ROWS, BACKGROUND_COLUMNS = interpolation(HEIGHT, 6), interpolation(WIDTH, 5)


def muted_colour(random):
    """A random RGB colour, half way to the grey of its brightness."""
    colour = random.uniform(0.1, 0.9, size=3)
    return 0.5 * (colour + colour.mean())


def paint_background(random):
    """A blurred surrounding: float32 [HEIGHT, WIDTH, 3]."""
    base = muted_colour(random)
    knots = (base + 0.10 * random.standard_normal((6, 5, 1))
             + 0.05 * random.standard_normal((6, 5, 3))).astype(np.float32)
    picture = np.einsum("rk,klc->rlc", BACKGROUND_ROWS, knots)
    picture = np.einsum("sl,rlc->rsc", BACKGROUND_COLUMNS, picture)
    for _ in range(random.randint(6)):
        shape = ellipse(random.uniform((0, 0), (WIDTH, HEIGHT)), random.uniform(8, 45, size=2),
                        random.uniform(0, np.pi))
        paint(picture, shape, muted_colour(random), random.uniform(0.3, 0.9),
              random.uniform(1.5, 14))
    return picture


def skull(head):
    """Shape of the face with its chin."""
    size = head.size * head.scale
    centre, jaw = project(head, (HEAD, JAW))
    return union(ellipse(centre, (HALF_WIDTH * size, HALF_HEIGHT * size), head.roll),
                 ellipse(jaw, (36 * size, 39 * size), head.roll))


def paint_hair_behind(picture, head, look):
    """Long hair at the back and the cap of hair, to be partly covered by the face."""
    size = head.size * head.scale
    if look.long_hair and look.has_hair:
        back = ellipse(project(head, (0, 40, -45)), (58 * size, 88 * size), head.roll)
        paint(picture, back, 0.75 * look.hair, edge=4)
    if look.has_hair:
        paint(picture, hair_cap(head), look.hair, edge=3)


def hair_cap(head):
    """Shape of the hair on the head, without what falls behind it."""
    size = head.size * head.scale
    return ellipse(project(head, (0, 2, -32)), (51 * size, 65 * size), head.roll)


def paint_body(picture, head, look):
    """Shoulders in a shirt, the neck, the ears."""
    size = head.size * head.scale
    bottom = project(head, (0, 112, -35))
    paint(picture, ellipse(bottom + (0, 24), (84 * size, 50 * size)), look.shirt, edge=2)
    neck = stroke([project(head, (0, 55, -30)), bottom], 22 * size)
    paint(picture, neck, 0.82 * look.skin, edge=3)
    for side in (-1, 1):
        ear = project(head, (side * HALF_WIDTH * head.size, 6, -32))
        paint(picture, ellipse(ear, (7 * size, 12 * size), head.roll), 0.9 * look.skin)
        paint(picture, ellipse(ear, (3.5 * size, 7.5 * size), head.roll), 0.7 * look.skin, 0.7, 3)


def paint_face(picture, head, look):
    """Skin, light and shade, cheeks, and the fringe that falls over the forehead."""
    face, side = skull(head), np.sign(look.light)
    paint(picture, face, look.skin)
    lit, dark = project(head, ((22 * side, 14, 0), (-40 * side, 22, -20)))
    paint(picture, ellipse(lit, (26, 42), head.roll), WHITE, 0.18 * abs(look.light), 34, face)
    paint(picture, ellipse(dark, (24, 62), head.roll), BLACK, 0.38 * abs(look.light), 34, face)
    chin = ellipse(project(head, (0, 79, -10)), (34, 10), head.roll)
    paint(picture, chin, BLACK, 0.25, 14, face)
    for cheek in project(head, ((-26, 24, 0), (26, 24, 0))):
        paint(picture, ellipse(cheek, (10, 8)), look.skin * (1, 0.68, 0.66), 0.35, 12, face)
    if look.has_hair:
        size = head.size * head.scale
        fringe = ellipse(project(head, (look.fringe, -48, -10)), (44 * size, 19 * size),
                         head.roll + look.fringe / 60)
        paint(picture, fringe, look.hair, edge=3, inside=hair_cap(head))


def paint_eye(picture, head, look, side):
    """One eye and its brow; side: -1 left, 1 right in the picture."""
    centre = project(head, feature_points(head)[int(side > 0)])
    narrow = np.cos(head.yaw + 0.35 * side) / np.cos(0.35)  # the far eye is seen from the side
    wide, high = 8.6 * max(narrow, 0.3) * head.scale, 4.4 * head.lids * head.scale
    shade = project(head, (side * EYE[0] * head.eyes, -6, 2))
    paint(picture, ellipse(shade, (12 * narrow + 1, 8), head.roll), 0.6 * look.skin, 0.45, 8)
    white = ellipse(centre, (wide, high), head.roll)
    paint(picture, white, 0.93 * WHITE)
    paint(picture, ellipse(centre, (4.3 * narrow, 4.3)), look.iris, inside=white)
    paint(picture, ellipse(centre, (2.0, 2.0)), BLACK, inside=white)
    paint(picture, ellipse(centre + (1.5 * np.sign(look.light), -1.6), (1.0, 1.0)), WHITE, 0.9)
    angles = np.linspace(np.pi, 2 * np.pi, 6)
    lid = centre + np.stack([wide * np.cos(angles), high * np.sin(angles)], axis=-1)
    paint(picture, stroke(lid, 0.9), 0.25 * look.skin)
    brow = project(head, [(side * (BROW[0] * head.eyes + dx), BROW[1] + dy, BROW[2] + dz)
                          for dx, dy, dz in ((-9, 2, 2), (0, -2, 0), (10, 3, -5))])
    paint(picture, stroke(brow, 1.9), 0.7 * look.hair if look.has_hair else 0.4 * look.skin, 0.9, 2)


def paint_nose(picture, head, look):
    """Ridge, shaded side, tip, wings and nostrils."""
    length, height = NOSE[1] * head.nose_length, NOSE[2] * head.nose_height
    side = np.sign(look.light)
    tip = project(head, (0, length, height))
    shaded = project(head, [(-3.5 * side, 0, 4), (-6 * side, 0.9 * length, 0.6 * height)])
    paint(picture, stroke(shaded, 2.0), 0.55 * look.skin, 0.4, 5)
    for wing in (-1, 1):
        place = project(head, (7.5 * wing, length + 1, 0.55 * height))
        paint(picture, ellipse(place, (4.6, 3.8), head.roll), 0.78 * look.skin, 0.7, 4)
    ridge = project(head, [(0, -2, 6), (0, 0.75 * length, 0.8 * height)])
    light = np.minimum(1.18 * look.skin, 1)
    paint(picture, stroke(ridge, 2.0), light, 0.5, 4)
    paint(picture, ellipse(tip, (6.4, 5.2), head.roll), 0.96 * look.skin, 0.8, 4)
    paint(picture, ellipse(tip, (2.8, 2.4)), light, 0.7, 3)
    for wing in (-1, 1):
        place = project(head, (4.2 * wing, length + 4.2, 0.72 * height))
        paint(picture, ellipse(place, (2.2, 1.4), head.roll), 0.22 * look.skin, 0.9)


def paint_beard(picture, head, look):
    """Beard over the lower face, inside its outline."""
    centre = project(head, (0, 58, -6))
    beard = ellipse(centre, (38 * head.size, 26 * head.size), head.roll)
    colour = 0.85 * look.hair if look.has_hair else 0.3 * look.skin
    paint(picture, beard, colour, 0.85, 9, skull(head))


def paint_mouth(picture, head, look):
    """Lips from corner to corner; when open, the inside and the upper teeth."""
    left, right = project(head, feature_points(head)[3:])
    half, middle = MOUTH[0] * head.mouth_width, MOUTH[1] * head.mouth_height
    gap, lip = head.opening, look.skin * LIP_TINT

    def between(x, y):
        return project(head, (x * half, middle + y, 11 - 4 * abs(x)))

    upper = [left, between(-0.35, -2.8), between(0, -2.0), between(0.35, -2.8), right]
    lower = [left, between(-0.5, 2.2 + gap), between(0, 3.6 + gap), between(0.5, 2.2 + gap), right]
    line = [left, between(-0.5, 0.2), between(0, 0.4), between(0.5, 0.2), right]
    paint(picture, stroke(lower, 2.5), np.minimum(1.08 * lip, 1), 0.95)
    paint(picture, stroke(upper, 1.9), 0.9 * lip, 0.95)
    if gap > 0.8:
        inside = ellipse(between(0, gap / 2 + 0.4), (0.68 * half, gap / 2 + 1.2), head.roll)
        paint(picture, inside, (0.25, 0.06, 0.07))
        teeth = ellipse(between(0, 0.1 * gap), (0.55 * half, 0.4 * gap + 0.8), head.roll)
        paint(picture, teeth, 0.92 * WHITE, inside=inside)
    else:
        paint(picture, stroke(line, 0.7), 0.45 * lip)
    for corner in (left, right):
        paint(picture, ellipse(corner, (1.5, 1.5)), 0.5 * lip, 0.6)


def paint_glasses(picture, head):
    """A thin dark frame around both eyes."""
    eye = EYE[0] * head.eyes
    for side in (-1, 1):
        narrow = np.cos(head.yaw + 0.2 * side) / np.cos(0.2)
        lens = ellipse(project(head, (side * eye, 1, 5)), (13 * narrow, 10.5), head.roll)
        paint(picture, lens, WHITE, 0.08)
        paint(picture, outline(lens, 1.6), BLACK, 0.9)
        arm = project(head, [(side * (eye + 13), -1, 4), (side * HALF_WIDTH * head.size, 0, -30)])
        paint(picture, stroke(arm, 0.8), BLACK, 0.9, inside=skull(head))
    bridge = project(head, [(13 - eye, -1, 7), (0, -2, 9), (eye - 13, -1, 7)])
    paint(picture, stroke(bridge, 0.8), BLACK, 0.9)


def develop(picture, look, random):
    """The camera's contrast, brightness and noise: uint8 [HEIGHT, WIDTH, 3]."""
    noise = random.standard_normal((HEIGHT, WIDTH, 3)).astype(np.float32)
    exposed = (picture - 0.5) * np.float32(look.contrast) + np.float32(0.5 + look.brightness)
    exposed += np.float32(look.noise) * noise
    return np.round(255 * np.clip(exposed, 0, 1)).astype(np.uint8)


def draw_picture(head, random):
    """Paints a Head in a drawn Look and surrounding: uint8 [HEIGHT, WIDTH, 3]."""
    look = draw_look(random)
    picture = paint_background(random)
    paint_hair_behind(picture, head, look)
    paint_body(picture, head, look)
    paint_face(picture, head, look)
    for side in (-1, 1):
        paint_eye(picture, head, look, side)
    paint_nose(picture, head, look)
    if look.beard:
        paint_beard(picture, head, look)
    paint_mouth(picture, head, look)
    if look.glasses:
        paint_glasses(picture, head)
    return develop(picture, look, random)


def draw_face(seed, split, number):
    """One face; depends on nothing else, in whatever process.

    Args:
      seed: int 0..2**32-1. split: int, the set it belongs to. number: int, its place in the set.
    Returns:
      (picture uint8 [218, 178, 3], landmarks int64 [5, 2], (x, y) in pixels: left eye, right eye,
      nose tip, left and right mouth corner).
    """
    random = np.random.RandomState([seed, split, number])
    head = draw_head(random)
    return draw_picture(head, random), np.round(landmarks(head)).astype(np.int64)


def send_faces(connection, tasks, parents_ends):
    """Body of a worker process: sends draw_face(*task) of each task through the connection.

    parents_ends are the receiving ends this process inherited. With them closed only the parent
    can receive, so that a killed parent breaks the pipe and the worker ends too.
    """
    for end in parents_ends:
        end.close()
    # Ctrl-C reaches the whole process group; the parent answers it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for task in tasks:
            connection.send(draw_face(*task))
    except BrokenPipeError:
        pass  # the parent was killed: nobody is left to draw for
