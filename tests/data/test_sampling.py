"""Which examples make up an epoch."""

import numpy as np
import pytest

from xpnn.data.sampling import batches_per_epoch, epoch_order
from xpnn.errors import SettingError
from xpnn.random import Generator


@pytest.mark.parametrize(("examples", "size", "count"), [(1000, 100, 10), (1099, 100, 10), (50, 100, 1), (1, 1, 1)])
def test_an_epoch_is_as_many_batches_as_fit_and_at_least_one(examples, size, count):
    assert batches_per_epoch(examples, size) == count


def test_shuffle_takes_each_example_at_most_once(kind):
    order = kind.to_numpy(kind.check(epoch_order(23, 5, "shuffle", Generator(1), kind.backend), "int64", (4, 5)))
    assert len(set(order.ravel())) == 20
    assert set(order.ravel()) <= set(range(23))


def test_shuffle_makes_one_smaller_batch_of_too_few_examples(kind):
    order = epoch_order(3, 5, "shuffle", Generator(1), kind.backend)
    assert sorted(kind.to_numpy(order).tolist()[0]) == [0, 1, 2]


def test_replacement_fills_each_batch_from_all_examples(kind):
    order = kind.to_numpy(kind.check(epoch_order(3, 200, "replacement", Generator(1), kind.backend), "int64", (1, 200)))
    assert set(order.ravel()) == {0, 1, 2}


@pytest.mark.parametrize("sampling", ["shuffle", "replacement"])
def test_the_order_is_the_same_on_every_kind(kind, sampling):
    expected = epoch_order(50, 7, sampling, Generator(4), kind.backend)
    np.testing.assert_array_equal(kind.to_numpy(expected), epoch_order(50, 7, sampling, Generator(4), _numpy()))


def test_an_unknown_sampling_is_named():
    with pytest.raises(SettingError, match="sampling: expected one of replacement, shuffle; received 'sorted'"):
        epoch_order(3, 1, "sorted", Generator(), _numpy())


def _numpy():
    from xpnn import backend

    return backend.get("numpy")
