"""Checkpoints: whole or not at all, and readable on any backend."""

import numpy as np
import pytest

from xpnn.errors import CheckpointError
from xpnn.training import checkpoint


def test_what_is_saved_comes_back(kind, tmp_path, dtype):
    x = np.arange(6.0).reshape(2, 3)
    arrays = {"x": kind(x, dtype), "xt": kind(x, dtype).T, "scalar": kind(2.5, dtype)}
    checkpoint.save(tmp_path / "c", arrays, {"epoch": 3})
    arrays, meta = checkpoint.load(tmp_path / "c")
    np.testing.assert_array_equal(arrays["x"], x)
    np.testing.assert_array_equal(arrays["xt"], x.T)
    assert (arrays["scalar"].shape, float(arrays["scalar"])) == ((), 2.5)
    assert arrays["x"].dtype == dtype
    assert meta == {"format": 1, "epoch": 3}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("old")

    def fail(partial):
        with open(partial, "w") as file:
            file.write("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        checkpoint.write_whole(path, fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("c.txt", "old")]


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(CheckpointError, match="bad: expected a checkpoint of xpnn"):
        checkpoint.load(tmp_path / "bad")


def test_a_truncated_checkpoint_is_named(tmp_path):
    checkpoint.save(tmp_path / "c", {"x": np.zeros(100)}, {})
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="c: expected a checkpoint of xpnn"):
        checkpoint.load(tmp_path / "c")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="none: there is no such file"):
        checkpoint.load(tmp_path / "none")


def test_what_cannot_be_read_is_not_called_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r": cannot be read \(Is a directory\)"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("place", ["header", "arrays"])
def test_a_flipped_bit_is_noticed(tmp_path, place):
    checkpoint.save(
        tmp_path / "c", {"x": np.arange(100.0), "empty": np.zeros((0, 3)), "one": np.ones(())}, {"epoch": 3}
    )
    data = bytearray((tmp_path / "c").read_bytes())
    data[data.index(b"epoch") if place == "header" else -7] ^= 1
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(CheckpointError, match="c: expected checksum [0-9a-f]{8}; received [0-9a-f]{8}: .* damaged"):
        checkpoint.load(tmp_path / "c")


def test_a_file_without_a_checksum_is_read(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "old", metadata={"xpnn": '{"format": 1}'})
    assert checkpoint.load(tmp_path / "old")[1] == {"format": 1}


def test_what_cannot_be_written_is_named_and_not_its_temporary_file(tmp_path):
    with pytest.raises(OSError, match="No such file or directory") as caught:
        checkpoint.save(tmp_path / "nowhere/c", {"x": np.zeros(3)}, {})
    assert caught.value.filename == str(tmp_path / "nowhere/c")


def test_someone_elses_safetensors_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="other: expected a checkpoint of xpnn"):
        checkpoint.load(tmp_path / "other")


def test_sections_undo_prefixes():
    arrays = checkpoint.prefixed("a", {"x": 1, "y/z": 2}) | checkpoint.prefixed("ab", {"x": 3})
    assert checkpoint.section("a", arrays) == {"x": 1, "y/z": 2}
