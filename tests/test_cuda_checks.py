"""The small checks of a device, as far as an emulation of CUDA and of its libraries goes."""

import importlib

import cublaslt_on_cpu
import cudnn_on_cpu
import pytest
import stand_in

from test_benchmarks_gpu import BENCHMARKS
from test_cuda import needed


@pytest.fixture
def device_checks(monkeypatch):
    """The module, with a stand-in for CuPy."""
    if stand_in.COMPILER is None or not BENCHMARKS.exists():
        pytest.skip("no g++ was found, or no benchmarks")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import device_checks

    with stand_in.installed():
        cublaslt_on_cpu.install()
        cudnn_on_cpu.install()
        yield device_checks


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("philox gives the bits of NumPy's", "three seeds, up to 1,000,003 numbers"),
        ("None is a null pointer to a kernel", None),
        ("cuBLASLt multiplies, float32 exactly and halves summed in float32", "all by cuBLASLt"),
        (
            "a bias's gradient comes with the product, BGRADA, exact in float32",
            "for float32 into float32, float16 into float16, bfloat16 into bfloat16, float64 into float64, "
            "float16 into float32, bfloat16 into float32",
        ),
        (
            "a ReLU or GELU comes with a product by cuBLASLt, and the gradient of a GELU by tanh, too",
            "refused: none; the ReLU of NaN is: float32 0.0, float16 0.0, bfloat16 0.0, float64 0.0",
        ),
        ("bfloat16 goes to the device, through a kernel and back", None),
        ("numbers are fetched while the device has other work, and nobody waits", None),
        ("the peak of memory has what is free again and a graph's own pool", "80 MB, then 120 MB"),
    ],
)
def test_a_check_passes_where_all_is_well(device_checks, name, words):
    if "bfloat16" in name or "halves" in name or "BGRADA" in name or "ReLU" in name:
        needed("ml_dtypes")
    assert device_checks.CHECKS[name]() == words


@pytest.mark.parametrize(
    ("has_exact_plans", "words"),
    [(True, "a plan for all"), (False, "no plan for float32 fprop; float32 wgrad; float32 dgrad")],
)
def test_cudnns_check_says_where_there_is_no_plan(device_checks, monkeypatch, has_exact_plans, words):
    needed("ml_dtypes")
    monkeypatch.setattr(device_checks, "CONVOLUTIONS", [((2, 3, 8, 8), (4, 3, 3, 3), 1)])
    monkeypatch.setattr(cudnn_on_cpu, "has_exact_plans", has_exact_plans)
    assert device_checks.CHECKS["cuDNN's plans give the results of the definition"]() == words


@pytest.mark.parametrize("fuses", [True, False])
def test_cudnns_check_says_where_it_rectifies(device_checks, monkeypatch, fuses):
    needed("ml_dtypes")
    monkeypatch.setattr(device_checks, "CONVOLUTIONS", 4 * [((2, 3, 8, 8), (4, 3, 3, 3), 1)])
    monkeypatch.setattr(cudnn_on_cpu, "fuses_relu", fuses)
    words = device_checks.CHECKS["a ReLU behind a convolution comes with cuDNN's plan"]()
    halves = [f"{half} {bias} a bias (of NaN: nan)" for half in ("float16", "bfloat16") for bias in ("with", "without")]
    assert words == ("; ".join(halves) if fuses else "cuDNN has it for none")


CAPTURED = ["a product by cuBLASLt is captured, each with its own bias", "a convolution by cuDNN is captured"]


@pytest.mark.parametrize("name", CAPTURED)
def test_what_a_replay_is_to_give_is_what_the_changed_inputs_give(device_checks, monkeypatch, name):
    device_checks.CHECKS[name]()
    monkeypatch.setattr(device_checks, "replayed", lambda work, change: work())
    with pytest.raises(AssertionError, match="times what roundings explain"):
        device_checks.CHECKS[name]()


def test_a_graph_keeps_its_arrays_and_counts_on_in_its_random_numbers(device_checks, monkeypatch):
    names = ["arrays of a captured graph keep their memory in a pool of their own"]
    names += ["random numbers go on from replay to replay"]
    for name in names:
        device_checks.CHECKS[name]()

    class Once(importlib.import_module("xpnn.kernels.cupy.graph").Graph):
        def __call__(self):
            self.result = getattr(self, "result", None) or [super().__call__().copy() * 0]
            return self.result[0]

    monkeypatch.setattr("xpnn.kernels.cupy.graph.Graph", Once)
    for name, words in zip(names, ["the graph's result was overwritten", "replay 0 drew others"], strict=True):
        with pytest.raises(AssertionError, match=words):
            device_checks.CHECKS[name]()
