"""All that AdaGAN draws, in two ways: cheaply from (seed, component, epoch), or as the reference.

The reference consumes NumPy's one legacy stream draw by draw. ReferenceDraws does the same, for
comparisons with it; SeededDraws has the same distributions, needs no state to resume and costs
less.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import zlib

import numpy as np

PLOT_NOISE = 500  # rows the reference draws for the pictures of a new GAN
ATTEMPTS = 8  # rounds of rejection before the points found are taken out of the distribution


class WeightedChoice:
    """Draws of `size` different points (successive sampling without replacement) by weights [N].

    With fewer than `size` weights above 0 the points are drawn with replacement (`repeats`).
    """

    def __init__(self, weights):
        self._weights = np.asarray(weights, np.float64)
        self._sums = cumulative(self._weights)
        self.support = int(np.count_nonzero(self._weights))

    def repeats(self, size):
        """Whether draws of `size` points contain the same point twice."""
        return self.support < size

    def draw(self, random, size):
        """int64 [size]: what random.choice(N, size, replace=False, p=weights) returns.

        The same numbers of the stream are consumed; the cumulative sum is computed once for all
        draws, and again only where a point came twice.
        """
        if self.repeats(size):
            return self._places(random.random_sample(size))
        return self._complete(random, size, np.empty(0, np.int64), 0)

    def batches(self, random, count, size):
        """int64 [count, size]: `count` draws at once, with the distribution of `draw`."""
        found = self._places(random.random_sample((count, size)))
        if self.repeats(size):
            return found
        for row in np.flatnonzero(have_twins(found)):
            found[row] = self._complete(random, size, first_of_each(found[row]), ATTEMPTS)
        return found

    def _places(self, uniform):
        return np.searchsorted(self._sums, uniform, side="right")

    def _complete(self, random, size, found, attempts):
        """`found`, different points in the order drawn, and others up to `size`.

        To draw from the whole distribution and reject what was found (`attempts` times) is the
        same as to draw from the rest, which needs a new cumulative sum.
        """
        while len(found) < size:
            uniform = random.random_sample(size - len(found))
            if attempts > 0 or not len(found):
                new = self._places(uniform)
            else:
                rest = self._weights.copy()
                rest[found] = 0
                new = np.searchsorted(cumulative(rest), uniform, side="right")
            found = first_of_each(np.concatenate([found, new]))
            attempts -= 1
        return found


def cumulative(weights):
    """Cumulative distribution, float64 [N]; the last is 1."""
    sums = np.cumsum(weights)
    return sums / sums[-1]


def have_twins(rows):
    """bool [n]: which rows of int [n, size] contain a number twice."""
    ordered = np.sort(rows, axis=1)
    return np.any(ordered[:, 1:] == ordered[:, :-1], axis=1)


def first_of_each(numbers):
    """The different numbers in the order of their first appearance."""
    _, places = np.unique(numbers, return_index=True)
    return numbers[np.sort(places)]


def uniform_batches(random, total, count, size):
    """int64 [count, size]: rows of `size` different numbers below `total` (at least `size`)."""
    found = random.randint(total, size=(count, size))
    for row in np.flatnonzero(have_twins(found)):
        different = first_of_each(found[row])
        while len(different) < size:
            different = first_of_each(np.append(
                different, random.randint(total, size=size - len(different))))
        found[row] = different
    return found


def noise(random, count, dim, distribution):
    """Latent vectors float32 [count, dim]: "normal" N(0, I) or "uniform" in [-1, 1)."""
    if distribution == "uniform":
        return random.uniform(-1, 1, [count, dim]).astype(np.float32)
    return random.standard_normal((count, dim)).astype(np.float32)


Settings = collections.namedtuple("Settings", "batch_size latent_space_dim latent_space_distr")


class Draws:
    """What both ways share.

    Args:
      seed: int. settings: Settings, or flags with these names.
    """

    def __init__(self, seed, settings):
        self._seed, self._settings = seed, settings
        self._component = 0
        self.choice = None

    def _stream(self, purpose, *numbers):
        """RandomState of its own for a purpose, component and numbers."""
        return np.random.RandomState(
            [self._seed, zlib.crc32(purpose.encode()), self._component] + list(numbers))

    def latent(self, random, count):
        """Latent vectors float32 [count, zdim]."""
        return noise(random, count, self._settings.latent_space_dim,
                     self._settings.latent_space_distr)

    def start(self, component):
        """A new component begins."""
        self._component = component

    def go_on(self, component):
        """A component that was begun in an earlier session goes on."""
        self._component = component

    def weigh(self, weights):
        """From now on training points are drawn by these weights float64 [N]."""
        self.choice = WeightedChoice(weights)

    def picture_noise(self, count):
        """Latent vectors [count, zdim] for pictures: always the same, so that they compare."""
        return self.latent(np.random.RandomState([self._seed, zlib.crc32(b"pictures")]), count)

    def own_random(self, purpose):
        """RandomState for what the reference does not draw, such as further metrics."""
        return self._stream("own " + purpose)


class SeededDraws(Draws):
    """Everything from (seed, component, epoch or iteration): a run can go on anywhere."""

    state = None  # none to save

    def __init__(self, seed, settings):
        super().__init__(seed, settings)
        self._epoch_key = self._epoch = None

    def _cached(self, key, make):
        """make(), kept until it is asked for with another key: an epoch is drawn as a whole."""
        if key != self._epoch_key:
            self._epoch, self._epoch_key = make(), key
        return self._epoch

    def weigh(self, weights):
        super().weigh(weights)
        self._epoch_key = None

    def batches(self, epoch, first, count, per_epoch):
        """Iterations first .. first + count - 1 of an epoch of per_epoch iterations.

        Returns:
          (ids int64 [count, batch_size], noise float32 [count, batch_size, zdim]).
        """
        def make():
            random, size = self._stream("train", epoch), self._settings.batch_size
            ids = self.choice.batches(random, per_epoch, size)
            return ids, self.latent(random, per_epoch * size).reshape(per_epoch, size, -1)
        ids, latent = self._cached(("train", self._component, epoch), make)
        return ids[first:first + count], latent[first:first + count]

    def classifier_batches(self, epoch, first, count, per_epoch, samples, points):
        """int64 [count, 2, batch_size]: numbers below `samples` and `points`; see batches."""
        def make():
            random, size = self._stream("classifier", epoch), self._settings.batch_size
            return np.stack([uniform_batches(random, total, per_epoch, size)
                             for total in (samples, points)], axis=1)
        return self._cached(("classifier", self._component, epoch), make)[first:first + count]

    def picture_ids(self, iteration, count):
        """int64: at most `count` training points by weight, for a picture of the training."""
        return self.choice.draw(self._stream("picture", iteration),
                                min(count, self.choice.support))

    def component_noise(self, count):
        """Latent vectors [count, zdim] of the samples that are stored of the component."""
        return self.latent(self._stream("samples"), count)

    def mixture_random(self, purpose):
        """RandomState for Mixture.sample."""
        return self._stream("mixture " + purpose)


class ReferenceDraws(Draws):
    """The reference's draws from one stream of NumPy's legacy generator, number for number.

    random: RandomState; default: of the seed.
    """

    def __init__(self, seed, settings, random=None):
        super().__init__(seed, settings)
        self.random = random or np.random.RandomState(seed)

    @property
    def state(self):
        """int64 [627]: the generator's state."""
        _, key, position, has_gauss, gauss = self.random.get_state()
        bits = np.float64(gauss).view(np.int64)
        return np.concatenate([key.astype(np.int64), [position, has_gauss, bits]])

    @state.setter
    def state(self, numbers):
        self.random.set_state(("MT19937", numbers[:624].astype(np.uint32), int(numbers[624]),
                               int(numbers[625]), float(numbers[626:].view(np.float64)[0])))

    def start(self, component):
        super().start(component)
        self.latent(self.random, PLOT_NOISE)

    def batches(self, _epoch, _first, count, _per_epoch):
        """The next `count` iterations; see SeededDraws.batches."""
        size = self._settings.batch_size
        pairs = [(self.choice.draw(self.random, size), self.latent(self.random, size))
                 for _ in range(count)]
        return tuple(np.stack(part) for part in zip(*pairs))

    def classifier_batches(self, _epoch, _first, count, _per_epoch, samples, points):
        """The next `count` pairs; see SeededDraws.classifier_batches."""
        size = self._settings.batch_size
        return np.stack([[self.random.permutation(total)[:size] for total in (samples, points)]
                         for _ in range(count)])

    def picture_ids(self, _iteration, count):
        """See SeededDraws.picture_ids."""
        return self.choice.draw(self.random, min(count, self.choice.support))

    def component_noise(self, count):
        """See SeededDraws.component_noise."""
        return self.latent(self.random, count)

    def mixture_random(self, _purpose):
        """The stream."""
        return self.random
