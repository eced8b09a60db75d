# A course notebook's cells, as its students wrote them. Only the import lines are xpnn's.
import numpy as np

from xpnn import Solver
from xpnn.data import get_CIFAR10_data
from xpnn.gradient_check import eval_numerical_gradient, eval_numerical_gradient_array
from xpnn.layers import *
from xpnn.models import *


def rel_error(x, y):
    """returns relative error"""
    return np.max(np.abs(x - y) / (np.maximum(1e-8, np.abs(x) + np.abs(y))))


np.random.seed(231)
data = get_CIFAR10_data(num_training=NUM_TRAINING, num_validation=20, num_test=20)

x = np.random.randn(500, 500) + 10
for p in [0.3, 0.6, 0.75]:
    out, _ = dropout_forward(x, {"mode": "train", "p": p})
    out_test, _ = dropout_forward(x, {"mode": "test", "p": p})
    print("Running tests with p = ", p)
    assert abs(out.mean() - 10) < 0.2
    assert np.array_equal(out_test, x)
    assert abs((out == 0).mean() - p) < 0.01

x = np.random.randn(10, 10) + 10
dout = np.random.randn(*x.shape)
dropout_param = {"mode": "train", "p": 0.8, "seed": 123}
out, cache = dropout_forward(x, dropout_param)
dx = dropout_backward(dout, cache)
dx_num = eval_numerical_gradient_array(lambda xx: dropout_forward(xx, dropout_param)[0], x, dout)
print("dx relative error: ", rel_error(dx, dx_num))
assert rel_error(dx, dx_num) < 1e-7

N, D, H1, H2, C = 2, 15, 20, 30, 10
X = np.random.randn(N, D)
y = np.random.randint(C, size=(N,))
for dropout in [0, 0.25, 0.5]:
    print("Running check with dropout = ", dropout)
    model = FullyConnectedNet(
        [H1, H2], input_dim=D, num_classes=C, weight_scale=5e-2, dtype=np.float64, dropout=dropout, seed=123
    )
    loss, grads = model.loss(X, y)
    print("Initial loss: ", loss)
    for name in sorted(grads):
        f = lambda _: model.loss(X, y)[0]
        grad_num = eval_numerical_gradient(f, model.params[name], verbose=False, h=1e-5)
        print("{} relative error: {}".format(name, rel_error(grad_num, grads[name])))
        assert rel_error(grad_num, grads[name]) < 1e-4

num_train = 60
small_data = {
    "X_train": data["X_train"][:num_train],
    "y_train": data["y_train"][:num_train],
    "X_val": data["X_val"],
    "y_val": data["y_val"],
}
solvers = {}
dropout_choices = [0, 0.6]
for dropout in dropout_choices:
    model = FullyConnectedNet([100, 100, 100], dropout=dropout)
    solver = Solver(
        model, small_data, num_epochs=25, batch_size=100, update_rule="adam", optim_config={"learning_rate": 5e-4},
        verbose=True, print_every=100,
    )  # fmt: skip
    solver.train()
    solvers[dropout] = solver
for dropout in dropout_choices:
    assert len(solvers[dropout].train_acc_history) == 26
