"""Augmentation against plain loops over NumPy images."""

import math

import numpy as np
import pytest

from oracles import EPS
from xpnn import backend
from xpnn.data import augmentation
from xpnn.data.augmentation import (
    AlternatingFlip,
    Batch,
    ColorJitter,
    Compose,
    Cutout,
    Mixup,
    Normalize,
    RandomCrop,
    RandomFlip,
    as_compose,
)
from xpnn.errors import SettingError
from xpnn.random import FLIPS, Generator

N, C, H, W = SHAPE = (7, 3, 6, 5)


def images(dtype="uint8"):
    x = np.random.default_rng(0).integers(0, 256, SHAPE)
    return x.astype(dtype) if dtype == "uint8" else (x / 256).astype(dtype)


def batch_of(kind, seed=3, **changes):
    settings = {
        "y": kind(np.arange(N) % 4),
        "indices": kind(np.arange(N) * 3),
        "rng": Generator(seed, 5),
        "num_examples": 20,
        "num_classes": 4,
    }
    return Batch(**(settings | changes))


TRANSFORMS = {
    "normalize": Normalize((120, 130.5, 110), 60),
    "crop-reflect": RandomCrop(2),
    "crop-zero": RandomCrop(3, mode="zero"),
    "flip": RandomFlip(),
    "alternating-flip": AlternatingFlip(),
    "cutout": Cutout(3, fill=(1, 2, 3)),
    "jitter": ColorJitter(0.4, 0.3),
    "mixup": Mixup(0.4),
    "compose": Compose([RandomFlip(), RandomCrop(1), Cutout(2)]),
}


@pytest.fixture(params=TRANSFORMS.values(), ids=TRANSFORMS)
def transform(request):
    return request.param


def test_a_seed_gives_the_same_images_on_every_kind(transform, kind):
    out = kind.check(transform(kind(images()), batch_of(kind)))
    expected = transform(images(), batch_of(np.array))
    np.testing.assert_array_equal(kind.to_numpy(out), expected)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "normalize"])
def test_another_seed_gives_others(name, kind):
    first, second = (kind.to_numpy(TRANSFORMS[name](kind(images()), batch_of(kind, seed))) for seed in (3, 4))
    assert (first != second).any()


def test_floats_keep_kind_device_dtype_and_shape_and_are_not_modified(transform, kind, dtype):
    x = kind.writable(images(), dtype)
    kind.check(transform(x, batch_of(kind)), dtype, SHAPE)
    kind.assert_close(x, images())


@pytest.mark.parametrize("name", ["crop-reflect", "crop-zero", "flip", "alternating-flip", "cutout", "jitter"])
def test_bytes_stay_bytes(name, kind):
    kind.check(TRANSFORMS[name](kind(images()), batch_of(kind)), "uint8", SHAPE)


def test_images_need_not_be_contiguous(transform, kind):
    x = kind.xp.permute_dims(kind(images().transpose(0, 2, 3, 1)), (0, 3, 1, 2))
    expected = kind.to_numpy(transform(kind(images()), batch_of(kind)))
    np.testing.assert_array_equal(kind.to_numpy(transform(x, batch_of(kind))), expected)


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize("padding", [1, 2, 4])
def test_a_crop_is_a_window_of_the_padded_image(kind, mode, padding):
    out = RandomCrop(padding, mode=mode)(kind(images()), batch_of(kind))
    down, right = Generator(3, 5).integers(-padding, padding + 1, (2, N))
    edges = ((0, 0), (padding, padding), (padding, padding))
    for n, image in enumerate(images()):
        padded = np.pad(image, edges, mode="reflect" if mode == "reflect" else "constant")
        top, left = padding + down[n], padding + right[n]
        np.testing.assert_array_equal(kind.to_numpy(out)[n], padded[:, top : top + H, left : left + W])


def test_crops_reach_every_shift():
    x = np.tile(images()[:1], (400, 1, 1, 1))
    out = RandomCrop(2)(x, batch_of(np.array))
    assert len({image.tobytes() for image in out}) == 25


def test_a_flip_exchanges_left_and_right(kind):
    out = kind.to_numpy(RandomFlip()(kind(images()), batch_of(kind)))
    coins = Generator(3, 5).integers(0, 2, N)
    assert 0 < coins.sum() < N
    for n, image in enumerate(images()):
        np.testing.assert_array_equal(out[n], image[:, :, ::-1] if coins[n] else image)


def test_alternating_flips_are_drawn_once_by_place_in_the_data_set(kind):
    coins = Generator(3, FLIPS).integers(0, 2, 20)
    for epoch in (0, 1, 2, 7):
        batch = batch_of(kind, epoch=epoch)
        batch.rng.counter = 100 * epoch
        out = kind.to_numpy(AlternatingFlip()(kind(images()), batch))
        for n, image in enumerate(images()):
            flipped = coins[3 * n] != epoch % 2
            np.testing.assert_array_equal(out[n], image[:, :, ::-1] if flipped else image)


def test_alternating_flips_are_drawn_again_for_another_seed_size_or_backend_alone(kind, monkeypatch):
    drawn = []
    integers = Generator.integers
    monkeypatch.setattr(Generator, "integers", lambda self, *args: drawn.append(args[2]) or integers(self, *args))
    flip, x = AlternatingFlip(), kind(images())
    for epoch in (0, 0, 1):
        flip(x, batch_of(kind, epoch=epoch))
    assert drawn == [20]
    for changes in ({"seed": 4}, {"num_examples": 30}, {}):
        batch = batch_of(kind, **changes)
        out, expected = flip(x, batch), AlternatingFlip()(x, batch)
        np.testing.assert_array_equal(kind.to_numpy(out), kind.to_numpy(expected))
    assert drawn == [20, *[20] * 2, *[30] * 2, 20]  # the last for the transform that is new
    flip(images(), batch_of(np.array))
    assert len(drawn) == (6 if kind.backend is backend.get("numpy") else 7)


def test_kept_flips_leave_a_transform_what_it_was():
    flip = AlternatingFlip()
    flip(images(), batch_of(np.array))
    assert flip == AlternatingFlip()
    assert hash(flip) == hash(AlternatingFlip())
    assert repr(flip) == "AlternatingFlip()"


def test_in_two_successive_epochs_each_image_is_seen_both_ways(kind):
    x, other = kind(images()), np.random.default_rng(1).permutation(N)
    first = kind.to_numpy(AlternatingFlip()(x, batch_of(kind, epoch=4)))
    batch = batch_of(kind, epoch=5, indices=kind(np.arange(N)[other] * 3))
    second = kind.to_numpy(AlternatingFlip()(kind(images()[other]), batch))
    np.testing.assert_array_equal(second, first[other][:, :, :, ::-1])


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_cutout_covers_a_square_around_its_center(kind, size):
    out = kind.to_numpy(Cutout(size, fill=(7, 8, 9))(kind(images()), batch_of(kind)))
    rng = Generator(3, 5)
    rows, columns = rng.integers(0, H, N), rng.integers(0, W, N)
    for n, image in enumerate(images()):
        expected = image.copy()
        top, left = rows[n] - size // 2, columns[n] - size // 2
        window = slice(max(top, 0), top + size), slice(max(left, 0), left + size)
        expected[:, *window] = np.array([7, 8, 9])[:, None, None]
        np.testing.assert_array_equal(out[n], expected)


def test_jitter_scales_the_image_and_its_distance_from_its_mean(kind):
    x = images("float64")
    out = kind.to_numpy(ColorJitter(0.4, 0.3)(kind(x), batch_of(kind)))
    draws = Generator(3, 5).uniform((2, N), -1, 1, "float64")
    for n, image in enumerate(x):
        brighter = (1 + 0.4 * draws[0, n]) * image
        contrast = 1 + 0.3 * draws[1, n]
        expected = contrast * (brighter - brighter.mean()) + brighter.mean()
        # a sum of 90 numbers below 2, and a few roundings more
        np.testing.assert_allclose(out[n], expected, rtol=0, atol=100 * EPS["float64"])


def test_jitter_of_bytes_is_that_of_floats_rounded_and_clipped(kind):
    out = kind.to_numpy(ColorJitter(1.0, 1.0)(kind(images()), batch_of(kind))).astype(int)
    expected = ColorJitter(1.0, 1.0)(images().astype("float32"), batch_of(np.array))
    assert expected.max() > 256
    # half a unit for the rounding, and a few roundings of numbers up to 1000 in float32
    np.testing.assert_allclose(out, np.clip(expected, 0, 255), rtol=0, atol=0.5 + 1e3 * 10 * EPS["float32"])


def test_no_jitter_changes_nothing(kind):
    np.testing.assert_array_equal(kind.to_numpy(ColorJitter()(kind(images()), batch_of(kind))), images())


def test_normalize_makes_floats_of_bytes(kind, dtype):
    out = Normalize(mean=[125.3, 123.0, 113.9], std=(63.0, 62.1, 66.7))(kind(images()), batch_of(kind, dtype=dtype))
    mean, std = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
    expected = (images() - mean[:, None, None]) / std[:, None, None]
    kind.check(out, dtype)
    kind.assert_close(out, expected, atol=256 / 60 * 2 * EPS[dtype])  # of numbers up to 256, over 60


def test_mixup_blends_images_and_labels_alike(kind):
    batch = batch_of(kind)
    out = kind.to_numpy(Mixup(0.4)(kind(images()), batch))
    rng = Generator(3, 5)
    weight = augmentation.beta(0.4, rng)
    others, y = rng.permutation(N), np.eye(4)[np.arange(N) % 4]
    x = images().astype(float)
    # three roundings of numbers up to 256, or up to 1
    np.testing.assert_allclose(out, weight * x + (1 - weight) * x[others], rtol=0, atol=3 * 256 * EPS["float32"])
    kind.check(batch.y, "float32", (N, 4))
    kind.assert_close(batch.y, weight * y + (1 - weight) * y[others], atol=3 * EPS["float32"])
    np.testing.assert_allclose(kind.to_numpy(batch.y).sum(axis=1), 1.0, rtol=0, atol=3 * EPS["float32"])


def test_mixup_takes_soft_labels_too(kind):
    batch = batch_of(kind, dtype="float64")
    Compose([Mixup(0.4), Mixup(1.0)])(kind(images()), batch)
    kind.check(batch.y, "float64", (N, 4))
    np.testing.assert_allclose(kind.to_numpy(batch.y).sum(axis=1), 1.0, rtol=0, atol=6 * EPS["float64"])


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 4.0, 100.0])
def test_beta_has_the_moments_of_its_distribution(alpha):
    rng = Generator(11)
    draws = np.array([augmentation.beta(alpha, rng) for _ in range(20_000)])
    assert ((draws >= 0) & (draws <= 1)).all()
    variance = 0.25 / (2 * alpha + 1)
    kurtosis = 3 * (2 * alpha + 1) / (2 * alpha + 3)  # the fourth central moment over the variance squared
    # five standard errors of each mean
    assert abs(draws.mean() - 0.5) < 5 * math.sqrt(variance / 20_000)
    assert abs(draws.var() - variance) < 5 * variance * math.sqrt((kurtosis - 1) / 20_000) + 1e-5


def test_beta_1_is_uniform():
    rng = Generator(12)
    draws = np.sort([augmentation.beta(1.0, rng) for _ in range(10_000)])
    # Kolmogorov and Smirnov's distance at the level of one in a million
    assert np.abs(draws - np.arange(10_000) / 10_000).max() < 2.7 / 100


def test_a_composition_is_one_after_the_other(kind):
    together = batch_of(kind)
    out = Compose([RandomFlip(), RandomCrop(2), Normalize(1, 2)])(kind(images()), together)
    apart = batch_of(kind)
    expected = Normalize(1, 2)(RandomCrop(2)(RandomFlip()(kind(images()), apart), apart), apart)
    np.testing.assert_array_equal(kind.to_numpy(out), kind.to_numpy(expected))
    assert together.rng.state == apart.rng.state


def test_a_subclass_of_normalize_says_itself_what_it_does(kind):
    class Halved(Normalize):
        def evaluate(self, x, dtype="float32"):
            return super().evaluate(x, dtype) / 2

    data, batch = kind(np.tile(images(), (2, 1, 1, 1))), batch_of(kind)
    received = Compose([Halved(1, 2)])(data, batch, kind(np.arange(N)))
    kind.assert_close(received, (images() - 1.0) / 4)


CHAINS = [
    [RandomCrop(2), AlternatingFlip()],
    [RandomFlip(), RandomCrop(1), RandomFlip(), RandomCrop(2)],
    [AlternatingFlip(), RandomCrop(1, "zero"), RandomFlip(), Cutout(2), lambda x, batch: x ^ 1, RandomCrop(2)],
    [RandomCrop(2), RandomFlip(), Normalize(100, (50, 60, 70)), RandomCrop(1)],
    [],
]


@pytest.mark.parametrize("chain", CHAINS)
def test_transforms_that_move_pixels_are_one_pass_with_the_results_of_each_by_itself(kind, chain):
    x, together, one_by_one = kind(images()), batch_of(kind), batch_of(kind)
    expected = x
    for transform in chain:
        expected = transform(expected, one_by_one)
    np.testing.assert_array_equal(kind.to_numpy(Compose(chain)(x, together)), kind.to_numpy(expected))
    assert together.rng.state == one_by_one.rng.state


@pytest.mark.parametrize("chain", CHAINS)
def test_a_batch_may_be_gathered_from_the_data_set_on_the_way(kind, chain):
    data, indices = np.random.default_rng(1).integers(0, 256, (20, 3, 6, 5), dtype="uint8"), np.arange(N) * 2
    expected = Compose(chain)(kind(data[indices]), batch_of(kind))
    received = Compose(chain)(kind(data), batch_of(kind), kind(indices))
    np.testing.assert_array_equal(kind.to_numpy(received), kind.to_numpy(expected))


def test_only_normalize_applies_in_evaluation(kind):
    compose = as_compose([RandomFlip(), Compose([Normalize(1, 2)]), Mixup(1.0), Cutout(1), lambda x, batch: 0 * x])
    kind.assert_close(compose.evaluate(kind(images()), "float64"), (images() - 1.0) / 2)


def test_what_is_no_sequence_becomes_one(kind):
    assert as_compose(None).transforms == ()
    assert as_compose(RandomFlip()).transforms == (RandomFlip(),)
    assert as_compose(as_compose([RandomFlip()])).transforms == (RandomFlip(),)


def test_a_description_says_all_that_decides():
    compose = as_compose([RandomCrop(np.int64(2)), Cutout(3, np.array([0.5, 1, 2])), Compose([Mixup(np.float64(0.5))])])
    expected = "RandomCrop(padding=2, mode='reflect'), Cutout(size=3, fill=(0.5, 1.0, 2.0)), Mixup(alpha=0.5)"
    assert repr(compose) == f"[{expected}]"
    assert repr(as_compose([batch_of, math.sqrt])) == "[batch_of, sqrt]"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "RandomCrop: expected padding to be a whole number of at least 1; received 0"),
        (lambda: RandomCrop(1.5), "RandomCrop: expected padding to be a whole number of at least 1; received 1.5"),
        (lambda: RandomCrop(2, "wrap"), "RandomCrop: expected mode to be one of reflect, zero; received 'wrap'"),
        (lambda: Cutout(-1), "Cutout: expected size to be a whole number of at least 1; received -1"),
        (lambda: Cutout(2, "black"), "Cutout: expected fill to be a number; received 'black'"),
        (lambda: Normalize(0, 0), "Normalize: expected std above 0; received 0"),
        (lambda: Normalize((1, math.nan), 1), "Normalize: expected each mean to be a number; received nan"),
        (lambda: ColorJitter(contrast=1.5), "ColorJitter: expected contrast from 0 to 1; received 1.5"),
        (lambda: Mixup(0), "Mixup: expected alpha to be a number above 0; received 0"),
        (lambda: Mixup("much"), "Mixup: expected alpha to be a number; received 'much'"),
        (lambda: as_compose("flip"), r"Compose: expected transforms, or functions .*; received 'f'"),
        (lambda: as_compose(5), r"Compose: expected transforms, or functions .*; received 5"),
    ],
)
def test_an_impossible_setting_is_named(make, message):
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (RandomCrop(5), "RandomCrop: expected images of more than 5 rows and columns to reflect; received 6 x 5"),
        (Normalize((1, 2), 1), "expected 3 numbers as mean, one for each channel of images .7, 3, 6, 5.; received 2"),
        (Cutout(2, fill=(1, 2)), "Cutout: expected 3 numbers as fill, one for each channel"),
        (Cutout(2, fill=0.5), "Cutout: expected fill to be whole and from 0 to 255, as the images are uint8"),
        (Cutout(2, fill=256), "received 256"),
    ],
)
def test_images_that_do_not_fit_are_refused(transform, message, kind):
    with pytest.raises(ValueError, match=message):
        transform(kind(images()), batch_of(kind))


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in ("mixup", "compose")])
def test_what_are_no_images_is_refused(name, kind):
    where = type(TRANSFORMS[name]).__name__
    with pytest.raises(ValueError, match=rf"{where}: expected images x \(N, C, H, W\); received shape \(7, 4\)"):
        TRANSFORMS[name](kind(np.zeros((7, 4))), batch_of(kind))
    with pytest.raises(TypeError, match=rf"{where}: expected images x \(N, C, H, W\); received list"):
        TRANSFORMS[name]([1, 2], batch_of(kind))
    with pytest.raises(TypeError, match=rf"{where}: expected images of real numbers; received complex128"):
        TRANSFORMS[name](kind(np.zeros(SHAPE), "complex128"), batch_of(kind))


def test_mixup_needs_the_number_of_classes(kind):
    with pytest.raises(SettingError, match="Mixup: expected a batch that knows the number of classes"):
        Mixup(1.0)(kind(images()), batch_of(kind, num_classes=None))


def test_alternating_flips_need_the_size_of_the_data_set(kind):
    with pytest.raises(SettingError, match="AlternatingFlip: expected a batch that knows the size of its data set"):
        AlternatingFlip()(kind(images()), batch_of(kind, num_examples=0))


def test_nothing_is_read_from_the_device(transform, monkeypatch):
    strict = backend.get("array-api-strict:device1")
    if not strict.is_available():
        pytest.skip(strict.reason)
    x, batch = strict.asarray(images()), batch_of(strict.asarray)
    for name in ("__float__", "__int__", "__bool__", "__index__", "to_device"):
        monkeypatch.setattr(type(x), name, lambda *args: pytest.fail("a value was read from the device"))
    transform(x, batch)


def test_a_call_of_a_subclass_is_its_own(kind):
    class Twice(RandomFlip):
        def __call__(self, x, batch):
            return super().__call__(x, batch) + super().__call__(x, batch)

    x = kind(np.ones((3, 1, 2, 2)), "float32")
    batch = Batch(y=None, indices=kind(np.arange(3)), rng=Generator(0), num_examples=3)
    kind.assert_close(Compose([Twice()])(x, batch, batch.indices), np.full((3, 1, 2, 2), 2.0))
