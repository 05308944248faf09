"""Random draws: the reference's stream number for number, and the cheap draws' distributions."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import types

import numpy as np
import pytest

import draws
from draws import ReferenceDraws, SeededDraws, WeightedChoice
from golden_rules import find_seed, load
from mixture import Mixture

SETTINGS = types.SimpleNamespace(batch_size=64, latent_space_dim=5, latent_space_distr="normal")
COUNT = 1000


def reference(weights=None, **settings):
    """ReferenceDraws at the start of the golden stream."""
    found = ReferenceDraws(find_seed(), types.SimpleNamespace(**dict(vars(SETTINGS), **settings)))
    if weights is not None:
        found.weigh(weights)
    return found


# ---------------------------------------------------------------- the reference's stream


def test_golden_weighted_batches_noise_uniform_batches_and_tail():
    golden = load("rng_stream")
    stream = reference(golden["weights"])
    ids, noise = stream.batches(0, 0, 6, 6)
    np.testing.assert_array_equal(ids, golden["weighted_ids"])
    np.testing.assert_array_equal(noise, golden["noise"])
    pairs = stream.classifier_batches(0, 0, 2, 2, COUNT, COUNT)
    np.testing.assert_array_equal(pairs.reshape(4, 64), golden["uniform_ids"])
    np.testing.assert_array_equal(stream.random.random_sample(4), golden["tail"])


def test_golden_concentrated_weights_need_several_rounds():
    golden = load("rng_stream")
    stream = reference(golden["concentrated_weights"])
    ids = [stream.choice.draw(stream.random, 64) for _ in range(4)]
    np.testing.assert_array_equal(ids, golden["concentrated_ids"])
    np.testing.assert_array_equal(stream.random.random_sample(2), golden["concentrated_tail"])


def test_golden_uniform_noise():
    noise = reference(latent_space_distr="uniform").component_noise(8)
    np.testing.assert_array_equal(noise, load("rng_stream")["noise_uniform"])


def test_golden_mixture_sampling():
    golden, seed, mixture = load("mixture_sampling"), find_seed(), Mixture()
    for number in range(3):
        draw = np.random.RandomState(seed + 300 + number).standard_normal((50, 2, 1, 1))
        mixture.add((draw + 10 * number).astype(np.float32), 1 / (number + 1))
    for weights, count, key in (((0.5, 0.2, 0.3), 300, "sample300"),
                                ((1, 0, 0), 20, "onlyfirst20")):
        mixture.weights, random = np.array(weights), np.random.RandomState(seed)
        np.testing.assert_array_equal(mixture.sample(count, random)[..., 0, 0], golden[key])
        if key == "sample300":
            np.testing.assert_array_equal(random.random_sample(3), golden["tail"])


def test_draws_equal_numpys_choice():
    """Other sizes and weights than the golden ones, among them one point without weight."""
    random = np.random.RandomState(5)
    for count, size, power in ((10, 9, 1), (200, 64, 3), (3000, 320, 8)):
        weights = random.uniform(size=count) ** power
        weights[0] = 0
        weights /= weights.sum()
        ours, numpys = np.random.RandomState(count), np.random.RandomState(count)
        for _ in range(3):
            np.testing.assert_array_equal(
                WeightedChoice(weights).draw(ours, size),
                numpys.choice(count, size, replace=False, p=weights))
        assert ours.random_sample() == numpys.random_sample()


def test_a_saved_stream_goes_on_where_it_was():
    stream = reference(np.full(COUNT, 1 / COUNT))
    stream.start(0)
    stream.batches(0, 0, 3, 10)
    stream.random.standard_normal()  # leaves the second number of a pair waiting
    state = stream.state
    assert state.dtype == np.int64 and state.shape == (627,)
    expected = stream.random.standard_normal(5), stream.random.random_sample(5)
    other = reference()
    other.state = state
    np.testing.assert_array_equal(other.random.standard_normal(5), expected[0])
    np.testing.assert_array_equal(other.random.random_sample(5), expected[1])


# ---------------------------------------------------------------- the seeded draws


def seeded(weights, seed=1, component=0):
    """SeededDraws in a component."""
    found = SeededDraws(seed, SETTINGS)
    found.start(component)
    found.weigh(weights)
    return found


def concentrated():
    """Weights of which few points hold nearly all, so that every draw meets one twice."""
    weights = np.full(COUNT, 1e-6)
    weights[:70] = 1
    return weights / weights.sum()


@pytest.mark.parametrize("weights", [np.full(COUNT, 1 / COUNT), concentrated()])
def test_batches_do_not_depend_on_how_they_are_asked_for(weights):
    ids, noise = seeded(weights).batches(2, 0, 10, 10)
    pairs = seeded(weights).classifier_batches(2, 0, 10, 10, 300, COUNT)
    again = seeded(weights)
    again.batches(0, 0, 10, 10)
    for first, count in ((7, 3), (0, 4), (4, 3)):
        part = slice(first, first + count)
        for ours, whole in zip(again.batches(2, first, count, 10), (ids, noise)):
            np.testing.assert_array_equal(ours, whole[part])
        np.testing.assert_array_equal(
            again.classifier_batches(2, first, count, 10, 300, COUNT), pairs[part])


def test_other_seeds_components_epochs_and_weights_draw_other_numbers():
    uniform, skewed = np.full(COUNT, 1 / COUNT), np.arange(COUNT) / np.arange(COUNT).sum()
    ids, noise = seeded(uniform).batches(0, 0, 5, 5)
    for other, epoch in ((seeded(uniform, seed=2), 0), (seeded(uniform, component=1), 0),
                         (seeded(uniform), 1)):
        found = other.batches(epoch, 0, 5, 5)
        assert np.any(found[0] != ids) and np.any(found[1] != noise)
    draw = seeded(uniform)
    draw.batches(0, 0, 5, 5)
    draw.weigh(skewed)
    np.testing.assert_array_equal(draw.batches(0, 0, 5, 5)[0],
                                  seeded(skewed).batches(0, 0, 5, 5)[0])


@pytest.mark.parametrize("weights", [np.full(COUNT, 1 / COUNT), concentrated()])
def test_no_point_comes_twice_in_a_batch(weights):
    draw = seeded(weights)
    for ids in (draw.batches(0, 0, 200, 200)[0],
                draw.classifier_batches(0, 0, 200, 200, 65, 70).reshape(-1, 64)):
        assert all(len(set(row)) == 64 for row in ids.tolist())


def test_points_without_weight_are_never_drawn():
    weights = np.zeros(COUNT)
    weights[100:200] = 0.01
    ids = seeded(weights).batches(0, 0, 100, 100)[0]
    assert ids.min() >= 100 and ids.max() < 200


@pytest.mark.parametrize("power", [0, 4])
def test_the_cheap_draw_has_the_distribution_of_numpys(power):
    """How often each of 12 points is among 6, and which comes first, in 8000 batches of both."""
    weights = np.arange(1, 13.0) ** power
    weights /= weights.sum()
    ours = WeightedChoice(weights).batches(np.random.RandomState(0), 8000, 6)
    random = np.random.RandomState(1)
    numpys = np.stack([WeightedChoice(weights).draw(random, 6) for _ in range(8000)])
    for first, second in ((ours, numpys), (ours[:, :1], numpys[:, :1]),
                          (ours[:, -1:], numpys[:, -1:])):
        shares = [np.bincount(rows.ravel(), minlength=12) / 8000 for rows in (first, second)]
        assert np.abs(shares[0] - shares[1]).max() < 0.02  # standard deviation below 0.006


def test_uniform_batches_are_uniform():
    ids = draws.uniform_batches(np.random.RandomState(0), 20, 20000, 10)
    shares = np.bincount(ids.ravel(), minlength=20) / 20000
    assert np.abs(shares - 0.5).max() < 0.02
    pairs = np.mean((ids == 3).any(axis=1) & (ids == 7).any(axis=1))
    assert pairs == pytest.approx(9 / 38, abs=0.02)


@pytest.mark.parametrize("make", [reference, lambda weights: seeded(weights)])
def test_fewer_points_than_a_batch_are_drawn_with_replacement(make):
    weights = np.zeros(COUNT)
    weights[[3, 5, 8]] = 0.25, 0.25, 0.5
    draw = make(weights)
    assert draw.choice.repeats(64) and not draw.choice.repeats(3)
    ids = draw.batches(0, 0, 50, 50)[0]
    assert ids.shape == (50, 64) and set(ids.ravel()) == {3, 5, 8}
    assert np.mean(ids == 8) == pytest.approx(0.5, abs=0.05)
    assert sorted(draw.picture_ids(1, 320)) == [3, 5, 8]


def test_noise_is_what_was_asked_for():
    normal = draws.noise(np.random.RandomState(0), 5000, 3, "normal")
    uniform = draws.noise(np.random.RandomState(0), 5000, 3, "uniform")
    assert normal.dtype == uniform.dtype == np.float32 and normal.shape == (5000, 3)
    assert normal.std() == pytest.approx(1, abs=0.05)
    assert uniform.min() >= -1 and uniform.max() < 1 and uniform.std() == pytest.approx(
        3 ** -0.5, abs=0.02)


def test_a_mixture_follows_its_weights():
    mixture = Mixture()
    for number, beta in enumerate((1.0, 0.5, 0.2)):
        mixture.add(np.full((10, 2, 1, 1), number, np.float32), beta)
    np.testing.assert_allclose(mixture.weights, (0.4, 0.4, 0.2))
    sample = mixture.sample(20000, np.random.RandomState(0))
    assert sample.shape == (20000, 2, 1, 1) and sample.dtype == np.float32
    shares = np.bincount(sample[:, 0, 0, 0].astype(int)) / 20000
    np.testing.assert_allclose(shares, mixture.weights, atol=0.02)
