"""The digits that ship with xpnn, and the Dataset that every loader returns."""

import tracemalloc

import numpy as np
import pytest

from xpnn import data
from xpnn.data import Dataset, load_digits
from xpnn.errors import DataError


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def traced_peak(work):
    """The most bytes that `work` had at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def small(**changes):
    fields = {
        "name": "small",
        "X_train": np.zeros((4, 1, 2, 3), np.uint8),
        "y_train": np.array([0, 1, 1, 0]),
        "X_val": np.zeros((2, 1, 2, 3), np.uint8),
        "y_val": np.array([1, 0]),
        "X_test": np.zeros((1, 1, 2, 3), np.uint8),
        "y_test": np.array([1]),
        "class_names": ("no", "yes"),
    }
    return Dataset(**(fields | changes))


def test_digits_are_split_into_1297_250_and_250_images_of_8_by_8(digits):
    assert digits.X_train.shape == (1297, 1, 8, 8)
    assert digits.X_val.shape == (250, 1, 8, 8)
    assert digits.X_test.shape == (250, 1, 8, 8)
    assert digits.input_shape == (1, 8, 8)


def test_digits_are_uint8_with_int64_labels(digits):
    for X, y in (
        (digits.X_train, digits.y_train),
        (digits.X_val, digits.y_val),
        (digits.X_test, digits.y_test),
    ):
        assert X.dtype == np.uint8
        assert y.dtype == np.int64
        assert X.min() == 0
        assert X.max() == 16


def test_digits_have_the_counts_per_class_of_the_original(digits):
    labels = np.concatenate([digits.y_train, digits.y_val, digits.y_test])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert digits.num_classes == 10


def test_first_training_digit_is_a_known_two(digits):
    assert digits.y_train[0] == 2
    assert digits.X_train[0, 0].tolist() == [
        [0, 0, 13, 16, 13, 1, 0, 0],
        [0, 6, 16, 10, 15, 5, 0, 0],
        [0, 3, 15, 0, 11, 9, 0, 0],
        [0, 0, 4, 0, 12, 8, 0, 0],
        [0, 0, 0, 0, 15, 8, 0, 0],
        [0, 0, 0, 8, 16, 4, 0, 0],
        [0, 0, 5, 16, 16, 13, 10, 1],
        [0, 0, 13, 16, 16, 16, 16, 9],
    ]


def test_first_test_digit_has_known_row_sums(digits):
    assert digits.X_test[0, 0].sum(axis=1).tolist() == [29, 57, 45, 59, 47, 34, 45, 27]


def test_the_split_is_fixed(digits):
    assert digits.y_train[:10].tolist() == [2, 4, 5, 4, 8, 2, 0, 6, 3, 3]
    assert digits.y_val[:10].tolist() == [2, 5, 1, 0, 3, 8, 2, 3, 3, 1]
    assert digits.y_test[:10].tolist() == [8, 8, 6, 6, 5, 8, 3, 3, 7, 6]


def test_no_digit_is_in_two_splits(digits):
    train, val, test = ({image.tobytes() for image in X} for X in (digits.X_train, digits.X_val, digits.X_test))
    assert not train & val
    assert not train & test
    assert not val & test


def test_load_finds_digits_by_name(digits):
    assert np.array_equal(data.load("digits").X_train, digits.X_train)


def test_load_names_the_data_sets_when_the_name_is_unknown():
    with pytest.raises(DataError, match="expected a data set out of cifar10, digits; received 'mnist'"):
        data.load("mnist")


def colorful(n=700):
    """Noise, each channel with a mean and a spread of its own, in more than one piece."""
    rng = np.random.default_rng(0)
    X = rng.normal([[[[60]], [[120]], [[250]]]], [[[[5]], [[20]], [[40]]]], (n, 3, 20, 32))
    return small(X_train=X.round().clip(0, 255).astype(np.uint8), y_train=np.zeros(n, np.int64))


def test_the_mean_image_is_exact():
    images = colorful()
    assert np.array_equal(images.mean_image, images.X_train.astype(np.int64).sum(axis=0) / 700)


def test_the_pixel_std_is_that_from_the_mean_image():
    x = colorful().X_train.astype(np.float64)
    expected = np.sqrt(np.square(x - x.mean(axis=0)).mean())
    # E x² - (E x)², near 30,000 less 29,000, each with a few roundings
    assert colorful().pixel_std == pytest.approx(expected, rel=1e-13)


def test_channels_have_a_mean_and_a_standard_deviation():
    images = colorful()
    x = images.X_train.astype(np.float64)
    np.testing.assert_allclose(images.channel_mean, x.mean(axis=(0, 2, 3)), rtol=1e-13)  # a sum of 448,000 numbers
    # E x² - (E x)², with a variance of a hundredth of them at least
    np.testing.assert_allclose(images.channel_std, x.std(axis=(0, 2, 3)), rtol=1e-12)


def test_pixels_that_do_not_differ_have_a_standard_deviation_of_one():
    images = small(X_train=np.full((4, 2, 2, 3), 7, np.uint8))
    assert images.pixel_std == 1.0
    assert images.channel_std.tolist() == [1.0, 1.0]
    assert images.channel_mean.tolist() == [7.0, 7.0]


def test_statistics_are_computed_once_and_cannot_be_written_to():
    images = colorful(5)
    for name in ("mean_image", "channel_mean", "channel_std"):
        values = getattr(images, name)
        assert getattr(images, name) is values
        with pytest.raises(ValueError, match="read-only"):
            values += 1


def test_statistics_look_at_few_images_at_a_time():
    images = colorful(3000)
    peak = traced_peak(lambda: images.channel_std)
    assert peak < 5 * 2**21  # pieces of 2 MB, their squares, and what goes with them


def test_fewer_images_have_statistics_of_their_own():
    images = colorful(9)
    images.mean_image  # noqa: B018 (so that it is there to be kept)
    assert np.array_equal(images.take(1).mean_image, images.X_train[0])


def test_take_keeps_the_first_training_images_and_the_other_splits(digits):
    taken = digits.take(100)
    assert np.array_equal(taken.X_train, digits.X_train[:100])
    assert np.array_equal(taken.y_train, digits.y_train[:100])
    assert taken.X_val is digits.X_val
    assert taken.y_test is digits.y_test


@pytest.mark.parametrize("count", [0, -1, 1298])
def test_take_refuses_more_than_there_are_and_fewer_than_one(digits, count):
    with pytest.raises(DataError, match=f"digits: expected from 1 to 1297 training images; received {count}$"):
        digits.take(count)


def test_dataset_refuses_a_label_out_of_range_by_split_value_and_position():
    with pytest.raises(DataError, match=r"small: expected labels from 0 to 1; received y_val\[1\] = 2$"):
        small(y_val=np.array([1, 2]))


def test_dataset_refuses_a_negative_label():
    with pytest.raises(DataError, match=r"received y_train\[3\] = -1$"):
        small(y_train=np.array([0, 1, 1, -1]))


def test_dataset_refuses_labels_that_are_not_as_many_as_the_images():
    with pytest.raises(DataError, match=r"expected y_test of shape \(1,\).*; received shape \(2,\)$"):
        small(y_test=np.array([0, 1]))


def test_dataset_refuses_images_that_are_not_4d():
    with pytest.raises(DataError, match=r"expected X_train of shape \(N, C, H, W\); received shape \(4, 6\)$"):
        small(X_train=np.zeros((4, 6), np.uint8))


def test_dataset_may_have_an_empty_validation_split():
    assert len(small(X_val=np.zeros((0, 1, 2, 3), np.uint8), y_val=np.zeros(0, np.int64)).X_val) == 0
