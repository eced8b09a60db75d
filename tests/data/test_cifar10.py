"""CIFAR-10 is found in every form it is kept in, checked file by file, and downloaded only when asked to."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from xpnn.data import (
    cifar10,
    download_cifar10,
    find_cifar10,
    get_CIFAR10_data,
    load,
    load_CIFAR10,
    load_cifar10,
)
from xpnn.data.cifar10 import read_cifar10
from xpnn.errors import DataError

ROWS = 20
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
TITLES = (*(f"training batch {number} of 5" for number in range(1, 6)), "testing batch 1 of 1")
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

PIXELS = np.random.default_rng(0).integers(0, 256, (6, ROWS, 3072), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, (6, ROWS))
X_TRAIN, Y_TRAIN = PIXELS[:5].reshape(5 * ROWS, 3, 32, 32), LABELS[:5].reshape(5 * ROWS)
X_TEST, Y_TEST = PIXELS[5].reshape(ROWS, 3, 32, 32), LABELS[5]


@pytest.fixture(autouse=True)
def no_data_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv("XPNN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))


def batch(index, **changes):
    """What a file of the python version holds."""
    content = {
        "batch_label": TITLES[index].encode(),
        "labels": LABELS[index].tolist(),
        "data": PIXELS[index],
        "filenames": [b"image.png"] * ROWS,
    }
    return {key.encode(): value for key, value in (content | changes).items()}


@pytest.fixture
def python_folder(tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    write(
        folder / "batches.meta",
        {b"num_cases_per_batch": ROWS, b"label_names": [b"airplane"], b"num_vis": 3072},
    )
    for index, name in enumerate(BATCHES):
        write(folder / name, batch(index))
    return folder


@pytest.fixture
def binary_folder(tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES))
    for pixels, labels, name in zip(PIXELS, LABELS, BATCHES, strict=True):
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def packed(folder, name):
    """Pack a folder into an archive beside it, and remove the folder."""
    archive = folder.parent / name
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)
    return archive


def assert_is_the_stand_in(read):
    assert np.array_equal(read.X_train, X_TRAIN)
    assert np.array_equal(read.y_train, Y_TRAIN)
    assert np.array_equal(read.X_test, X_TEST)
    assert np.array_equal(read.y_test, Y_TEST)
    assert [array.dtype for array in read[:4]] == [np.uint8, np.int64, np.uint8, np.int64]
    assert read.class_names == CLASSES


def refusal(function, *arguments, **keywords):
    """The one line with which a function refuses."""
    with pytest.raises(DataError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Where the data lie


def test_reads_the_python_version_from_its_folder(python_folder):
    assert_is_the_stand_in(read_cifar10(python_folder))


def test_reads_the_python_version_from_a_folder_above(python_folder):
    assert find_cifar10(python_folder.parent) == python_folder
    assert_is_the_stand_in(read_cifar10(str(python_folder.parent)))


def test_reads_the_python_version_from_its_archive(python_folder):
    archive = packed(python_folder, "cifar-10-python.tar.gz")
    assert_is_the_stand_in(read_cifar10(archive))
    assert os.listdir(archive.parent) == [archive.name]


def test_reads_the_python_version_from_the_folder_of_its_archive(python_folder):
    archive = packed(python_folder, "cifar-10-python.tar.gz")
    assert find_cifar10(archive.parent) == archive
    assert_is_the_stand_in(read_cifar10(archive.parent))


def test_reads_the_binary_version_from_its_folder(binary_folder):
    assert_is_the_stand_in(read_cifar10(binary_folder, rows=ROWS))


def test_reads_the_binary_version_from_a_folder_above(binary_folder):
    assert_is_the_stand_in(read_cifar10(binary_folder.parent, rows=ROWS))


def test_reads_the_binary_version_from_its_archive(binary_folder):
    archive = packed(binary_folder, "cifar-10-binary.tar.gz")
    assert_is_the_stand_in(read_cifar10(archive, rows=ROWS))
    assert_is_the_stand_in(read_cifar10(archive.parent, rows=ROWS))


def test_reads_a_folder_and_an_archive_of_other_names(python_folder):
    renamed = python_folder.rename(python_folder.parent / "images")
    assert_is_the_stand_in(read_cifar10(renamed))
    assert_is_the_stand_in(read_cifar10(packed(renamed, "images.tgz")))


def test_an_archive_of_another_order_is_read(python_folder):
    archive = python_folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in reversed(("batches.meta", *BATCHES)):
            tar.add(python_folder / name, f"../../{name}")
    assert_is_the_stand_in(read_cifar10(archive))


def test_xpnn_data_names_the_folder(python_folder, monkeypatch):
    monkeypatch.setenv("XPNN_DATA", str(python_folder.parent))
    assert find_cifar10() == python_folder


def test_a_root_goes_before_xpnn_data(python_folder, monkeypatch):
    monkeypatch.setenv("XPNN_DATA", "/nowhere")
    assert find_cifar10(python_folder) == python_folder


def test_the_cache_of_the_user_comes_last(monkeypatch, python_folder):
    monkeypatch.setattr("pooch.os_cache", lambda project: python_folder.parent)
    assert find_cifar10() == python_folder


def test_says_where_it_looked_and_how_to_get_the_data(tmp_path):
    assert refusal(find_cifar10, tmp_path) == (
        f"CIFAR-10: looked in {tmp_path}; name its folder with `--data FOLDER` or XPNN_DATA, "
        "or download it with `xpnn train cifar10 --download`"
    )


def test_says_that_a_root_does_not_exist(tmp_path):
    assert f"looked in {tmp_path / 'no'}, which does not exist;" in refusal(find_cifar10, tmp_path / "no")


# What a file must be


@pytest.mark.parametrize("name", [*BATCHES])
def test_names_a_missing_file(python_folder, name):
    (python_folder / name).unlink()
    assert f"{python_folder}: expected the file {name}; received batches.meta, " in refusal(read_cifar10, python_folder)


def test_names_a_missing_binary_file(binary_folder):
    (binary_folder / "data_batch_4.bin").unlink()
    assert "expected the file data_batch_4.bin;" in refusal(read_cifar10, binary_folder, rows=ROWS)


def test_an_empty_folder_misses_every_file(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    assert refusal(read_cifar10, folder).startswith(f"{folder}: expected the file data_batch_1")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": PIXELS[2, :19]}, "expected data of shape (20, 3072); received shape (19, 3072)"),
        ({"data": PIXELS[2, :, :3071]}, "expected data of shape (20, 3072); received shape (20, 3071)"),
        ({"data": [1, 2]}, "expected data of shape (20, 3072); received a list of 2 int"),
        ({"data": None}, "expected data of shape (20, 3072); received None"),
        ({"data": PIXELS[2] / 255}, "b'data': expected an array of uint8 ('u1'); received dtype b'f8'"),
        ({"labels": [0] * 19 + [10]}, "expected labels from 0 to 9; received 10 for image 19"),
        ({"labels": [-1] + [0] * 19}, "expected labels from 0 to 9; received -1 for image 0"),
        ({"labels": [0] * 19}, "expected a list of 20 int as labels; received a list of 19 int"),
        ({"labels": ["9"] * 20}, "expected a list of 20 int as labels; received a list of 20 bytes"),
        ({"labels": b"0"}, "expected a list of 20 int as labels; received '0'"),
    ],
)
def test_refuses_a_batch_that_is_not_as_it_should_be(python_folder, changes, expected):
    write(python_folder / "data_batch_3", batch(2, **changes))
    assert refusal(read_cifar10, python_folder) == f"{python_folder / 'data_batch_3'}: {expected}"


@pytest.mark.parametrize(
    ("label", "received"),
    [
        (b"training batch 2 of 5", "'training batch 2 of 5'"),
        (b"testing batch 1 of 1", "'testing batch 1 of 1'"),
        (b"cats", "'cats'"),
        (None, "None"),
    ],
)
def test_refuses_a_batch_that_says_it_is_another(python_folder, label, received):
    write(python_folder / "data_batch_3", batch(2, batch_label=label))
    assert refusal(read_cifar10, python_folder) == (
        f"{python_folder / 'data_batch_3'}: expected batch_label 'train batch 3 of ...'; received {received}"
    )


def test_a_batch_saved_under_the_name_of_another_is_refused(python_folder):
    shutil.copy(python_folder / "data_batch_2", python_folder / "data_batch_3")
    assert "data_batch_3: expected batch_label 'train batch 3 of ...'" in refusal(read_cifar10, python_folder)


def test_a_training_batch_is_refused_as_the_test_batch(python_folder):
    shutil.copy(python_folder / "data_batch_1", python_folder / "test_batch")
    assert "test_batch: expected batch_label 'test batch 1 of ...'" in refusal(read_cifar10, python_folder)


def test_the_labels_of_other_copies_are_accepted(python_folder):
    for index, name in enumerate(BATCHES):
        title = TITLES[index].replace("ing", "").encode()
        write(python_folder / name, batch(index, batch_label=title))
    assert_is_the_stand_in(read_cifar10(python_folder))


def test_a_file_without_meta_is_expected_to_hold_10000_images(python_folder):
    (python_folder / "batches.meta").unlink()
    assert "expected data of shape (10000, 3072); received shape (20, 3072)" in refusal(read_cifar10, python_folder)


@pytest.mark.parametrize(
    ("rows", "received"), [(0, "0"), (10**9, "1000000000"), (None, "None"), ([1], "a list of 1 int")]
)
def test_refuses_an_impossible_number_of_images(python_folder, rows, received):
    write(python_folder / "batches.meta", {b"num_cases_per_batch": rows})
    assert refusal(read_cifar10, python_folder).endswith(
        f"batches.meta: expected num_cases_per_batch from 1 to 10000; received {received}"
    )


@pytest.mark.parametrize("size", [0, 100, 30_000, 61_000])
def test_names_a_truncated_batch(python_folder, size):
    whole = (python_folder / "data_batch_5").read_bytes()
    (python_folder / "data_batch_5").write_bytes(whole[:size])
    assert refusal(read_cifar10, python_folder).startswith(
        f"{python_folder / 'data_batch_5'}: expected a pickled dict of arrays; received something else ("
    )


def test_names_a_text_file(python_folder):
    (python_folder / "test_batch").write_text("<html>\n404\n</html>\n")
    assert f"{python_folder / 'test_batch'}: expected a pickled" in refusal(read_cifar10, python_folder)


def test_a_hostile_batch_is_refused_and_not_run(python_folder, tmp_path):
    marker = tmp_path / "marker"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    write(python_folder / "data_batch_1", batch(0, data=Hostile()))
    assert refusal(read_cifar10, python_folder) == (
        f"{python_folder / 'data_batch_1'}: refused to load {os.mkdir.__module__}.mkdir: "
        "a CIFAR-10 batch holds NumPy arrays only"
    )
    assert not marker.exists()


def test_refuses_a_binary_file_of_another_size(binary_folder):
    path = binary_folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(read_cifar10, binary_folder, rows=ROWS) == (
        f"{path}: expected 61460 bytes, 20 images; received 61459 bytes"
    )


def test_refuses_a_binary_label_above_nine(binary_folder):
    path = binary_folder / "test_batch.bin"
    records = bytearray(path.read_bytes())
    records[2 * 3073] = 10
    path.write_bytes(records)
    assert refusal(read_cifar10, binary_folder, rows=ROWS) == (
        f"{path}: expected labels from 0 to 9; received 10 for image 2"
    )


def test_names_a_truncated_archive(python_folder):
    archive = packed(python_folder, "cifar-10-python.tar.gz")
    archive.write_bytes(archive.read_bytes()[:200_000])
    assert refusal(read_cifar10, archive).startswith(f"{archive}: expected ")


def test_one_changed_image_in_an_archive_is_noticed(python_folder):
    archive = python_folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        tar.add(python_folder, python_folder.name)
    content = archive.read_bytes()
    row = PIXELS[2, 0].tobytes()
    archive.write_bytes(content.replace(row, row[::-1]))
    assert refusal(read_cifar10, archive).startswith(
        f"{archive}: expected CIFAR-10; reading it ended in CRC check failed"
    )


def test_names_a_file_that_is_no_archive(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_text("404\n")
    assert refusal(read_cifar10, tmp_path) == (
        f"{archive}: expected CIFAR-10; reading it ended in Not a gzipped file (b'40')"
    )


def test_links_in_an_archive_are_not_followed(python_folder):
    archive = python_folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, str(python_folder / "data_batch_1")
        tar.addfile(link)
    assert refusal(read_cifar10, archive) == f"{archive}: expected the file data_batch_1.bin; received none"


# What is made of it


def test_the_last_training_images_become_the_validation_split(python_folder):
    dataset = load_cifar10(python_folder, num_validation=30)
    assert np.array_equal(dataset.X_train, X_TRAIN[:70])
    assert np.array_equal(dataset.y_val, Y_TRAIN[70:])
    assert np.array_equal(dataset.X_test, X_TEST)
    assert dataset.name == "cifar10"
    assert dataset.class_names == CLASSES


def test_every_training_image_may_be_used_for_training(python_folder):
    dataset = load_cifar10(python_folder, num_validation=0)
    assert len(dataset.X_train) == 100
    assert len(dataset.X_val) == 0


@pytest.mark.parametrize("count", [-1, 100])
def test_refuses_a_validation_split_that_leaves_no_training_images(python_folder, count):
    assert refusal(load_cifar10, python_folder, count) == (
        f"CIFAR-10: expected num_validation from 0 to 99; received {count}"
    )


def test_load_passes_the_root_on(python_folder):
    assert refusal(load, "cifar10", python_folder).endswith("from 0 to 99; received 1000")


def test_the_course_loads_images_with_channels_last(python_folder):
    X_train, y_train, X_test, y_test = load_CIFAR10(python_folder)
    assert X_train.shape == (100, 32, 32, 3)
    assert X_train.dtype == np.float32
    assert X_train.flags.c_contiguous
    assert X_train[7, 3, 5, 2] == X_TRAIN[7, 2, 3, 5]
    assert np.array_equal(X_test, X_TEST.transpose(0, 2, 3, 1))
    assert np.array_equal(y_train, Y_TRAIN)
    assert np.array_equal(y_test, Y_TEST)


def test_the_course_subtracts_the_mean_of_the_training_images_from_all_splits(python_folder):
    data = get_CIFAR10_data(60, 30, 10, root=python_folder)
    mean = X_TRAIN[:60].astype(np.float64).mean(axis=0)
    assert np.array_equal(data["X_train"], (X_TRAIN[:60] - mean).astype(np.float32))
    assert np.array_equal(data["X_val"], (X_TRAIN[60:90] - mean).astype(np.float32))
    assert np.array_equal(data["X_test"], (X_TEST[:10] - mean).astype(np.float32))
    assert np.array_equal(data["y_train"], Y_TRAIN[:60])
    assert np.array_equal(data["y_val"], Y_TRAIN[60:90])
    assert np.array_equal(data["y_test"], Y_TEST[:10])


def test_the_course_gets_float32_images_in_c_order(python_folder):
    data = get_CIFAR10_data(60, 30, 10, root=python_folder)
    assert list(data) == ["X_train", "X_val", "X_test", "y_train", "y_val", "y_test"]
    for name in ("X_train", "X_val", "X_test"):
        assert data[name].shape[1:] == (3, 32, 32)
        assert data[name].dtype == np.float32
        assert data[name].flags.c_contiguous


def test_the_course_may_keep_the_mean(python_folder):
    data = get_CIFAR10_data(60, 30, 10, subtract_mean=False, root=python_folder)
    assert np.array_equal(data["X_val"], X_TRAIN[60:90])


@pytest.mark.parametrize(("train", "val"), [(71, 30), (0, 10), (10, -1)])
def test_the_course_refuses_more_images_than_there_are(python_folder, train, val):
    assert refusal(get_CIFAR10_data, train, val, 10, root=python_folder) == (
        "CIFAR-10: expected num_training from 1 and num_validation from 0, together at most 100; "
        f"received {train} and {val}"
    )


def test_the_course_refuses_more_test_images_than_there_are(python_folder):
    assert refusal(get_CIFAR10_data, 60, 30, 21, root=python_folder) == (
        "CIFAR-10: expected num_test from 0 to 20; received 21"
    )


# Downloading


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(python_folder, monkeypatch):
    """Serve the stand-in's archive on this machine, with its checksum as the published one."""
    archive = packed(python_folder, "cifar-10-python.tar.gz")
    served = archive.parent.rename(archive.parent.parent / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=served))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    monkeypatch.setattr(cifar10, "HASH", "md5:" + hashlib.md5((served / archive.name).read_bytes()).hexdigest())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


@pytest.mark.parametrize("progressbar", [True, False])
def test_downloads_the_archive(server, tmp_path, progressbar):
    folder = tmp_path / "new" / "folder"
    archive = download_cifar10(folder, progressbar=progressbar)
    assert archive == folder / "cifar-10-python.tar.gz"
    assert os.listdir(folder) == [archive.name]
    assert_is_the_stand_in(read_cifar10(folder))


def test_the_progress_bar_is_drawn_on_stderr_only_when_asked_for(server, tmp_path, capsys):
    download_cifar10(tmp_path / "a", progressbar=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "━━━" in shown.err
    download_cifar10(tmp_path / "b", progressbar=False)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "━━━" not in shown.err


def test_downloads_to_the_folder_that_xpnn_data_names(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XPNN_DATA", str(tmp_path / "mine"))
    assert download_cifar10(progressbar=False).parent == tmp_path / "mine"


def test_does_not_download_what_is_there(server, tmp_path, monkeypatch):
    archive = download_cifar10(tmp_path / "new", progressbar=False)
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:1/never-asked")
    assert download_cifar10(tmp_path / "new", progressbar=False) == archive


def test_replaces_a_damaged_archive(server, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "cifar-10-python.tar.gz").write_bytes(b"half")
    download_cifar10(tmp_path / "new", progressbar=False)
    assert_is_the_stand_in(read_cifar10(tmp_path / "new"))


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "HASH", "md5:00000000000000000000000000000000")
    message = refusal(download_cifar10, tmp_path / "new", progressbar=False)
    assert "does not match the known hash: expected md5:00000000000000000000000000000000" in message
    assert os.listdir(tmp_path / "new") == []


def test_a_missing_page_is_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", cifar10.URL + ".not")
    message = refusal(download_cifar10, tmp_path / "new", progressbar=True)
    assert message.startswith(f"CIFAR-10: cannot download {cifar10.URL} to {tmp_path / 'new'}: 404")
    assert os.listdir(tmp_path / "new") == []


def test_a_refused_connection_is_one_line(server, tmp_path, monkeypatch):
    server.shutdown()
    server.server_close()
    message = refusal(download_cifar10, tmp_path / "new", progressbar=False)
    assert message.startswith(f"CIFAR-10: cannot download {cifar10.URL} to {tmp_path / 'new'}: ")
    assert os.listdir(tmp_path / "new") == []


def test_a_folder_that_cannot_be_made_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot download" in refusal(download_cifar10, tmp_path / "file", progressbar=False)


def test_the_published_checksum_is_that_of_the_official_archive():
    assert cifar10.URL == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert cifar10.HASH == "md5:c58f30108f718f92721af3b95e74349a"


def test_importing_the_data_sets_imports_nothing_that_they_may_not_need():
    code = (
        "import sys, xpnn.data.cifar10\n"
        "print([m for m in ('pooch', 'rich', 'requests', 'tarfile', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout == "[]\n"
