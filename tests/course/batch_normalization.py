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


data = get_CIFAR10_data(num_training=NUM_TRAINING, num_validation=20, num_test=20)
for k in data.keys():
    print("{}: {} ".format(k, data[k].shape))

# Check the training-time forward pass by checking means and variances of features
np.random.seed(231)
N, D1, D2, D3 = 200, 50, 60, 3
X = np.random.randn(N, D1)
W1 = np.random.randn(D1, D2)
W2 = np.random.randn(D2, D3)
a = np.maximum(0, X.dot(W1)).dot(W2)
gamma = np.asarray([1.0, 2.0, 3.0])
beta = np.asarray([11.0, 12.0, 13.0])
a_norm, _ = batchnorm_forward(a, gamma, beta, {"mode": "train"})
assert np.allclose(a_norm.mean(axis=0), beta)
assert np.allclose(a_norm.std(axis=0), gamma)

# Check the test-time forward pass by running the training-time forward pass many times to warm up the averages
bn_param = {"mode": "train"}
gamma = np.ones(D3)
beta = np.zeros(D3)
for t in np.arange(50):
    X = np.random.randn(N, D1)
    a = np.maximum(0, X.dot(W1)).dot(W2)
    batchnorm_forward(a, gamma, beta, bn_param)
bn_param["mode"] = "test"
X = np.random.randn(N, D1)
a = np.maximum(0, X.dot(W1)).dot(W2)
a_norm, _ = batchnorm_forward(a, gamma, beta, bn_param)
assert np.all(np.abs(a_norm.mean(axis=0)) < 0.3)
assert np.all(np.abs(a_norm.std(axis=0) - 1) < 0.3)

# Gradient check batchnorm backward pass
N, D = 4, 5
x = 5 * np.random.randn(N, D) + 12
gamma = np.random.randn(D)
beta = np.random.randn(D)
dout = np.random.randn(N, D)
bn_param = {"mode": "train"}
fx = lambda x: batchnorm_forward(x, gamma, beta, bn_param)[0]
fg = lambda a: batchnorm_forward(x, gamma, beta, bn_param)[0]
fb = lambda b: batchnorm_forward(x, gamma, beta, bn_param)[0]
dx_num = eval_numerical_gradient_array(fx, x, dout)
da_num = eval_numerical_gradient_array(fg, gamma, dout)
db_num = eval_numerical_gradient_array(fb, beta, dout)
_, cache = batchnorm_forward(x, gamma, beta, bn_param)
dx, dgamma, dbeta = batchnorm_backward(dout, cache)
print("dx error: ", rel_error(dx_num, dx))
assert rel_error(dx_num, dx) < 1e-6
assert rel_error(da_num, dgamma) < 1e-6
assert rel_error(db_num, dbeta) < 1e-6

# Gradient check the whole net
N, D, H1, H2, C = 2, 15, 20, 30, 10
X = np.random.randn(N, D)
y = np.random.randint(C, size=(N,))
for reg in [0, 3.14]:
    print("Running check with reg = ", reg)
    model = FullyConnectedNet(
        [H1, H2], input_dim=D, num_classes=C, reg=reg, weight_scale=5e-2, dtype=np.float64, use_batchnorm=True
    )
    loss, grads = model.loss(X, y)
    print("Initial loss: ", loss)
    for name in sorted(grads):
        f = lambda _: model.loss(X, y)[0]
        grad_num = eval_numerical_gradient(f, model.params[name], verbose=False, h=1e-5)
        error = rel_error(grad_num, grads[name])
        print("{} relative error: {}".format(name, error))
        assert name in ("b1", "b2") or error < 1e-4  # a bias before batch norm has no gradient

# Train with and without batch norm
hidden_dims = [100, 100, 100, 100, 100]
num_train = 60
small_data = {
    "X_train": data["X_train"][:num_train],
    "y_train": data["y_train"][:num_train],
    "X_val": data["X_val"],
    "y_val": data["y_val"],
}
weight_scale = 2e-2
bn_model = FullyConnectedNet(hidden_dims, weight_scale=weight_scale, use_batchnorm=True)
model = FullyConnectedNet(hidden_dims, weight_scale=weight_scale, use_batchnorm=False)
bn_solver = Solver(
    bn_model, small_data, num_epochs=10, batch_size=50, update_rule="adam", optim_config={"learning_rate": 1e-3},
    verbose=True, print_every=200,
)  # fmt: skip
bn_solver.train()
solver = Solver(
    model, small_data, num_epochs=10, batch_size=50, update_rule="adam", optim_config={"learning_rate": 1e-3},
    verbose=True, print_every=200,
)  # fmt: skip
solver.train()

# Weight scales
weight_scales = np.logspace(-4, 0, num=3)
best_train_accs, final_train_loss = [], []
for i, weight_scale in enumerate(weight_scales):
    print("Running weight scale {} / {}".format(i + 1, len(weight_scales)))
    bn_model = FullyConnectedNet([50, 50], weight_scale=weight_scale, use_batchnorm=True)
    bn_solver = Solver(
        bn_model, small_data, num_epochs=2, batch_size=50, update_rule="adam", optim_config={"learning_rate": 1e-3},
        verbose=False, print_every=200,
    )  # fmt: skip
    bn_solver.train()
    assert bn_model.params["W1"].dtype == np.float32
    best_train_accs.append(max(bn_solver.train_acc_history))
    final_train_loss.append(np.mean(bn_solver.loss_history[-100:]))
