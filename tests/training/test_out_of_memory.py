"""Where memory is too short for a batch, the error says which one fits."""

import weakref

import numpy as np
import pytest

from training.solvers import CourseModel, make_solver
from xpnn import Model
from xpnn.errors import OutOfMemory
from xpnn.layers import Affine, BatchNorm, Dropout, Layer, Sequential
from xpnn.training.out_of_memory import shortage_in


class Room(Layer):
    """Has room for so many examples in training."""

    def __init__(self, most):
        super().__init__("")
        self.most = most

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, x, train=False):
        if train and len(x) > self.most:
            raise MemoryError("Unable to allocate 3.64 TiB")
        return x, None

    def backward(self, dout, cache, input_grad=True):
        return dout, {}


def solver_with_room(most, **settings):
    net = Sequential(Affine(8), BatchNorm(), Dropout(0.5), Room(most), Affine(3))
    return make_solver(Model(net, (6,), rng=0), **({"batch_size": 40} | settings))


@pytest.mark.parametrize(("most", "fits"), [(39, 20), (20, 20), (19, 10), (1, 1)])
def test_the_error_names_a_batch_that_fits(most, fits):
    expected = f"Solver: expected batch_size {fits}, whose gradients fit into memory; received 40 "
    with pytest.raises(OutOfMemory) as error:
        solver_with_room(most).train()
    assert str(error.value) == expected + "(Unable to allocate 3.64 TiB)"
    solver_with_room(most, batch_size=fits, num_epochs=1).train()


def test_where_no_batch_fits_the_model_is_too_large():
    with pytest.raises(OutOfMemory, match="expected a smaller model; received 40 "):
        solver_with_room(0).train()


def test_a_model_of_the_users_own_is_not_tried(monkeypatch):
    model = CourseModel()
    monkeypatch.setattr(model, "loss", lambda X, y=None: Room(0).forward(X, train=True))
    with pytest.raises(OutOfMemory, match="expected a batch_size for which memory suffices; received 10 "):
        make_solver(model).train()


def test_trying_changes_nothing():
    solver = solver_with_room(19)
    state, rng_state = solver.model.state, None

    def step():
        nonlocal rng_state
        rng_state = solver.model.rng_state
        raise MemoryError

    params = {name: np.array(w) for name, w in solver.model.params.items()}
    solver._step = step
    with pytest.raises(OutOfMemory, match="batch_size 10"):
        solver.train()
    assert solver.model.rng_state == rng_state
    for name, value in solver.model.state.items():
        assert value is state[name]
    for name, w in solver.model.params.items():
        np.testing.assert_array_equal(w, params[name])


def test_what_the_failed_work_held_is_free_again():
    held = []

    def work():
        array = np.zeros(3)
        held.append(weakref.ref(array))
        raise MemoryError("none is left\nof it")

    assert shortage_in(work) == "none is left of it"
    assert held[0]() is None


def test_other_errors_go_through():
    with pytest.raises(ZeroDivisionError):
        shortage_in(lambda: 1 / 0)


def test_work_that_fits_is_done():
    done = []
    assert shortage_in(lambda: done.append(1)) == ""
    assert done == [1]
