"""Where data comes from, and what is said when it does not."""

import errno
import functools
import gzip
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from l2o.problems import Dataset, DatasetUnavailable, datasets, get_problem, load_dataset
from l2o.problems.dataset import DatasetDamaged

_IDX = "{}-images-idx3-ubyte.gz", "{}-labels-idx1-ubyte.gz"


def silent(text: str) -> None:
    """A report that nobody reads."""


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine with neither prepared data nor a network."""
    import tensorflow_datasets  # noqa: F401  (what is timed below excludes imports)

    for variable in ("TFDS_DATA_DIR", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def equal(one: Dataset, other: Dataset) -> bool:
    """Whether two datasets hold the same examples in the same order."""
    return all(
        np.array_equal(getattr(a, field), getattr(b, field))
        for a, b in zip(
            (one.train, one.validation, one.test),
            (other.train, other.validation, other.test),
            strict=True,
        )
        for field in ("inputs", "labels")
    )


# --- the embedded digits ----------------------------------------------------------------------


def test_digits_are_real_digits_in_mnists_shape(bare):
    from sklearn.datasets import load_digits

    digits = load_dataset("digits")
    assert (digits.shape, digits.classes) == ((28, 28, 1), 10)
    assert [len(digits.train.labels), len(digits.validation.labels), len(digits.test.labels)] == [
        1_250,
        250,
        297,
    ]
    for split in (digits.train, digits.validation, digits.test):
        assert split.inputs.shape == (len(split.labels), 28, 28, 1)
        assert (split.inputs.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert split.inputs.max() == 255
    test_labels = load_digits().target[-297:]
    assert np.array_equal(np.bincount(digits.test.labels), np.bincount(test_labels))
    assert not digits.in_place_of


def test_digits_are_the_same_however_often_they_are_prepared(bare, monkeypatch):
    first = load_dataset("digits")
    assert equal(first, load_dataset("digits"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare / "another"))
    assert equal(first, load_dataset("digits"))


def test_nobodys_home_is_needed(bare, monkeypatch):
    """A container's user may have none."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    assert not load_dataset("digits").in_place_of
    with pytest.raises(DatasetUnavailable, match="not prepared in"):
        load_dataset("mnist", "tfds")


def test_digits_need_no_folder_that_can_be_written(bare, monkeypatch):
    (bare / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare / "file"))
    assert load_dataset("digits").sizes[2] == 297


def test_processes_may_prepare_the_digits_at_once(bare):
    program = "from l2o.problems import load_dataset; print(load_dataset('digits').sizes[0])"
    path = str(Path(__file__).parents[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in processes] == ["1250"] * 2


# --- no data at hand --------------------------------------------------------------------------


def test_auto_says_what_is_missing_and_goes_on_with_digits(bare):
    said, seconds = [], []

    def report(text: str) -> None:
        said.append(text)
        seconds.append(time.perf_counter() - start)

    (bare / "data").mkdir()
    start = time.perf_counter()
    dataset = load_dataset("mnist", data_dir=str(bare / "data"), report=report)
    text = "\n".join(said)
    assert seconds[-1] < 2
    for phrase in ("mnist is not at hand", "network", "TFDS_DATA_DIR", "--data-dir", "IN PLACE OF"):
        assert phrase in text
    assert str(bare / "data") in text
    assert (dataset.name, dataset.requested, dataset.in_place_of) == ("digits", "mnist", "mnist")
    assert "IN PLACE OF mnist" in dataset.description
    assert "\n" not in dataset.description


@pytest.mark.parametrize("data", ["auto", "tfds", "digits"])
def test_a_folder_that_is_not_there_is_an_error_and_not_made(bare, data):
    with pytest.raises(DatasetUnavailable, match="no folder of data at .*typo"):
        load_dataset("mnist", data, str(bare / "typo"), report=silent)
    assert not (bare / "typo").exists()


def test_a_stand_in_goes_through_the_problems_own_network(bare):
    problem = get_problem("svhn_cnn")
    dataset = load_dataset(problem.data, report=silent)
    model = problem.build(dataset)
    assert model.input_shape == (None, 28, 28, 1)
    assert model.count_params() == 18_122


def test_tfds_makes_it_an_error_at_once(bare, monkeypatch):
    def never_answers(*arguments, **options):
        time.sleep(5)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", never_answers)
    start = time.perf_counter()
    with pytest.raises(DatasetUnavailable, match="mnist is not at hand") as error:
        load_dataset("mnist", data="tfds", report=silent)
    assert time.perf_counter() - start < 2
    for remedy in ("network", "TFDS_DATA_DIR", "--data-dir", "train-images-idx3-ubyte.gz"):
        assert remedy in str(error.value)


def test_digits_on_request_say_so_without_looking_further(bare):
    said = []
    dataset = load_dataset("cifar10", data="digits", report=said.append)
    assert dataset.in_place_of
    assert "in place of cifar10" in said[0]


@pytest.mark.parametrize("name", ["no_such_dataset", "imdb_reviews", "imagenette"])
def test_what_is_no_dataset_of_images_of_one_shape_is_an_error(bare, name):
    with pytest.raises(ValueError, match=f"Received: '{name}'"):
        load_dataset(name, report=silent)


def test_an_unknown_choice_of_data_is_an_error():
    with pytest.raises(ValueError, match="'auto', 'tfds' or 'digits'. Received: 'fake'"):
        load_dataset("mnist", data="fake")


# --- raw official files -----------------------------------------------------------------------


def write_idx(folder: Path, seed: int) -> None:
    """Four files in MNIST's format: 60 training and 12 test examples of random pixels."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for split, count in (("train", 60), ("t10k", 12)):
        # TFDS skips the headers, 16 and 8 bytes long, without reading them.
        images = bytes(16) + random.integers(0, 256, count * 784, np.uint8).tobytes()
        labels = bytes(8) + random.integers(0, 10, count, np.uint8).tobytes()
        for pattern, content in zip(_IDX, (images, labels), strict=True):
            (folder / pattern.format(split)).write_bytes(gzip.compress(content))


@pytest.fixture
def official(bare, monkeypatch):
    """Makes TFDS take the files of a folder, which hold 72 images, for the official ones."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import mnist

    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 60)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 12)
    monkeypatch.setattr(checksums, "get_all_url_infos", dict)

    def register(name: str, folder: Path) -> None:
        builder = tfds.builder_cls(name)
        files = [pattern.format(split) for split in ("train", "t10k") for pattern in _IDX]
        infos = {builder.URL + file: checksums.compute_url_info(folder / file) for file in files}
        monkeypatch.setattr(builder, "url_infos", infos)

    return register


def raw_images(folder: Path, split: str = "train") -> np.ndarray:
    """The images of a raw file, in its own order."""
    content = gzip.decompress((folder / _IDX[0].format(split)).read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28, 1)


def images(dataset: Dataset) -> set[bytes]:
    """Training and validation images, whatever their order."""
    both = np.concatenate([dataset.train.inputs, dataset.validation.inputs])
    return {image.tobytes() for image in both}


def test_raw_files_directly_in_the_folder(bare, official):
    folder = bare / "raw"
    write_idx(folder, seed=1)
    official("mnist", folder)
    said = []
    dataset = load_dataset("mnist", data="tfds", data_dir=str(folder), report=said.append)
    assert [
        len(dataset.train.labels),
        len(dataset.validation.labels),
        len(dataset.test.labels),
    ] == [50, 10, 12]
    assert images(dataset) == {image.tobytes() for image in raw_images(folder)}
    assert str(bare / "home" / "tensorflow_datasets") in said[0]
    # Prepared once, it needs neither the files nor a word.
    assert equal(dataset, load_dataset("mnist", data="tfds", report=pytest.fail))


def test_files_of_one_name_do_not_become_each_others_data(bare, official):
    for seed, name in enumerate(("mnist", "fashion_mnist", "kmnist")):
        write_idx(bare / "raw" / name, seed)
        official(name, bare / "raw" / name)
    for name in ("mnist", "fashion_mnist", "kmnist"):
        dataset = load_dataset(name, data="tfds", data_dir=str(bare / "raw"), report=silent)
        assert images(dataset) == {i.tobytes() for i in raw_images(bare / "raw" / name)}


def test_a_place_that_is_not_needed_is_not_made(bare, official, monkeypatch):
    write_idx(bare / "raw", seed=1)
    official("mnist", bare / "raw")
    monkeypatch.setenv("TFDS_DATA_DIR", str(bare / "shared"))
    load_dataset("mnist", data="tfds", data_dir=str(bare / "raw"), report=silent)
    assert (bare / "shared" / "mnist").is_dir() and not (bare / "home").exists()


def test_raw_files_are_prepared_beside_where_the_default_cannot_be_written(
    bare, official, monkeypatch
):
    folder = bare / "raw"
    write_idx(folder, seed=1)
    official("mnist", folder)
    (bare / "file").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(bare / "file"))
    said = []
    load_dataset("mnist", data="tfds", data_dir=str(folder), report=said.append)
    assert f"Preparing mnist in {folder}" in said[0]
    assert (folder / "mnist").is_dir()
    assert not list(folder.glob("scratch-*"))


def test_a_file_that_is_not_the_official_one_is_refused(bare, official):
    folder = bare / "raw"
    write_idx(folder, seed=1)
    official("mnist", folder)
    file = folder / "train-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[1_000] ^= 1
    file.write_bytes(content)
    for data in ("tfds", "auto"):  # nothing stands in for what is there and damaged
        with pytest.raises(DatasetDamaged, match="checksum"):
            load_dataset("mnist", data=data, data_dir=str(folder), report=silent)
    file.write_bytes(content[:-1])
    with pytest.raises(DatasetUnavailable, match="size differs"):
        load_dataset("mnist", data="tfds", data_dir=str(folder), report=silent)


def test_files_still_being_extracted_do_not_hide_the_error(monkeypatch, tmp_path):
    """TFDS' threads go on for a while after it has raised: the folder is not empty at first."""
    rmdir, refused = os.rmdir, []

    def busy(path, **options):
        if not refused:
            refused.append(path)
            raise OSError(errno.ENOTEMPTY, "Directory not empty", path)
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", busy)
    with pytest.raises(ValueError, match="checksum"), datasets._scratch(tmp_path) as scratch:
        (scratch / "extracted").mkdir()
        raise ValueError("checksum")
    assert refused
    assert not list(tmp_path.iterdir())


def test_missing_raw_files_are_named(bare, official):
    folder = bare / "raw"
    write_idx(folder, seed=1)
    official("mnist", folder)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DatasetUnavailable, match="lacks t10k-labels-idx1-ubyte.gz"):
        load_dataset("mnist", data="tfds", data_dir=str(folder), report=silent)


# --- the network ------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Keeps the test's output clean."""


def test_a_network_that_answers_is_downloaded_from(bare, official, monkeypatch):
    import tensorflow_datasets as tfds

    write_idx(bare / "raw", seed=1)
    handler = functools.partial(_Quiet, directory=str(bare / "raw"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(tfds.builder_cls("mnist"), "URL", url)
        official("mnist", bare / "raw")
        dataset = load_dataset("mnist", data="tfds", report=silent)
        server.shutdown()
    assert images(dataset) == {image.tobytes() for image in raw_images(bare / "raw")}


# --- prepared data ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("svhn_cropped", (32, 32, 3), 10),
        ("kmnist", (28, 28, 1), 10),
        ("cifar100", (32, 32, 3), 100),
    ],
)
def test_shape_and_classes_are_those_of_tfds(bare, monkeypatch, name, shape, classes):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda builder: True)
    with tfds.testing.mock_data(num_examples=30):
        dataset = load_dataset(name, data="tfds", report=pytest.fail)
    assert (dataset.name, dataset.shape, dataset.classes) == (name, shape, classes)
    assert [
        len(dataset.train.labels),
        len(dataset.validation.labels),
        len(dataset.test.labels),
    ] == [25, 5, 30]
    assert dataset.train.inputs.shape == (25, *shape)
    assert (dataset.train.inputs.dtype, dataset.train.labels.dtype) == (np.uint8, np.int32)
    assert dataset.train.labels.max() < classes


@pytest.mark.parametrize("by", ["environment", "argument"])
def test_real_mnist(by, bare, monkeypatch, prepared):
    if by == "environment":
        monkeypatch.setenv("TFDS_DATA_DIR", prepared)
    data_dir = prepared if by == "argument" else None
    mnist = load_dataset("mnist", data="tfds", data_dir=data_dir, report=pytest.fail)
    assert [len(mnist.train.labels), len(mnist.validation.labels), len(mnist.test.labels)] == [
        55_000,
        5_000,
        10_000,
    ]
    assert mnist.test.inputs.mean() == pytest.approx(33.7912, abs=1e-3)
    counts = np.bincount(np.concatenate([mnist.train.labels, mnist.validation.labels]))
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert not mnist.in_place_of


@pytest.fixture(scope="module")
def prepared():
    """The folder of prepared data that TFDS_DATA_DIR names outside the tests."""
    folder = os.environ.get("TFDS_DATA_DIR", "")
    if not folder or not (Path(folder) / "mnist").is_dir():
        pytest.skip("real MNIST is not prepared: TFDS_DATA_DIR names no folder that has it")
    return folder
