# A course notebook's cells, as its students wrote them. Only the import lines are xpnn's.
import numpy as np

from xpnn import Solver
from xpnn.data import get_CIFAR10_data
from xpnn.gradient_check import eval_numerical_gradient
from xpnn.layers import *
from xpnn.models import *
from xpnn.optim import *


def rel_error(x, y):
    """returns relative error"""
    return np.max(np.abs(x - y) / (np.maximum(1e-8, np.abs(x) + np.abs(y))))


np.random.seed(231)
data = get_CIFAR10_data(num_training=NUM_TRAINING, num_validation=20, num_test=20)

N, D = 4, 5
w = np.linspace(-0.4, 0.6, num=N * D).reshape(N, D)
dw = np.linspace(-0.6, 0.4, num=N * D).reshape(N, D)
v = np.linspace(0.6, 0.9, num=N * D).reshape(N, D)
config = {"learning_rate": 1e-3, "velocity": v}
next_w, _ = sgd_momentum(w, dw, config=config)
assert abs(next_w[0, 0] - 0.1406) < 1e-8
assert abs(config["velocity"][0, 0] - 0.5406) < 1e-8

# A two-layer net, with parameters that are set by hand
N, D, H, C = 3, 5, 50, 7
X = np.random.randn(N, D)
y = np.random.randint(C, size=N)
std = 1e-2
model = TwoLayerNet(input_dim=D, hidden_dims=H, num_classes=C, weight_scale=std)
assert abs(model.params["W1"].std() - std) < std / 5
assert np.all(model.params["b1"] == 0)
model.params["W1"] = np.linspace(-0.7, 0.3, num=D * H).reshape(D, H)
model.params["b1"] = np.linspace(-0.1, 0.9, num=H)
model.params["W2"] = np.linspace(-0.3, 0.4, num=H * C).reshape(H, C)
model.params["b2"] = np.linspace(-0.9, 0.1, num=C)
X = np.linspace(-5.5, 4.5, num=N * D).reshape(D, N).T
scores = model.loss(X)
correct_scores = np.asarray(
    [
        [11.53165108, 12.2917344, 13.05181771, 13.81190102, 14.57198434, 15.33206765, 16.09215096],
        [12.05769098, 12.74614105, 13.43459113, 14.1230412, 14.81149128, 15.49994135, 16.18839143],
        [12.58373087, 13.20054771, 13.81736455, 14.43418138, 15.05099822, 15.66781506, 16.2846319],
    ]
)
assert np.abs(scores - correct_scores).sum() < 1e-6
y = np.asarray([0, 5, 1])
loss, grads = model.loss(X, y)
assert abs(loss - 3.4702243556) < 1e-10
model.reg = 1.0
loss, grads = model.loss(X, y)
assert abs(loss - 26.5948426952) < 1e-10
for reg in [0.0, 0.7]:
    model.reg = reg
    loss, grads = model.loss(X, y)
    for name in sorted(grads):
        f = lambda _: model.loss(X, y)[0]
        grad_num = eval_numerical_gradient(f, model.params[name], verbose=False)
        print("{} relative error: {}".format(name, rel_error(grad_num, grads[name])))
        assert rel_error(grad_num, grads[name]) < 1e-4

# Compare the update rules
solvers = {}
learning_rates = {"rmsprop": 2e-4, "adam": 1e-3}
for update_rule in ["sgd", "sgd_momentum", "sgd_nesterov_momentum", "adam", "rmsprop"]:
    print("Optimizing with {}".format(update_rule))
    model = FullyConnectedNet([100, 100, 100, 100, 100], weight_scale=5e-2)
    solver = Solver(
        model, data, num_epochs=2, batch_size=20, update_rule=update_rule,
        optim_config={"learning_rate": learning_rates.get(update_rule, 1e-2)}, verbose=False,
    )  # fmt: skip
    solvers[update_rule] = solver
    solver.train()
    print(solver.loss_history[-1], solver.train_acc_history[-1], solver.val_acc_history[-1])

# A net trained, kept in a variable and asked again
best_model = model
y_test_pred = np.argmax(best_model.loss(data["X_test"]), axis=1)
y_val_pred = np.argmax(best_model.loss(data["X_val"]), axis=1)
print("Validation set accuracy: {}".format(np.mean(y_val_pred == data["y_val"])))
print("Test set accuracy: {}".format(np.mean(y_test_pred == data["y_test"])))
assert np.mean(y_val_pred == data["y_val"]) == solver.best_val_acc
