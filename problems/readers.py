"""What TFDS has prepared, and tables that scikit-learn brings along, read into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .dataset import Batch, Dataset, DatasetDamaged, DatasetUnavailable

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DIGITS = "scikit-learn's 1,797 handwritten digits, 8×8 resized to 28×28"
TEXTS = ("tiny_shakespeare",)  # TFDS's datasets of a text a split
CHARACTERS = 64  # of a sequence of a text


def damaged(folder: Path, error: Exception) -> DatasetDamaged:
    return DatasetDamaged(
        f"The data in {folder} is damaged: {line(error)}. "
        "Remove that folder, and it is prepared anew"
    )


def line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_text(builder: tfds.core.DatasetBuilder, requested: str) -> Dataset:
    """A text, cut into sequences [n, 64] of indices of its characters, int32.

    Labels are the same sequences, a place further on; classes are the different characters.

    Raises:
        DatasetDamaged: It cannot be read.
    """
    import tensorflow_datasets as tfds

    try:
        texts = []
        for split in ("train", "validation", "test"):
            (example,) = tfds.as_numpy(builder.as_dataset(split=split))
            texts.append(np.frombuffer(example["text"], "uint8"))
    except Exception as error:  # TensorFlow's, TFDS' and NumPy's: there are a dozen kinds
        raise damaged(builder.data_path, error) from error
    known = np.unique(np.concatenate(texts))
    train, validation, test = (
        _sequences(np.searchsorted(known, text).astype("int32")) for text in texts
    )
    source = f"TFDS {builder.version}"
    return Dataset(requested, train, validation, test, requested, source, len(known))


def _sequences(indices: np.ndarray) -> Batch:
    stop = (len(indices) - 1) // CHARACTERS * CHARACTERS
    return Batch(*(indices[k : k + stop].reshape(-1, CHARACTERS) for k in (0, 1)))


def read_images(builder: tfds.core.DatasetBuilder, requested: str) -> Dataset:
    """Reads prepared data into memory and splits off the validation examples.

    Raises:
        DatasetDamaged: It cannot be read.
    """
    import tensorflow as tf

    embedded = builder.name == "digits"
    try:
        train, test = _read_split(builder, "train"), _read_split(builder, "test")
        held_out = len(train.labels) - min(5_000, len(train.labels) // 6)
        return images(
            "digits" if embedded else requested,
            requested,
            f"embedded, {DIGITS}" if embedded else f"TFDS {builder.version}",
            builder.info.features["label"].num_classes,
            Batch(train.inputs[:held_out], train.labels[:held_out]),
            Batch(train.inputs[held_out:], train.labels[held_out:]),
            test,
        )
    except (MemoryError, PermissionError, tf.errors.PermissionDeniedError) as error:
        raise DatasetDamaged(f"{builder.data_path} cannot be read: {line(error)}") from error
    except Exception as error:  # TensorFlow's, TFDS' and NumPy's: there are a dozen kinds
        raise damaged(builder.data_path, error) from error


def images(
    name: str,
    requested: str,
    source: str,
    classes: int,
    train: Batch,
    validation: Batch,
    test: Batch,
) -> Dataset:
    """A dataset of labelled images, uint8 or float, [n, height, width, channels] and [n].

    Raises:
        DatasetUnavailable: If a split is empty, its images or labels are no such arrays, or an
            image is not finite.
    """
    shape = train.inputs.shape[1:]
    for part, (pictures, labels, _) in zip(
        ("train", "validation", "test"), (train, validation, test), strict=True
    ):
        if pictures.ndim != 4 or pictures.dtype.kind not in "uf":
            raise DatasetUnavailable(f"Images of {pictures.dtype} with shape {pictures.shape}")
        if labels.shape != pictures.shape[:1] or labels.dtype.kind not in "iu":
            raise DatasetUnavailable(
                f"{len(pictures)} images, but labels of {labels.dtype} with shape {labels.shape}"
            )
        if pictures.dtype.kind == "f" and not np.isfinite(pictures).all():
            raise DatasetUnavailable("An image holds a value that is not finite")
        if not len(labels):
            raise DatasetUnavailable(f"{name}: the {part} split is empty")
        if pictures.shape[1:] != shape:
            raise DatasetUnavailable(
                f"{name}: {part} images of shape {pictures.shape[1:]} are not {shape}"
            )
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= classes:
            raise DatasetUnavailable(
                f"{name}: {part} labels from {lowest} to {highest} are not those of "
                f"{classes} classes"
            )
    return Dataset(name, train, validation, test, requested, source, classes)


def _read_split(builder: tfds.core.DatasetBuilder, split: str) -> Batch:
    """Decodes one of TFDS' splits, in its stored order."""
    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        batch_size=1_000,
        decoders=tfds.decode.PartialDecoding({"image": True, "label": True}),
        # TensorFlow's own choice takes longer to find than all the images to decode.
        read_config=tfds.ReadConfig(num_parallel_calls_for_decode=64, try_autocache=False),
    )
    batches = list(tfds.as_numpy(dataset))
    return Batch(
        inputs=np.concatenate([batch["image"] for batch in batches]),
        labels=np.concatenate([batch["label"] for batch in batches]).astype(np.int32),
    )


# --- tables -----------------------------------------------------------------------------------


def _table(name: str, classes: int | None, x: np.ndarray, y: np.ndarray) -> Dataset:
    """Rows in a fixed random order, a sixth for test and another for validation.

    Columns have mean 0 and variance 1 over the examples to train on; labels too, [n, 1], where they
    are no classes, [n].
    """
    order = np.random.default_rng(0).permutation(len(x))
    held_out = len(x) // 6

    def scaled(values: np.ndarray) -> np.ndarray:
        values = values[order].astype("float32")
        train = values[2 * held_out :]
        return (values - train.mean(0)) / train.std(0)

    inputs = scaled(x)
    labels = scaled(y[:, np.newaxis]) if classes is None else y[order].astype("int32")
    parts = (slice(2 * held_out, None), slice(held_out, 2 * held_out), slice(held_out))
    train, validation, test = (Batch(inputs[part], labels[part]) for part in parts)
    return Dataset(name, train, validation, test, name, "embedded, scikit-learn's", classes)


def _diabetes(name: str) -> Dataset:
    """442 patients: ten measurements, and how far the disease had gone a year later."""
    from sklearn.datasets import load_diabetes

    return _table(name, None, *load_diabetes(return_X_y=True))


def _breast_cancer(name: str) -> Dataset:
    """569 tumours: thirty measurements of cells' nuclei, and whether it is benign."""
    from sklearn.datasets import load_breast_cancer

    return _table(name, 2, *load_breast_cancer(return_X_y=True))


def _wine(name: str) -> Dataset:
    """178 wines: thirteen measurements, and which of three growers made it."""
    from sklearn.datasets import load_wine

    return _table(name, 3, *load_wine(return_X_y=True))


TABLES: dict[str, Callable[[str], Dataset]] = {
    "diabetes": _diabetes,
    "breast_cancer": _breast_cancer,
    "wine": _wine,
}
