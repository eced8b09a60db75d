"""Scripts written for the course run with nothing changed but their import lines."""

import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = sorted((Path(__file__).parent / "course").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_the_script_runs(script, cifar_stand_in, monkeypatch):
    monkeypatch.setenv("XPNN_DATA", str(cifar_stand_in))
    runpy.run_path(str(script), init_globals={"NUM_TRAINING": 80})


@pytest.fixture
def cifar_stand_in(tmp_path):
    """Noise in the official layout: 20 images a file."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], start=1):
        label = b"testing batch 1 of 1" if name == "test_batch" else f"training batch {i} of 5".encode()
        batch = {
            b"batch_label": label,
            b"labels": rng.integers(0, 10, 20).tolist(),
            b"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=3))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"num_cases_per_batch": 20}, protocol=3))
    return tmp_path
