"""The counter-based generator."""

import json

import numpy as np
import pytest

from xpnn import random
from xpnn.errors import SettingError
from xpnn.random import Generator, as_generator

# Statistics of a fixed seed, held to five standard deviations of what they estimate.
DEVIATIONS = 5.0
MANY = 100_000

DRAWS = {
    "uniform": lambda rng, **to: rng.uniform((3, 5), **to),
    "uniform64": lambda rng, **to: rng.uniform((3, 5), -2.0, 3.0, dtype="float64", **to),
    "integers": lambda rng, **to: rng.integers(-5, 5, (3, 5), **to),
    "permutation": lambda rng, **to: rng.permutation(15, **to),
    "mask": lambda rng, **to: rng.dropout_mask((3, 5), 0.25, **to),
    "normal": lambda rng, **to: rng.normal((3, 5), **to),
}
EXACT = [name for name in DRAWS if name != "normal"]
ANY_DRAW = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def numpy_philox(seed, stream, counter, n):
    """The definition: NumPy's own bits for key (seed, stream) after `counter` blocks."""
    words = [np.array(value, dtype=np.uint64) for value in ([seed, stream], [counter, 0, 0, 0])]
    return np.random.Philox(key=words[0], counter=words[1]).random_raw(n)


@pytest.mark.parametrize(
    ("seed", "stream", "counter", "bits"),
    [
        # what NumPy 2.4 gives: np.random.Philox(key=[seed, stream], counter=[counter, 0, 0, 0]).random_raw(5)
        (0, 0, 0, [0x02F4BA6408E4D89B, 0x3DD62B0B9CA8C5B2, 0x1C8667A55D902E79, 0x907D7A052FD5B4DC]),
        (1, 2, 3, [0xA71BF2A8F650DEEA, 0x1C5568CC58D1E91B, 0xBB7ADF525608F490, 0xA232A073268D87CF, 0x202D2686B8D44780]),
        (2**64 - 1, 2**64 - 1, 2**64 - 2, [0xEFEA0F0CF2A64AB3, 0x1FFD51B0734E113D, 0x2741DD2D7AEA1563]),
    ],
)
def test_the_bits_are_those_of_numpys_philox(seed, stream, counter, bits):
    assert random.philox(seed, stream, counter, len(bits)).tolist() == bits
    assert numpy_philox(seed, stream, counter, len(bits)).tolist() == bits


def test_uniform_float64_is_the_upper_53_bits(kind):
    received = Generator(1, 2, 3).uniform((5,), dtype="float64", backend=kind.backend)
    kind.check(received, "float64", (5,))
    kind.assert_close(received, [(int(bits) >> 11) * 2.0**-53 for bits in numpy_philox(1, 2, 3, 5)])


def test_uniform_float32_is_the_upper_24_bits_of_each_half(kind):
    received = Generator(1, 2, 3).uniform((4,), backend=kind.backend)
    kind.check(received, "float32", (4,))
    halves = [half for bits in numpy_philox(1, 2, 3, 2) for half in (int(bits) % 2**32, int(bits) >> 32)]
    kind.assert_close(received, [(half >> 8) * 2.0**-24 for half in halves])


@pytest.mark.parametrize("name", EXACT)
def test_every_backend_draws_the_same_numbers_bit_for_bit(kind, name):
    expected = DRAWS[name](Generator(7), backend="numpy")
    received = DRAWS[name](Generator(7), backend=kind.backend)
    kind.check(received, expected.dtype, expected.shape)
    kind.assert_close(received, expected)


def test_every_backend_draws_the_same_normals_to_rounding(kind, dtype):
    expected = Generator(7).normal((100,), dtype=dtype, backend="numpy")
    received = Generator(7).normal((100,), dtype=dtype, backend=kind.backend)
    kind.check(received, dtype, (100,))
    kind.assert_close(received, expected, rtol=0, atol=8 * np.finfo(dtype).eps)  # of numbers below 8


@ANY_DRAW
def test_every_backend_leaves_the_generator_in_the_same_state(kind, draw):
    here, there = Generator(7), Generator(7)
    draw(here, backend="numpy")
    draw(there, backend=kind.backend)
    assert here.state == there.state


@ANY_DRAW
def test_a_draw_goes_on_where_the_last_one_ended(draw):
    rng = Generator(7)
    first, second = draw(rng), draw(rng)
    assert (first != second).any()


@ANY_DRAW
def test_state_is_three_numbers_from_which_the_stream_resumes(draw):
    rng = Generator(7, stream=3)
    rng.uniform((10,))
    state = rng.state
    assert state == (7, 3, 2)  # ten 32-bit numbers are five of 64 bits, which take two blocks of four
    expected = draw(rng)
    other = Generator()
    other.state = state
    np.testing.assert_array_equal(draw(other), expected)


def test_state_survives_json():
    rng = Generator(2**64 - 1, 5, 17)
    other = Generator()
    other.state = json.loads(json.dumps(rng.state))
    assert other.state == (2**64 - 1, 5, 17)


@ANY_DRAW
def test_another_seed_or_stream_gives_other_numbers(draw):
    draws = [draw(Generator(seed, stream)) for seed, stream in ((0, 0), (1, 0), (0, 1))]
    assert (draws[0] != draws[1]).any()
    assert (draws[0] != draws[2]).any()
    assert (draws[1] != draws[2]).any()


def test_streams_of_a_seed_are_uncorrelated():
    draws = np.stack([Generator(3, stream).normal(MANY, dtype="float64") for stream in range(4)])
    correlations = np.corrcoef(draws)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < DEVIATIONS / MANY**0.5


def test_spawn_starts_another_stream_of_the_same_seed():
    rng = Generator(7)
    rng.uniform(10)
    assert rng.spawn(5).state == (7, 5, 0)
    assert rng.state == (7, 0, 2)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 5.0)])
def test_uniforms_are_spread_evenly_from_low_to_below_high(low, high, dtype):
    x = Generator(0).uniform(MANY, low, high, dtype=dtype).astype("float64")
    assert x.min() >= low
    assert x.max() < high
    width = high - low
    assert abs(x.mean() - (low + high) / 2) < DEVIATIONS * width / (12 * MANY) ** 0.5
    tenths, _ = np.histogram(x, 10, (low, high))
    assert np.abs(tenths - MANY / 10).max() < DEVIATIONS * (MANY * 0.1 * 0.9) ** 0.5


def test_the_largest_bits_give_a_uniform_below_high_where_the_dtype_can_tell_them_apart(dtype, monkeypatch):
    monkeypatch.setattr(random, "philox", lambda seed, stream, counter, n: np.full(n, 2**64 - 1, dtype="uint64"))
    assert Generator(0).uniform(2, 0.0, 1.0, dtype=dtype).max() < 1.0
    assert Generator(0).uniform(2, -3.0, 0.0, dtype=dtype).max() < 0.0


def test_numpy_scalars_as_bounds_do_not_promote_float32(kind):
    received = Generator(0).uniform((3,), np.float64(-1.0), np.float64(1.0), backend=kind.backend)
    kind.check(received, "float32")


def test_normals_have_the_moments_of_the_normal_distribution(dtype):
    z = Generator(0).normal(MANY, dtype=dtype).astype("float64")
    # the k-th moment of N(0, 1) and the variance of its estimate from one number
    for k, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**k) - moment) < DEVIATIONS * (variance / MANY) ** 0.5


def test_the_two_normals_of_a_pair_are_uncorrelated():
    z = Generator(0).normal(MANY, dtype="float64")
    assert abs(np.mean(z[: MANY // 2] * z[MANY // 2 :])) < DEVIATIONS / (MANY / 2) ** 0.5


def test_mean_and_std_shift_and_scale_normals(kind, dtype):
    z = Generator(7).normal((9,), dtype="float64")
    received = Generator(7).normal((9,), mean=3.0, std=np.float64(0.5), dtype=dtype, backend=kind.backend)
    kind.check(received, dtype)
    kind.assert_close(received, 3.0 + 0.5 * z, atol=4 * np.finfo(dtype).eps)  # of numbers below 8


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_normals_of_the_most_extreme_bits_are_finite(bits, monkeypatch):
    monkeypatch.setattr(random, "philox", lambda seed, stream, counter, n: np.full(n, bits, dtype="uint64"))
    assert np.isfinite(Generator(0).normal(4)).all()


@pytest.mark.parametrize(("low", "high"), [(0, 3), (-5, -1), (-1, 2)])
def test_integers_cover_their_range_evenly(low, high):
    x = Generator(0).integers(low, high, MANY)
    values, counts = np.unique(x, return_counts=True)
    assert values.tolist() == list(range(low, high))
    share = 1 / (high - low)
    assert np.abs(counts - MANY * share).max() < DEVIATIONS * (MANY * share * (1 - share)) ** 0.5


def test_integers_of_one_value():
    assert Generator(0).integers(-7, -6, 10).tolist() == [-7] * 10


@pytest.mark.parametrize(("bits", "expected"), [(0, -3), (2**64 - 1, 2**53 - 5)])
def test_the_smallest_and_largest_integer_of_a_wide_range(bits, expected, monkeypatch):
    monkeypatch.setattr(random, "philox", lambda seed, stream, counter, n: np.full(n, bits, dtype="uint64"))
    assert int(Generator(0).integers(-3, 2**53 - 4)) == expected


@pytest.mark.parametrize(
    "draw", [Generator.uniform, Generator.normal, lambda rng, shape, **to: rng.dropout_mask(shape, 0.5, **to)]
)
def test_numbers_with_fractions_are_drawn_in_no_integer_type(kind, draw):
    generator = Generator(0)
    with pytest.raises(SettingError, match="random: expected a floating-point dtype; received int64"):
        draw(generator, 3, dtype="int64", backend=kind.backend)
    assert generator.state == (0, 0, 0)


@pytest.mark.parametrize(("low", "high"), [(3, 3), (4, 3), (0, 2**53)])
def test_an_empty_or_too_wide_range_of_integers_is_refused(low, high):
    with pytest.raises(SettingError, match=f"random.integers: expected low < high .*; received {low} and {high}"):
        Generator(0).integers(low, high)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_holds_each_number_once(kind, n):
    received = Generator(0).permutation(n, backend=kind.backend)
    kind.check(received, "int64", (n,))
    assert sorted(kind.to_numpy(received).tolist()) == list(range(n))


def test_a_permutation_is_in_random_order():
    order = Generator(0).permutation(1000)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < DEVIATIONS / 1000**0.5


def test_every_permutation_of_three_comes_up_equally_often():
    rng, n = Generator(0), 3000
    orders = [tuple(rng.permutation(3).tolist()) for _ in range(n)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert max(abs(count - n / 6) for count in counts) < DEVIATIONS * (n * (1 / 6) * (5 / 6)) ** 0.5


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.99])
def test_a_dropout_mask_has_a_mean_of_one(kind, dtype, p):
    received = Generator(0).dropout_mask((MANY,), p, dtype, kind.backend)
    kind.check(received, dtype, (MANY,))
    mask = kind.to_numpy(received).astype("float64")
    assert set(np.unique(mask)) <= {0.0, float(np.dtype(dtype).type(1 / (1 - p)))}
    assert abs(np.mean(mask) - 1.0) <= DEVIATIONS * (p / (1 - p) / MANY) ** 0.5 + np.finfo(dtype).eps


def test_a_numpy_scalar_p_does_not_promote_the_mask(kind):
    kind.check(Generator(0).dropout_mask((3,), np.float64(0.5), "float32", kind.backend), "float32")


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3, 4)])
def test_any_shape(kind, shape):
    rng = Generator(0)
    kind.check(rng.uniform(shape, backend=kind.backend), "float32", shape)
    kind.check(rng.normal(shape, backend=kind.backend), "float32", shape)
    kind.check(rng.integers(0, 9, shape, backend=kind.backend), "int64", shape)
    kind.check(rng.dropout_mask(shape, 0.5, backend=kind.backend), "float32", shape)


@pytest.mark.parametrize("size", [3, np.int64(3)])
def test_a_number_is_a_shape_of_one_dimension(size):
    assert Generator(0).uniform(size).shape == (3,)


@pytest.mark.parametrize("state", [(-1, 0, 0), (0, 2**64, 0), (0, 0), (0, 0, 0, 0), (0.5, 0, 0)])
def test_an_impossible_state_is_refused(state):
    with pytest.raises(SettingError, match=r"expected seed, stream and counter from 0 to 2\*\*64 - 1"):
        Generator().state = state


def test_a_seed_that_is_no_number_is_refused():
    with pytest.raises(SettingError, match="expected seed"):
        Generator("one")


def test_as_generator_returns_a_generator_as_it_is():
    rng = Generator(5)
    assert as_generator(rng) is rng


def test_as_generator_takes_a_seed_and_a_stream():
    assert as_generator(5, stream=2).state == (5, 2, 0)


def test_as_generator_of_nothing_follows_numpys_global_state():
    np.random.seed(3)
    first, second = as_generator(None).state, as_generator(None).state
    np.random.seed(3)
    assert as_generator(None).state == first
    assert first != second


def test_the_repr_makes_the_generator_again():
    rng = Generator(1, 2, 3)
    assert eval(repr(rng)).state == rng.state
