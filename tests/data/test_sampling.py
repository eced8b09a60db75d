"""Which examples make up an epoch."""

import numpy as np
import pytest

from xpnn import backend
from xpnn.data.sampling import SAMPLINGS, batches_per_epoch, epoch_order, slices
from xpnn.errors import SettingError
from xpnn.random import Generator


@pytest.mark.parametrize(("examples", "size", "count"), [(1000, 100, 10), (1099, 100, 10), (50, 100, 1), (1, 1, 1)])
def test_an_epoch_is_as_many_batches_as_fit_and_at_least_one(examples, size, count):
    assert batches_per_epoch(examples, size) == count


@pytest.mark.parametrize(("examples", "size", "count"), [(1000, 100, 10), (1001, 100, 11), (50, 100, 1), (1, 1, 1)])
def test_the_last_batch_may_be_smaller(examples, size, count):
    assert batches_per_epoch(examples, size, drop_last=False) == count


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("examples", "size"), [(20, 5), (23, 5), (3, 5)])
def test_an_order_fills_the_batches_of_an_epoch(kind, sampling, drop_last, examples, size):
    order = kind.check(epoch_order(examples, size, sampling, Generator(1), kind.backend, drop_last), "int64")
    assert len(list(slices(order.shape[0], size))) == batches_per_epoch(examples, size, drop_last)
    assert order.shape[0] % size == 0 or not drop_last or examples < size
    assert set(kind.to_numpy(order)) <= set(range(examples))


def test_shuffle_takes_each_example_at_most_once(kind):
    order = kind.to_numpy(kind.check(epoch_order(23, 5, "shuffle", Generator(1), kind.backend), "int64", (20,)))
    assert len(set(order)) == 20


def test_shuffle_without_dropping_takes_each_example_once(kind):
    order = epoch_order(23, 5, "shuffle", Generator(1), kind.backend, drop_last=False)
    assert sorted(kind.to_numpy(order)) == list(range(23))
    assert kind.to_numpy(order).tolist() != list(range(23))


def test_shuffle_makes_one_smaller_batch_of_too_few_examples(kind):
    order = epoch_order(3, 5, "shuffle", Generator(1), kind.backend)
    assert sorted(kind.to_numpy(order)) == [0, 1, 2]


@pytest.mark.parametrize(("drop_last", "count"), [(True, 20), (False, 23)])
def test_sequential_takes_the_examples_in_order_and_draws_nothing(kind, drop_last, count):
    rng = Generator(1)
    order = epoch_order(23, 5, "sequential", rng, kind.backend, drop_last)
    assert kind.to_numpy(order).tolist() == list(range(count))
    assert rng.state == (1, 0, 0)


def test_replacement_fills_each_batch_from_all_examples(kind):
    order = kind.to_numpy(kind.check(epoch_order(3, 200, "replacement", Generator(1), kind.backend), "int64", (200,)))
    assert set(order) == {0, 1, 2}


@pytest.mark.parametrize("sampling", ["shuffle", "replacement"])
def test_the_order_is_the_same_on_every_kind(kind, sampling):
    expected = epoch_order(50, 7, sampling, Generator(4), backend.get("numpy"))
    ours = epoch_order(50, 7, sampling, Generator(4), kind.backend)
    np.testing.assert_array_equal(kind.to_numpy(ours), expected)


def test_an_unknown_sampling_is_named():
    expected = "sampling: expected one of replacement, shuffle, sequential; received 'sorted'"
    with pytest.raises(SettingError, match=expected):
        epoch_order(3, 1, "sorted", Generator(), backend.get("numpy"))
