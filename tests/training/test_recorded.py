"""Steps that a device records and replays: on every backend, those launched one by one; see test_cuda_graph.py."""

import numpy as np
import pytest

from training.solvers import AUGMENT, image_solver, make_net, make_solver
from xpnn.backend import to_numpy
from xpnn.kernels import fast_path


def assert_same_training(make):
    plain, recorded = make(graph=False), make(graph="auto")
    for solver in (plain, recorded):
        solver.train()
    assert plain.graph_replays == 0
    if recorded.graph_reason is None:
        assert recorded.graph_replays > 0
    else:  # a backend without graphs, or CuPy without cuBLASLt
        is_able = fast_path("recording.record", recorded.backend.name) is not None
        assert recorded.graph_reason.startswith("products by cupy.matmul" if is_able else f"{recorded.backend} records")
    np.testing.assert_allclose(recorded.loss_history, plain.loss_history, rtol=1e-5)
    for name, array in plain.arrays().items():
        np.testing.assert_allclose(
            to_numpy(recorded.arrays()[name]), to_numpy(array), rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("rule", ["sgd_momentum", "nesterov", "adamw", "lion"])
def test_a_dense_net(kind, rule):
    assert_same_training(
        lambda graph: make_solver(make_net(kind.backend), update_rule=rule, clip_norm=1.0, graph=graph)
    )


def test_augmented_images_with_batch_norm(kind):
    settings = {"augment": AUGMENT[:-1], "accumulate": 1, "use_batchnorm": True}
    assert_same_training(lambda graph: image_solver(kind.backend, average="ema", graph=graph, **settings))
