# A course notebook's cells, as its students wrote them. Only the import lines are xpnn's.
from time import time

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

# Convolution: naive forward pass
x_shape = (2, 3, 4, 4)
w_shape = (3, 3, 4, 4)
x = np.linspace(-0.1, 0.5, num=np.prod(x_shape)).reshape(x_shape)
w = np.linspace(-0.2, 0.3, num=np.prod(w_shape)).reshape(w_shape)
b = np.linspace(-0.1, 0.2, num=3)
conv_param = {"stride": 2, "pad": 1}
out, _ = conv_forward_naive(x, w, b, conv_param)
correct_out = np.array(
    [
        [
            [[-0.08759809, -0.10987781], [-0.18387192, -0.2109216]],
            [[0.21027089, 0.21661097], [0.22847626, 0.23004637]],
            [[0.50813986, 0.54309974], [0.64082444, 0.67101435]],
        ],
        [
            [[-0.98053589, -1.03143541], [-1.19128892, -1.24695841]],
            [[0.69108355, 0.66880383], [0.59480972, 0.56776003]],
            [[2.36270298, 2.36904306], [2.38090835, 2.38247847]],
        ],
    ]
)
print("Testing conv_forward_naive")
print("difference: ", rel_error(out, correct_out))
assert rel_error(out, correct_out) < 1e-7

# Convolution: naive backward pass
np.random.seed(231)
x = np.random.randn(4, 3, 5, 5)
w = np.random.randn(2, 3, 3, 3)
b = np.random.randn(2)
dout = np.random.randn(4, 2, 5, 5)
conv_param = {"stride": 1, "pad": 1}
out, cache = conv_forward_naive(x, w, b, conv_param)
dx_num = eval_numerical_gradient_array(lambda x: conv_forward_naive(x, w, b, conv_param)[0], x, dout)
dw_num = eval_numerical_gradient_array(lambda w: conv_forward_naive(x, w, b, conv_param)[0], w, dout)
db_num = eval_numerical_gradient_array(lambda b: conv_forward_naive(x, w, b, conv_param)[0], b, dout)
dx, dw, db = conv_backward_naive(dout, cache)
print("Testing conv_backward_naive function")
print("dx error: ", rel_error(dx, dx_num))
print("dw error: ", rel_error(dw, dw_num))
print("db error: ", rel_error(db, db_num))
assert rel_error(dx, dx_num) < 1e-6
assert rel_error(dw, dw_num) < 1e-6
assert rel_error(db, db_num) < 1e-6

# Max pooling: naive forward and backward pass
x_shape = (2, 3, 4, 4)
x = np.linspace(-0.3, 0.4, num=np.prod(x_shape)).reshape(x_shape)
pool_param = {"pool_width": 2, "pool_height": 2, "stride": 2}
out, _ = max_pool_forward_naive(x, pool_param)
correct_out = np.array(
    [
        [
            [[-0.26315789, -0.24842105], [-0.20421053, -0.18947368]],
            [[-0.14526316, -0.13052632], [-0.08631579, -0.07157895]],
            [[-0.02736842, -0.01263158], [0.03157895, 0.04631579]],
        ],
        [
            [[0.09052632, 0.10526316], [0.14947368, 0.16421053]],
            [[0.20842105, 0.22315789], [0.26736842, 0.28210526]],
            [[0.32631579, 0.34105263], [0.38526316, 0.4]],
        ],
    ]
)
assert rel_error(out, correct_out) < 1e-7
x = np.random.randn(3, 2, 8, 8)
dout = np.random.randn(3, 2, 4, 4)
out, cache = max_pool_forward_naive(x, pool_param)
dx = max_pool_backward_naive(dout, cache)
dx_num = eval_numerical_gradient_array(lambda x: max_pool_forward_naive(x, pool_param)[0], x, dout)
print("dx error: ", rel_error(dx, dx_num))
assert rel_error(dx, dx_num) < 1e-8

# Fast layers
x = np.random.randn(10, 3, 31, 31)
w = np.random.randn(5, 3, 3, 3)
b = np.random.randn(5)
dout = np.random.randn(10, 5, 16, 16)
conv_param = {"stride": 2, "pad": 1}
t0 = time()
out_naive, cache_naive = conv_forward_naive(x, w, b, conv_param)
t1 = time()
out_fast, cache_fast = conv_forward_fast(x, w, b, conv_param)
t2 = time()
print("Testing conv_forward_fast:")
print("Naive: %fs" % (t1 - t0))
print("Fast: %fs" % (t2 - t1))
print("Difference: ", rel_error(out_naive, out_fast))
assert rel_error(out_naive, out_fast) < 1e-8
dx_naive, dw_naive, db_naive = conv_backward_naive(dout, cache_naive)
dx_fast, dw_fast, db_fast = conv_backward_fast(dout, cache_fast)
assert rel_error(dx_naive, dx_fast) < 1e-8
assert rel_error(dw_naive, dw_fast) < 1e-8
assert rel_error(db_naive, db_fast) < 1e-8
for forward, backward in [
    (conv_forward_im2col, conv_backward_im2col), (conv_forward_strides, conv_backward_strides),
]:  # fmt: skip
    out, cache = forward(x, w, b, conv_param)
    assert rel_error(out, out_naive) < 1e-8
    assert rel_error(backward(dout, cache)[0], dx_naive) < 1e-8

x = np.random.randn(10, 3, 32, 32)
dout = np.random.randn(10, 3, 16, 16)
out_naive, cache_naive = max_pool_forward_naive(x, pool_param)
out_fast, cache_fast = max_pool_forward_fast(x, pool_param)
assert rel_error(out_naive, out_fast) == 0
assert rel_error(max_pool_backward_naive(dout, cache_naive), max_pool_backward_fast(dout, cache_fast)) == 0

# Convolutional "sandwich" layers
x = np.random.randn(2, 3, 8, 8)
w = np.random.randn(3, 3, 3, 3)
b = np.random.randn(3)
dout = np.random.randn(2, 3, 8, 8)
conv_param = {"stride": 1, "pad": 1}
out, cache = conv_relu_forward(x, w, b, conv_param)
dx, dw, db = conv_relu_backward(dout, cache)
dx_num = eval_numerical_gradient_array(lambda x: conv_relu_forward(x, w, b, conv_param)[0], x, dout)
dw_num = eval_numerical_gradient_array(lambda w: conv_relu_forward(x, w, b, conv_param)[0], w, dout)
db_num = eval_numerical_gradient_array(lambda b: conv_relu_forward(x, w, b, conv_param)[0], b, dout)
print("Testing conv_relu:")
print("dx error: ", rel_error(dx_num, dx))
assert rel_error(dx_num, dx) < 1e-6
assert rel_error(dw_num, dw) < 1e-6
assert rel_error(db_num, db) < 1e-6

x = np.random.randn(2, 3, 16, 16)
dout = np.random.randn(2, 3, 8, 8)
pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
out, cache = conv_relu_pool_forward(x, w, b, conv_param, pool_param)
dx, dw, db = conv_relu_pool_backward(dout, cache)
dx_num = eval_numerical_gradient_array(lambda x: conv_relu_pool_forward(x, w, b, conv_param, pool_param)[0], x, dout)
dw_num = eval_numerical_gradient_array(lambda w: conv_relu_pool_forward(x, w, b, conv_param, pool_param)[0], w, dout)
db_num = eval_numerical_gradient_array(lambda b: conv_relu_pool_forward(x, w, b, conv_param, pool_param)[0], b, dout)
print("Testing conv_relu_pool")
print("dx error: ", rel_error(dx_num, dx))
assert rel_error(dx_num, dx) < 1e-6
assert rel_error(dw_num, dw) < 1e-6
assert rel_error(db_num, db) < 1e-6

# Sanity check loss
model = ThreeLayerConvNet()
N = 50
X = np.random.randn(N, 3, 32, 32)
y = np.random.randint(10, size=N)
loss, grads = model.loss(X, y)
print("Initial loss (no regularization): ", loss)
assert abs(loss - np.log(10)) < 1e-2
model.reg = 0.5
loss_with_reg, grads = model.loss(X, y)
print("Initial loss (with regularization): ", loss_with_reg)
assert loss_with_reg > loss
assert all(grads[name].dtype == np.float32 for name in grads)

# Gradient check
num_inputs = 2
input_dim = (3, 16, 16)
reg = 0.0
num_classes = 10
np.random.seed(231)
X = np.random.randn(num_inputs, *input_dim)
y = np.random.randint(num_classes, size=num_inputs)
for use_batchnorm in [False, True]:
    model = ThreeLayerConvNet(
        num_filters=3, filter_size=3, input_dim=input_dim, hidden_dim=7, dtype=np.float64, use_batchnorm=use_batchnorm
    )
    loss, grads = model.loss(X, y)
    for param_name in ["W1", "b1", "W3", "b3"]:
        f = lambda _: model.loss(X, y)[0]
        param_grad_num = eval_numerical_gradient(f, model.params[param_name], verbose=False, h=1e-6)
        e = rel_error(param_grad_num, grads[param_name])
        print("%s max relative error: %e" % (param_name, e))
        assert (use_batchnorm and param_name == "b1") or e < 1e-2  # a bias before batch norm has no gradient

# Overfit small data
np.random.seed(231)
num_train = 60
small_data = {
    "X_train": data["X_train"][:num_train],
    "y_train": data["y_train"][:num_train],
    "X_val": data["X_val"],
    "y_val": data["y_val"],
}
model = ThreeLayerConvNet(num_filters=16, filter_size=5, weight_scale=1e-2)
solver = Solver(
    model, small_data, num_epochs=40, batch_size=50, update_rule="adam", optim_config={"learning_rate": 1e-3},
    verbose=True, print_every=20,
)  # fmt: skip
solver.train()
print("Final training accuracy: ", solver.train_acc_history[-1])
assert max(solver.train_acc_history) > 0.9
assert len(solver.loss_history) == 40

# Spatial batch normalization: forward
np.random.seed(231)
N, C, H, W = 2, 3, 4, 5
x = 4 * np.random.randn(N, C, H, W) + 10
gamma, beta = np.ones(C), np.zeros(C)
bn_param = {"mode": "train"}
out, _ = spatial_batchnorm_forward(x, gamma, beta, bn_param)
assert out.shape == x.shape
assert np.allclose(out.mean(axis=(0, 2, 3)), 0)
assert np.allclose(out.std(axis=(0, 2, 3)), 1)
gamma, beta = np.asarray([3, 4, 5.0]), np.asarray([6, 7, 8.0])
out, _ = spatial_batchnorm_forward(x, gamma, beta, bn_param)
print("After spatial batch normalization (nontrivial gamma, beta):")
print("  Means: ", out.mean(axis=(0, 2, 3)))
print("  Stds: ", out.std(axis=(0, 2, 3)))
assert np.allclose(out.mean(axis=(0, 2, 3)), beta)
assert np.allclose(out.std(axis=(0, 2, 3)), gamma)

# Check the test-time forward pass
N, C, H, W = 10, 4, 11, 12
bn_param = {"mode": "train"}
gamma = np.ones(C)
beta = np.zeros(C)
for t in range(50):
    x = 2.3 * np.random.randn(N, C, H, W) + 13
    spatial_batchnorm_forward(x, gamma, beta, bn_param)
bn_param["mode"] = "test"
x = 2.3 * np.random.randn(N, C, H, W) + 13
a_norm, _ = spatial_batchnorm_forward(x, gamma, beta, bn_param)
assert np.all(np.abs(a_norm.mean(axis=(0, 2, 3))) < 0.2)
assert np.all(np.abs(a_norm.std(axis=(0, 2, 3)) - 1) < 0.2)

# Spatial batch normalization: backward
N, C, H, W = 2, 3, 4, 5
x = 5 * np.random.randn(N, C, H, W) + 12
gamma = np.random.randn(C)
beta = np.random.randn(C)
dout = np.random.randn(N, C, H, W)
bn_param = {"mode": "train"}
fx = lambda x: spatial_batchnorm_forward(x, gamma, beta, bn_param)[0]
fg = lambda a: spatial_batchnorm_forward(x, gamma, beta, bn_param)[0]
fb = lambda b: spatial_batchnorm_forward(x, gamma, beta, bn_param)[0]
dx_num = eval_numerical_gradient_array(fx, x, dout)
da_num = eval_numerical_gradient_array(fg, gamma, dout)
db_num = eval_numerical_gradient_array(fb, beta, dout)
_, cache = spatial_batchnorm_forward(x, gamma, beta, bn_param)
dx, dgamma, dbeta = spatial_batchnorm_backward(dout, cache)
print("dx error: ", rel_error(dx_num, dx))
assert rel_error(dx_num, dx) < 1e-6
assert rel_error(da_num, dgamma) < 1e-6
assert rel_error(db_num, dbeta) < 1e-6

# Group normalization
N, C, H, W = 2, 6, 4, 5
G = 2
x = 4 * np.random.randn(N, C, H, W) + 10
gamma, beta = np.ones((1, C, 1, 1)), np.zeros((1, C, 1, 1))
out, _ = spatial_groupnorm_forward(x, gamma, beta, G, {})
out_g = out.reshape((N * G, -1))
assert np.allclose(out_g.mean(axis=1), 0)
assert np.allclose(out_g.std(axis=1), 1)
