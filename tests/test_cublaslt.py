"""Products by cuBLASLt without a device: what each call describes is computed by an interpreter of its semantics."""

import importlib
import inspect

import cublaslt_on_cpu
import numpy as np
import pytest
import stand_in

from containers import OneByOne
from test_cuda import needed
from test_kernels import CALLS, assert_same_results, channels_last, normals
from xpnn import Model, kernels, layers
from xpnn import backend as backends
from xpnn.layers import GELU, Affine, BatchNorm, Dropout, Linear, ReLU, Sequential
from xpnn.layers.affine import linear_param_grads
from xpnn.models import FullyConnectedNet
from xpnn.windows import Window


@pytest.fixture
def cupy():
    if stand_in.COMPILER is None:
        pytest.skip("no g++ was found")
    with stand_in.installed() as module:
        cublaslt_on_cpu.install()
        yield module


@pytest.fixture
def products(cupy):
    return importlib.import_module("xpnn.kernels.cupy.products")


def by_rows(x):
    return np.ascontiguousarray(x)


def by_columns(x):
    return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)


def with_gaps(x):
    wide = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def every_other(x):
    return np.repeat(x, 2, axis=-1)[..., ::2]


def turned(x):
    return x[..., ::-1, :].copy()[..., ::-1, :]


ORDERS = [by_rows, by_columns, with_gaps, every_other, turned]
SHAPES = [(5, 7, 3), (1, 7, 3), (5, 1, 3), (5, 7, 1), (1, 1, 3), (1, 7, 1), (64, 96, 32)]


def whole(x):
    return stand_in._memory_of(x).is_whole()


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("second", ORDERS)
@pytest.mark.parametrize("stack", [(), (1,), (4,), (2, 3)])
def test_what_is_described_is_the_product(cupy, products, first, second, stack):
    for m, k, n in SHAPES:
        a, b = first(normals(*stack, m, k)), second(normals(*stack, k, n, seed=1))
        on_device = cupy.array(a), cupy.array(b)
        assert on_device[0].strides == a.strides
        out = products.matmul(*on_device)
        np.testing.assert_allclose(out.get(), np.matmul(a, b), rtol=1e-5, atol=1e-5)
        assert whole(out)
    assert len(cublaslt_on_cpu.calls) == len(SHAPES) * (2 if len(stack) == 2 else 1)


@pytest.mark.parametrize("order", [by_rows, with_gaps])
def test_the_product_is_written_where_it_is_asked_for(cupy, products, order):
    a, b, out = normals(5, 4), normals(4, 3, seed=1), cupy.array(order(np.ones((5, 3), "float32")))
    assert products.matmul(cupy.array(a), cupy.array(b), out) is out
    np.testing.assert_allclose(out.get(), a @ b, rtol=1e-6)
    assert len(cublaslt_on_cpu.calls) == 1


@pytest.mark.parametrize("kept", ["float64", "float32", "float16", "bfloat16"])
def test_a_bias_is_added_by_the_product_itself(cupy, products, kept):
    if kept == "bfloat16":
        pytest.importorskip("ml_dtypes")
    a, b, bias = (normals(*shape, seed=i).astype(kept) for i, shape in enumerate(((6, 5), (5, 4), (4,))))
    out = products.matmul_bias(*map(cupy.array, (a, b, bias)))
    exact = [x.astype("float64") for x in (a, b, bias)]
    assert out.dtype == np.dtype(kept)
    tolerance = {"float64": 1e-14, "float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}[kept]
    expected = exact[0] @ exact[1] + exact[2]
    np.testing.assert_allclose(out.get().astype("float64"), expected, rtol=tolerance, atol=tolerance)
    compute = cublaslt_on_cpu.ComputeType["COMPUTE_64F" if kept == "float64" else "COMPUTE_32F"]
    assert cublaslt_on_cpu.calls == [cublaslt_on_cpu.Call(4, 6, 5, 1, compute, cublaslt_on_cpu.Epilogue.BIAS, 0.0)]


@pytest.mark.parametrize("order", [by_rows, by_columns])
def test_each_matrix_of_a_stack_has_its_own_bias(cupy, products, order):
    a, b, bias = order(normals(3, 6, 5)), order(normals(3, 5, 4, seed=1)), normals(3, 4, seed=2)
    memory = cupy.zeros((6, 3, 4), "float32")  # where the groups of a convolution are side by side
    products.multiply(cupy.array(a), cupy.array(b), memory.transpose(1, 0, 2), cupy.array(bias))
    expected = np.matmul(a, b) + bias[:, np.newaxis]
    np.testing.assert_allclose(memory.get(), expected.transpose(1, 0, 2), rtol=1e-5, atol=1e-5)
    products.multiply(cupy.array(a), cupy.array(b), memory.transpose(1, 0, 2), add=True)
    np.testing.assert_allclose(memory.get().transpose(1, 0, 2), expected + np.matmul(a, b), rtol=1e-5, atol=1e-5)
    assert [call.count for call in cublaslt_on_cpu.calls] == [3, 3]


def test_products_of_halves_are_added_to_float32(cupy, products):
    a, b, out = normals(1, 6, 50, dtype="float16"), normals(1, 50, 4, dtype="float16", seed=1), normals(1, 6, 4, seed=2)
    received = cupy.array(out)
    products.multiply(cupy.array(a), cupy.array(b), received, add=True)
    np.testing.assert_allclose(received.get(), out + a.astype("f") @ b.astype("f"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("second", ORDERS)
@pytest.mark.parametrize("third", ORDERS)
def test_a_multiple_of_a_matrix_is_added_by_the_product_itself(cupy, products, first, second, third):
    for m, k, n in SHAPES:
        a, b, c = first(normals(m, k)), second(normals(k, n, seed=1)), third(normals(m, n, seed=2))
        given = cupy.array(c)
        out = products.gemm(cupy.array(a), cupy.array(b), given, 2.0315, -4.775)
        np.testing.assert_allclose(out.get(), 2.0315 * (a @ b) - 4.775 * c, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(given.get(), c)
        assert whole(out)
    scales = {(call.alpha, call.beta) for call in cublaslt_on_cpu.calls}
    assert scales == {(float(np.float32(2.0315)), float(np.float32(-4.775)))}
    assert len(cublaslt_on_cpu.calls) == len(SHAPES)
    assert stand_in.launches == []


def test_one_matrix_may_be_factor_and_summand(cupy, products):
    x = normals(6, 6)
    given = cupy.array(x)
    np.testing.assert_allclose(products.gemm(given, given, given, 2.0, 0.5).get(), 2 * x @ x + 0.5 * x, atol=1e-5)
    np.testing.assert_array_equal(given.get(), x)


@pytest.mark.parametrize("kept", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("refused", [False, True])
def test_a_sum_of_a_product_is_rounded_once_for_the_product_and_once_for_the_sum(
    cupy, products, kept, refused, monkeypatch
):
    if kept == "bfloat16":
        pytest.importorskip("ml_dtypes")
    if refused:
        refusing(monkeypatch, "DEFAULT")
    a, b, c = (normals(*shape, seed=i).astype(kept) for i, shape in enumerate(((6, 5), (5, 4), (6, 4))))
    out = products.gemm(*map(cupy.array, (a, b, c)), 2.0315, -4.775)
    assert out.dtype == np.dtype(kept)
    product, added = a.astype("float64") @ b.astype("float64"), c.astype("float64")
    exact, rounding = 2.0315 * product - 4.775 * added, {"float64": 2.0**-50, **HALVES}[kept]
    tolerance = 1.01 * rounding * (np.abs(exact) + refused * 2.0315 * np.abs(product)) + 2.0**-22
    assert (np.abs(out.get().astype("float64") - exact) <= tolerance).all()
    assert len(cublaslt_on_cpu.calls) == (not refused)


def test_what_is_added_may_begin_anywhere(cupy, products):
    x, numbers = cupy.array(normals(8, 8)), cupy.array(normals(200, seed=1))
    for start in range(5):
        c = numbers[start : start + 64].reshape(8, 8)
        np.testing.assert_allclose(products.gemm(x, x, c, 1.0, 2.0).get(), (x @ x).get() + 2 * c.get(), atol=1e-5)
    searches = len(cublaslt_on_cpu.searches)
    products.gemm(x, x, numbers[:64].reshape(8, 8), 3.0, 0.5)  # by a plan that is there
    assert len(cublaslt_on_cpu.searches) == searches


def test_float32_is_exact_unless_tf32_is_asked_for(cupy, products, monkeypatch):
    x = cupy.array(normals(3, 3))
    products.matmul(x, x)
    monkeypatch.setattr(products.cublaslt, "TF32", True)
    products.matmul(x, x[:, :2])
    products.matmul(x.astype("float64"), x.astype("float64"))
    assert [call.compute for call in cublaslt_on_cpu.calls] == [68, 77, 70]


def test_a_plan_is_made_once(cupy, products):
    x, w, b = cupy.array(normals(8, 8)), cupy.array(normals(8, 8)), cupy.array(normals(2, 8))
    for _ in range(3):
        products.matmul(x, w)
        for bias in b:  # at another place in memory each
            np.testing.assert_allclose(products.matmul_bias(x, w, bias).get(), (x @ w).get() + bias.get(), atol=1e-5)
    assert len(cublaslt_on_cpu.searches) == 2
    products.matmul(x, w.T)
    assert len(cublaslt_on_cpu.searches) == 3


def test_a_bias_that_begins_anywhere_has_a_plan_that_knows_it(cupy, products):
    x, w, numbers = cupy.array(normals(8, 8)), cupy.array(normals(8, 8)), cupy.array(normals(64, seed=1))
    for start in (0, 1, 2, 4):  # at 16, 4, 8 and 16 bytes
        bias = numbers[start : start + 8]
        np.testing.assert_allclose(products.matmul_bias(x, w, bias).get(), (x @ w).get() + bias.get(), atol=1e-5)
    assert len(cublaslt_on_cpu.searches) == 3


def test_memory_that_begins_anywhere_has_a_plan_that_knows_it(cupy, products):
    memory = cupy.array(normals(200))
    for start in range(9):
        w = memory[start : start + 64].reshape(8, 8)
        np.testing.assert_allclose(products.matmul(w, w).get(), w.get() @ w.get(), rtol=1e-4, atol=1e-5)


def test_a_product_that_cublaslt_has_not_is_cupys(cupy, products, monkeypatch):
    def refuse(*args):
        raise cublaslt_on_cpu.cuBLASLtError("not supported")

    monkeypatch.setattr(cublaslt_on_cpu, "matmul_algo_get_heuristic", refuse)
    a, b, bias = normals(5, 4), normals(4, 3, seed=1), normals(3, seed=2)
    np.testing.assert_allclose(products.matmul_bias(*map(cupy.array, (a, b, bias))).get(), a @ b + bias, rtol=1e-5)
    assert cublaslt_on_cpu.calls == []


@pytest.mark.parametrize("attribute", ["TRANSA", "EPILOGUE", "BIAS_BATCH_STRIDE", "BIAS_POINTER"])
def test_a_product_does_without_an_attribute_that_the_version_does_not_know(cupy, products, attribute, monkeypatch):
    set_attribute = cublaslt_on_cpu.matmul_desc_set_attribute

    def refuse(handle, attr, buf, size_in_bytes):
        if attr == cublaslt_on_cpu.MatmulDescAttribute[attribute]:
            raise cublaslt_on_cpu.cuBLASLtError("invalid value")
        set_attribute(handle, attr, buf, size_in_bytes)

    monkeypatch.setattr(cublaslt_on_cpu, "matmul_desc_set_attribute", refuse)
    a, b, bias = normals(5, 4), normals(4, 3, seed=1), normals(3, seed=2)
    for _ in range(2):
        np.testing.assert_allclose(products.matmul_bias(*map(cupy.array, (a, b, bias))).get(), a @ b + bias, rtol=1e-5)
    assert epilogues() == ["DEFAULT"] * (2 if attribute.startswith("BIAS") else 0)  # or all is CuPy's


@pytest.mark.parametrize("attribute", ["BATCH_COUNT", "MAX_WORKSPACE_BYTES"])
def test_a_stack_whose_attributes_the_version_does_not_know_is_cupys(cupy, products, attribute, monkeypatch):
    def refuse(*args):
        raise cublaslt_on_cpu.cuBLASLtError("invalid value")

    of = "matrix_layout" if attribute == "BATCH_COUNT" else "matmul_preference"
    monkeypatch.setattr(cublaslt_on_cpu, f"{of}_set_attribute", refuse)
    a, b = normals(2, 5, 4), normals(2, 4, 3, seed=1)
    np.testing.assert_allclose(products.matmul(cupy.array(a), cupy.array(b)).get(), a @ b, rtol=1e-5)
    assert cublaslt_on_cpu.calls == []


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize(
    "function",
    [
        "products.matmul",
        "products.matmul_bias",
        "products.gemm",
        "optim.in_place.muon",
        "layers.fused.activated",
        "layers.fused.activated_grad",
        "layers.fused.activated_input_grad",
        "layers.affine.param_grads",
        "layers.convolution.correlate",
        "layers.convolution.correlate_filter_grad",
        "layers.convolution.correlate_input_grad",
    ],
)
def test_kernels_that_multiply_give_the_results_of_their_definitions(function):
    for args in CALLS[function]:
        assert_same_results(function, "cupy", kernels.TABLE[function, "cupy"], args)
    assert cublaslt_on_cpu.calls


def test_an_affine_layer_is_one_product_forward(cupy):
    x, w, b = cupy.array(normals(6, 5)), cupy.array(normals(5, 4)), cupy.array(normals(4))
    out, cache = layers.affine_forward(x, w, b)
    assert len(cublaslt_on_cpu.calls) == 1
    assert stand_in.launches == []
    layers.affine_backward(out, cache)
    assert len(cublaslt_on_cpu.calls) == 3


@pytest.mark.parametrize("kept", ["float32", "float16", "bfloat16"])
def test_the_gradient_of_a_bias_is_added_up_by_the_product_for_its_matrix(cupy, kept):
    if kept == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x, dout = normals(6, 5).astype(kept), normals(6, 4, seed=1).astype(kept)
    w, b, dw = cupy.zeros((5, 4), kept), cupy.zeros(4, kept), cupy.zeros((5, 4), kept)
    _, cache = layers.affine_forward(cupy.array(x), w, b)
    cublaslt_on_cpu.calls.clear()
    received, db = linear_param_grads(cupy.array(dout), cache, dw)
    assert received is dw
    exact = x.astype("float64").T @ dout.astype("float64"), dout.astype("float64").sum(axis=0)
    tolerance = {"float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}[kept]
    for result, expected in zip((dw, db), exact, strict=True):
        assert result.dtype == np.dtype(kept)
        np.testing.assert_allclose(result.get().astype("float64"), expected, rtol=tolerance, atol=1e-6)
        assert whole(result)
    call = (4, 5, 6, 1, cublaslt_on_cpu.ComputeType.COMPUTE_32F, cublaslt_on_cpu.Epilogue.BGRADA, 0.0, 1.0)
    assert cublaslt_on_cpu.calls == [call]
    assert stand_in.launches == []


def test_where_cublaslt_does_not_add_up_a_gradient_a_kernel_does(cupy, monkeypatch):
    search = cublaslt_on_cpu.matmul_algo_get_heuristic

    def refuse(light_handle, operation_desc, *args):
        epilogue = cublaslt_on_cpu._objects[operation_desc]["EPILOGUE"]
        if epilogue == cublaslt_on_cpu.Epilogue.BGRADA:
            raise cublaslt_on_cpu.cuBLASLtError("not supported")
        search(light_handle, operation_desc, *args)

    monkeypatch.setattr(cublaslt_on_cpu, "matmul_algo_get_heuristic", refuse)
    x, dout = normals(6, 5), normals(6, 4, seed=1)
    _, cache = layers.affine_forward(cupy.array(x), cupy.zeros((5, 4), "f"), cupy.zeros(4, "f"))
    for _ in range(2):
        dw, db = linear_param_grads(cupy.array(dout), cache)
        np.testing.assert_allclose(dw.get(), x.T @ dout, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(db.get(), dout.sum(axis=0), rtol=1e-5, atol=1e-6)
    assert [launch.kernel for launch in stand_in.launches] == 2 * ["add_rows<float, float>"]


# ---- with an activation


HALVES = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # a rounding, relative to the number
ACTIVATIONS = {"relu": ReLU, "gelu_tanh": lambda: GELU("tanh"), "gelu_none": GELU}


def epilogues():
    """By name, of all products since the last time."""
    names = [cublaslt_on_cpu.Epilogue(call.epilogue).name for call in cublaslt_on_cpu.calls]
    cublaslt_on_cpu.calls.clear()
    return names


def launched():
    """The kernels, without their types, since the last time."""
    names = [launch.kernel.partition("<")[0] for launch in stand_in.launches]
    stand_in.launches.clear()
    return names


def refusing(monkeypatch, *names):
    """Have cuBLASLt find no algorithm for products with such epilogues."""
    search = cublaslt_on_cpu.matmul_algo_get_heuristic

    def refuse(light_handle, operation_desc, *args):
        name = cublaslt_on_cpu.Epilogue(cublaslt_on_cpu._objects[operation_desc]["EPILOGUE"]).name
        if name.startswith(names):
            raise cublaslt_on_cpu.cuBLASLtError("not supported")
        search(light_handle, operation_desc, *args)

    monkeypatch.setattr(cublaslt_on_cpu, "matmul_algo_get_heuristic", refuse)


def test_a_net_is_three_products_a_layer_and_a_launch_for_each_gradient_of_a_relu(cupy):
    net = FullyConnectedNet([16, 130, 24], 12, 5, backend="cupy", rng=0)
    x, y = cupy.asarray(normals(10, 12)), cupy.asarray(np.arange(10) % 5)
    net.loss(x, y)
    epilogues(), launched()
    net.loss(x, y)
    forward = ["RELU_BIAS"] * 3 + ["BIAS"]
    assert epilogues() == [*forward, "BGRADA", *["DEFAULT", "DEFAULT"] * 3]
    assert launched() == ["cross_entropy", *["grad"] * 3, "nan_unless_finite"]
    net.loss(x)
    assert epilogues() == forward
    assert launched() == []


def test_a_gelu_by_tanh_and_its_gradient_come_with_products(cupy):
    net = Sequential(Affine(16), GELU("tanh"), Affine(5))
    Model(net, (12,), backend="cupy", rng=0)
    launched()
    out, cache = net.forward(cupy.asarray(normals(10, 12)), train=True)
    net.backward(out, cache)
    assert epilogues() == ["GELU_AUX_BIAS", "BIAS", "BGRADA", "DGELU_BGRAD", "DEFAULT", "DEFAULT"]
    assert launched() == []


@pytest.mark.parametrize(
    ("activation", "refused", "first", "launches"),
    [
        ("relu", "RELU", "DEFAULT", ["add_and_activate", "grad"]),
        ("gelu_tanh", "GELU_AUX", "DEFAULT", ["add_and_activate", "grad"]),
        ("gelu_tanh", "DGELU", "GELU_AUX_BIAS", ["grad"]),
    ],
)
def test_what_cublaslt_has_not_is_one_launch_of_a_kernel(cupy, monkeypatch, activation, refused, first, launches):
    refusing(monkeypatch, refused)
    net = Sequential(Affine(16), ACTIVATIONS[activation](), Affine(5))
    Model(net, (12,), backend="cupy", rng=0)
    launched()
    for _ in range(2):
        out, cache = net.forward(cupy.asarray(normals(10, 12)), train=True)
        net.backward(out, cache)
        assert epilogues() == [first, "BIAS", "BGRADA", "DEFAULT", "DEFAULT", "DEFAULT"]
        assert launched() == launches
    assert_as_on_numpy(lambda: Sequential(Affine(16), ACTIVATIONS[activation](), Affine(5)))


def test_where_an_output_is_exactly_0_no_gradient_passes(cupy):
    """As a ReLU has it, and cuBLASLt's gradient of it has not."""
    net = Sequential(Affine(3), ReLU(), Affine(2))
    Model(net, (4,), backend="cupy", rng=0)
    out, cache = net.forward(cupy.zeros((2, 4), "float32"), train=True)
    dx, _ = net.backward(cupy.ones(out.shape, "float32"), cache)
    assert dx.get().tolist() == [[0, 0, 0, 0]] * 2


@pytest.mark.parametrize("epilogues_left", [("DEFAULT",), ()])
def test_what_cublaslt_finds_and_refuses_all_the_same_is_computed_otherwise(
    cupy, products, monkeypatch, epilogues_left
):
    asked, matmul = [], cublaslt_on_cpu.matmul

    def refuse(light_handle, compute_desc, *args):
        asked.append(cublaslt_on_cpu.Epilogue(cublaslt_on_cpu._objects[compute_desc]["EPILOGUE"]).name)
        if asked[-1] not in epilogues_left:
            raise cublaslt_on_cpu.cuBLASLtError("not supported")
        matmul(light_handle, compute_desc, *args)

    monkeypatch.setattr(cublaslt_on_cpu, "matmul", refuse)
    a, b, bias = normals(6, 5), normals(5, 4, seed=1), normals(4, seed=2)
    for _ in range(2):
        out = products.matmul_bias(*map(cupy.asarray, (a, b, bias)))
        np.testing.assert_allclose(out.get(), a @ b + bias, rtol=1e-5, atol=1e-6)
    assert asked == ["BIAS", *["DEFAULT"] * (2 if epilogues_left else 1)]


def gradients(backend, net, kept, shape):
    """Output, scores, and the gradients by the input and the parameters, of a net on a backend."""
    asarray = backends.get(backend).asarray
    Model(net, shape[1:], dtype=kept, backend=backend, rng=0)
    for i, layer in enumerate(net.layers.values()):
        for values in layer.params.values():
            values[...] = asarray((normals(*values.shape, seed=i) / 2).astype(values.dtype))
    x = asarray(normals(*shape).astype(kept))
    out, cache = net.forward(x, train=True)
    dx, grads = net.backward(asarray(normals(*out.shape, seed=1).astype(kept)), cache)
    return [backends.to_numpy(array) for array in (out, net.infer(x), dx, *grads.values())]


def assert_as_on_numpy(make, kept="float32", shape=(10, 12)):
    """To some dozens of roundings, which a batch norm of ten rows multiplies; half types as float64 is."""
    host = gradients("numpy", make(), "float64" if kept in HALVES else kept, shape)
    device = gradients("cupy", make(), kept, shape)
    eps = 2 * HALVES[kept] if kept in HALVES else np.finfo(kept).eps
    for truth, result in zip(host, device, strict=True):
        assert result.dtype == np.dtype(kept)
        np.testing.assert_allclose(result.astype("float64"), truth, rtol=0, atol=128 * eps * np.abs(truth).max())


NETS = {
    "affine": lambda act: Sequential(Affine(16), act(), Affine(130), act(), Affine(5)),
    "linear": lambda act: Sequential(Linear(16), act(), Linear(130, bias=False), act(), Linear(5)),
    "an activation last": lambda act: Sequential(Affine(7), act()),
    "one unit": lambda act: Sequential(Affine(9), act(), Affine(1), act(), Affine(1)),
    "dropout between": lambda act: Sequential(
        Affine(16), act(), Dropout(0.5), Affine(16), act(), Dropout(0.0), Affine(3)
    ),
    "batch norm between": lambda act: Sequential(
        Linear(16, bias=False), BatchNorm(), act(), Affine(16), act(), BatchNorm(), Affine(3)
    ),
    "twice": lambda act: Sequential(Affine(8), act(), act(), Affine(8), act()),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("net", NETS)
def test_layers_with_an_activation_give_numpys_gradients(cupy, net, activation):
    assert_as_on_numpy(lambda: NETS[net](ACTIVATIONS[activation]))


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
@pytest.mark.parametrize("kept", ["float64", "float16", "bfloat16"])
def test_in_every_precision_they_do(cupy, activation, kept):
    if kept == "bfloat16":
        pytest.importorskip("ml_dtypes")
    assert_as_on_numpy(lambda: NETS["affine"](ACTIVATIONS[activation]), kept)
    assert {"relu": "RELU_BIAS", "gelu_tanh": "DGELU_BGRAD"}[activation] in epilogues()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_of_the_last_axis_they_do(cupy, activation):
    act = ACTIVATIONS[activation]
    assert_as_on_numpy(lambda: Sequential(Linear(16), act(), Linear(9), act(), Linear(3)), shape=(4, 3, 12))
    # Here the rows of the one are flattened for the other.
    assert_as_on_numpy(lambda: Sequential(Linear(16), act(), Affine(9), act(), Affine(3)), shape=(4, 3, 12))


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_an_epilogue_acts_before_results_are_rounded(cupy, activation):
    """On the sum in float32: that plus the bias, rounded in between, is 0 here."""
    x, w, b = (np.array(values, "float16") for values in ([[2048.0, 1.0]], [[1.0], [1.0]], [-2048.0]))
    out, _ = kernels.TABLE["layers.fused.activated", "cupy"](*map(cupy.asarray, (x, w, b)), activation)
    np.testing.assert_allclose(out.get(), [[{"relu": 1.0, "gelu_tanh": 0.8412}[activation]]], rtol=2.0**-11)


def test_where_an_output_was_no_number_no_gradient_passes(cupy):
    """As the definition has it, though cuBLASLt's ReLU makes 0 of it."""
    net = Sequential(Affine(3), ReLU(), Affine(2))
    Model(net, (4,), backend="cupy", rng=0)
    x = normals(2, 4)
    x[0, 0] = np.nan
    out, cache = net.forward(cupy.asarray(x), train=True)
    dx, _ = net.backward(cupy.ones(out.shape, "float32"), cache)
    assert dx.get()[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("place", [(0, 0), (7, 11)])
def test_a_loss_is_no_number_where_an_example_is_none(cupy, place):
    """By the gradients: the scores do not show it any more."""
    net = FullyConnectedNet([16, 16], 12, 5, backend="cupy", rng=0)
    x = normals(8, 12)
    x[place] = np.nan
    loss, _ = net.loss(cupy.asarray(x), cupy.asarray(np.arange(8) % 5))
    assert np.isnan(loss.get())
    assert "RELU_BIAS" in epilogues()


def test_a_kernel_of_ours_lets_what_is_no_number_pass(cupy, monkeypatch):
    refusing(monkeypatch, "RELU", "GELU")
    x, w = np.array([[np.nan], [np.inf], [-np.inf], [0.0]], "f"), np.ones((1, 1), "f")
    for activation in ACTIVATIONS:
        out, _ = kernels.TABLE["layers.fused.activated", "cupy"](cupy.asarray(x), cupy.asarray(w), None, activation)
        np.testing.assert_allclose(out.get(), [[np.nan], [np.inf], [0.0], [0.0]], atol=1e-30)


class DoubledAffine(Affine):
    """Whose output is twice as much, which `affine_forward` does not know."""

    def forward(self, x, train=False):
        out, cache = super().forward(x, train)
        return 2 * out, cache

    def backward(self, dout, cache, input_grad=True):
        return super().backward(2 * dout, cache, input_grad)


class DoubledReLU(ReLU):
    def forward(self, x, train=False):
        out, cache = super().forward(x, train)
        return 2 * out, cache

    def backward(self, dout, cache, input_grad=True):
        return super().backward(2 * dout, cache, input_grad)


@pytest.mark.parametrize(
    ("net", "fused"),
    [
        (lambda: Sequential(DoubledAffine(8), ReLU(), DoubledAffine(5), ReLU(), Affine(3)), 0),
        (lambda: Sequential(Affine(8), DoubledReLU(), Affine(5), DoubledReLU(), Affine(3)), 0),
        (lambda: OneByOne(Affine(8), ReLU(), Affine(5), ReLU(), Affine(3)), 0),
        (lambda: Sequential(Affine(8), ReLU(), DoubledAffine(5), ReLU(), Affine(3)), 1),
    ],
)
def test_subclasses_are_heard(cupy, net, fused):
    assert_as_on_numpy(net)
    assert epilogues().count("RELU_BIAS") == 2 * fused  # in the forward pass, and in that for the scores


@pytest.mark.parametrize("name", ["affine1", "relu1", "affine2", "relu2", "affine3"])
@pytest.mark.parametrize("method", ["forward", "infer", "backward"])
def test_a_method_set_on_a_layer_is_heard(cupy, name, method):
    calls = []

    def net():
        made = Sequential(Affine(8), ReLU(), Affine(5), ReLU(), Affine(3))
        real = getattr(made.layers[name], method)
        setattr(made.layers[name], method, lambda *args, **options: calls.append(1) or real(*args, **options))
        return made

    assert_as_on_numpy(net)
    assert len(calls) == {"forward": 4, "infer": 2, "backward": 2}[method]  # on both backends; for the scores, too


def test_layers_may_be_exchanged_from_pass_to_pass(cupy):
    net = Sequential(Affine(8), ReLU(), Affine(8), GELU(), Affine(3))
    Model(net, (12,), backend="cupy", rng=0)
    x, relu = cupy.asarray(normals(10, 12)), net.layers["relu1"]
    for layer, expected in [
        (relu, ["RELU_BIAS", "DEFAULT", "BIAS"]),
        (GELU("tanh"), ["GELU_AUX_BIAS", "DEFAULT", "BIAS"]),
        (Dropout(0.0), ["BIAS", "DEFAULT", "BIAS"]),
    ]:
        net.layers["relu1"] = layer
        net.forward(x, train=True)
        assert epilogues() == expected
    net.layers["relu1"] = net.layers["gelu1"] = relu
    out, cache = net.forward(x, train=True)
    assert epilogues() == ["RELU_BIAS", "RELU_BIAS", "BIAS"]
    net.backward(out, cache)
    assert epilogues() == ["BGRADA", *["DEFAULT", "DEFAULT"] * 2, "DEFAULT"]


def test_without_kernels_nothing_is_fused(cupy, monkeypatch):
    monkeypatch.setenv("XPNN_FAST", "0")
    kernels.fast_path.cache_clear()
    net = Sequential(Affine(8), ReLU(), Affine(3))
    Model(net, (12,), backend="cupy", rng=0)
    launched()
    out, cache = net.forward(cupy.asarray(normals(10, 12)), train=True)
    net.backward(out, cache)
    assert epilogues() == launched() == []


def test_layers_of_a_shape_share_their_plans(cupy):
    """Each with a bias and memory for what its activation leaves of its own."""
    results = []
    for backend in ("numpy", "cupy"):
        net = FullyConnectedNet([64] * 4, 64, 64, backend=backend, rng=0)
        x, y = (net.backend.asarray(values) for values in (normals(10, 64), np.arange(10)))
        for name, values in net.params.items():
            if name.startswith("b"):
                values[...] = net.backend.asarray(normals(64, seed=int(name[1:])))
        results.append([backends.to_numpy(net.loss(x, y)[1].flat) for _ in range(2)])
    # A product forward, one with a ReLU, and all ways back: by where arrays begin in memory, in two of them or three.
    assert len(cublaslt_on_cpu.searches) <= 3 * 5
    for host, device in zip(*results, strict=True):
        # There and back through five layers, each with sums of 64 products in another order.
        np.testing.assert_allclose(device, host, rtol=0, atol=64 * np.finfo("f").eps * np.abs(host).max())


def test_the_products_of_a_convolution_are_one_for_a_chunk_with_its_bias(cupy, monkeypatch):
    convolution = importlib.import_module("xpnn.kernels.cupy.convolution")
    x, w, b = cupy.array(channels_last(normals(6, 8, 5, 5))), cupy.array(normals(4, 4, 3, 3)), cupy.array(normals(4))
    monkeypatch.setattr(convolution, "COLUMNS", 3 * 25 * 72 * 4)  # three images
    convolution.correlate(x, w, b, Window((3, 3), pad=(1, 1)), 2)
    assert [call[:4] for call in cublaslt_on_cpu.calls] == [(2, 75, 36, 2)] * 2
    assert {call.epilogue for call in cublaslt_on_cpu.calls} == {cublaslt_on_cpu.Epilogue.BIAS}
    assert [launch.kernel for launch in stand_in.launches] == ["im2col<float, true>"] * 2
    assert len(cublaslt_on_cpu.searches) == 2  # the second results begin at a boundary of fewer bytes


# ---- against the bindings themselves, where they are installed


@pytest.fixture
def bindings():
    return needed("nvmath.bindings.cublasLt"), needed("nvmath.bindings.cublas")


def test_every_name_and_number_is_that_of_the_bindings(bindings):
    lt, cublas = bindings
    for ours in (
        "MatmulDescAttribute",
        "MatrixLayoutAttribute",
        "MatmulPreferenceAttribute",
        "Epilogue",
        "ReductionScheme",
    ):
        for member in getattr(cublaslt_on_cpu, ours):
            assert int(getattr(lt, ours)[member.name]) == member
    for member in cublaslt_on_cpu.ComputeType:
        assert int(cublas.ComputeType[member.name]) == member
    assert lt.matmul_heuristic_result_dtype == cublaslt_on_cpu.matmul_heuristic_result_dtype
    assert lt.matmul_algo_dtype == cublaslt_on_cpu.matmul_algo_dtype
    for of, name in (
        ("MatmulDescAttribute", "get_matmul_desc_attribute_dtype"),
        ("MatrixLayoutAttribute", "get_matrix_layout_attribute_dtype"),
        ("MatmulPreferenceAttribute", "get_matmul_preference_attribute_dtype"),
    ):
        for member in getattr(cublaslt_on_cpu, of):
            assert getattr(lt, name)(member) == getattr(cublaslt_on_cpu, name)(member)
    assert issubclass(lt.cuBLASLtError, Exception)


def test_every_call_has_the_arguments_of_the_bindings(bindings):
    lt, _ = bindings
    functions = [
        name
        for name, ours in vars(cublaslt_on_cpu).items()
        if name.startswith(("create", "get_version", "matmul", "matrix")) and inspect.isfunction(ours)
    ]
    assert len(functions) == 11
    for name in functions:
        theirs = getattr(lt, name).__doc__.splitlines()[
            0
        ]  # "matrix_layout_create(int type, uint64_t rows, ...) -> intptr_t"
        names = [arg.split()[-1] for arg in theirs[theirs.index("(") + 1 : theirs.index(")")].split(",") if arg]
        ours = list(inspect.signature(getattr(cublaslt_on_cpu, name)).parameters)
        renamed = {"matmul_desc": "handle", "mat_layout": "handle", "pref": "handle"} if "set_attribute" in name else {}
        assert ours == [renamed.get(arg, arg) for arg in names], name


def test_cuda_types_are_those_of_the_toolkit(cupy, products):
    nvmath = needed("nvmath")
    names = {"f": "CUDA_R_32F", "d": "CUDA_R_64F", "e": "CUDA_R_16F", "E": "CUDA_R_16BF"}
    for char, name in names.items():
        assert nvmath.CudaDataType[name] == products.cublaslt.CUDA_TYPES[char]
