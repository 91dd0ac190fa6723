"""Datasets by name, as arrays in memory: labelled images and texts of TFDS, tables of scikit-learn.

Data is looked for where it costs nothing before anything else is tried: prepared TFDS data, then
raw official files, then the network. TFDS itself would first spend minutes retrying a download.

TFDS and TensorFlow are imported inside the functions, so that importing this module is cheap.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from l2o.extras import require

from .dataset import Dataset, DatasetDamaged, DatasetUnavailable, ProblemError
from .readers import DIGITS, TABLES, TEXTS, damaged, read_images, read_text

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_PROBE_SECONDS = 1.2


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS' progress bars and warnings off the screen."""
    require("train", "l2o.problems.load_dataset")
    import tensorflow_datasets as tfds
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


@_quiet()
def load_dataset(
    name: str,
    data: str = "auto",
    data_dir: str | None = None,
    report: Callable[[str], None] = print,
) -> Dataset:
    """Loads a dataset into memory.

    Prepared data is looked for in `data_dir`, in TFDS_DATA_DIR, and in TFDS' default folder. Raw
    official files are looked for in `data_dir` and in its subfolder called `name`.

    Args:
        name: A TFDS dataset of labelled images with splits "train" and "test", "digits", or a name
            in `TEXTS` or `TABLES`.
        data: What to do where images cannot be had: "auto" goes on with the embedded digits and
            says so, "tfds" raises. "digits" uses the digits in any case. Nothing stands in for
            texts, and tables are embedded.
        data_dir: A folder of prepared TFDS data or of raw official files.
        report: Told, a text at a time, whatever a person should know.

    Raises:
        ValueError: `data` is none of the three, or TFDS has no dataset of images called `name`.
        DatasetUnavailable: The dataset cannot be had, and `data` is "tfds"; or it is damaged; or
            `data_dir` is no folder.
        ImportError: A package of the extra "train" is missing.
    """
    if data_dir is not None and not _expanded(data_dir).is_dir():
        raise DatasetUnavailable(f"There is no folder of data at {data_dir}")
    if data not in ("auto", "tfds", "digits"):
        raise ValueError(f"data must be 'auto', 'tfds' or 'digits'. Received: {data!r}")
    if name == "digits":
        return _load_digits(name)
    if name in TABLES:
        return TABLES[name](name)
    if data == "digits":
        if name in TEXTS:
            raise DatasetUnavailable(f"The digits cannot be used in place of {name}, a text")
        report(f"The embedded digits are used in place of {name}, as asked: {DIGITS}.")
        return _load_digits(name)
    try:
        return _reader(name)(_find(name, data_dir, report), name)
    except DatasetUnavailable as missing:
        if data == "tfds" or name in TEXTS or isinstance(missing, DatasetDamaged):
            raise
        report(
            f"{missing}\nGoing on with the embedded digits IN PLACE OF {name}: {DIGITS}. "
            f"Results are the digits', not {name}'s; --data tfds makes this an error."
        )
        return _load_digits(name)


def _reader(name: str) -> Callable[[tfds.core.DatasetBuilder, str], Dataset]:
    return read_text if name in TEXTS else read_images


# --- finding and preparing --------------------------------------------------------------------


def _expanded(path: str | Path) -> Path:
    """A path with its `~` expanded where there is a home; `Path.expanduser` raises without one."""
    return Path(os.path.expanduser(path))


def _find(
    name: str, data_dir: str | None, report: Callable[[str], None]
) -> tfds.core.DatasetBuilder:
    """The prepared builder of a dataset, preparing or downloading it where that is possible."""
    folders = [_expanded(data_dir)] if data_dir else []
    default = _expanded("~/tensorflow_datasets")
    # The environment is read here: TFDS reads it once, when it is first imported.
    shared = _expanded(os.environ.get("TFDS_DATA_DIR") or default)
    places = list(dict.fromkeys([*folders, shared, default]))
    for place in places:
        builder = _builder(name, place)
        if builder.is_prepared():
            return builder

    files = {info.filename: info.size for info in (builder.url_infos or {}).values()}
    raw, remarks = None, []
    for folder in (folder / part for folder in folders for part in (name, "")):
        present = [file for file in files if (folder / file).is_file()]
        # Sizes tell mnist's files from fashion_mnist's and kmnist's, which have the same names.
        wrong = [file for file in present if (folder / file).stat().st_size != files[file]]
        lacking = [file for file in files if file not in present]
        if wrong:
            remarks.append(f"{wrong[0]} in {folder} is not {name}'s (its size differs)")
        elif present and lacking:
            remarks.append(f"{folder} lacks {', '.join(lacking)}")
        elif present:
            raw = folder
            break
    if raw is None and not (builder.url_infos and _reachable(next(iter(builder.url_infos)))):
        hosts = {urlsplit(url).hostname for url in builder.url_infos or {}}
        raise _unavailable(
            name,
            files,
            f"it is not prepared in {' or '.join(map(str, places))}",
            *remarks,
            f"{', '.join(sorted(hosts)) or 'its source'} cannot be reached",
        )

    target = next(filter(_writable, (shared, *folders, default)), None)
    if target is None:
        raise _unavailable(name, files, f"{shared} cannot be written, so it cannot be prepared")
    size = sum(files.values()) / 2**20
    origin = f"the files in {raw}" if raw else f"a download of {size:,.0f} MiB"
    report(f"Preparing {name} in {target} from {origin}: once, and it may take some minutes.")
    try:
        return _prepare(name, target, raw)
    except Exception as error:  # Whatever TFDS, the network or the disk may come up with.
        said = f"preparing it from {origin} failed: {error}"
        if raw and not isinstance(error, OSError):
            raise DatasetDamaged(f"{name} cannot be had: {said}") from error
        raise _unavailable(name, files, said) from error


def _unavailable(name: str, files: dict[str, int], *reasons: str) -> DatasetUnavailable:
    """The exception that says why a dataset is missing, and what a person can do about it."""
    listed = f" ({', '.join(files)})" if files else ""
    return DatasetUnavailable(
        f"{name} is not at hand: {'; '.join(reasons)}.\n"
        f"Remedies: a network, from which TFDS downloads it; TFDS_DATA_DIR set to a folder of "
        f"prepared TFDS data; or --data-dir with such a folder or with the official files{listed}."
    )


def _builder(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    """TFDS' builder for a dataset kept in a folder, which need not exist.

    Raises:
        ValueError: TFDS has no such dataset, or it is not one of labelled images of one shape.
    """
    import tensorflow_datasets as tfds

    from . import digits  # noqa: F401  (registers the builder)

    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise ProblemError(f"TFDS has no dataset of that name. Received: {name!r}") from None
    except Exception as error:  # it reads what is in the folder
        raise damaged(folder / name, error) from error
    features, splits = builder.info.features, builder.info.splits
    if name in TEXTS:
        return builder
    if not {"image", "label"} <= set(features) or None in features["image"].shape:
        raise ProblemError(
            f"A dataset of labelled images of one shape is needed. Received: {name!r}"
        )
    if splits and not {"train", "test"} <= set(splits):
        raise ProblemError(f"A dataset with splits train and test is needed. Received: {name!r}")
    return builder


def _prepare(name: str, target: Path, raw: Path | None = None) -> tfds.core.DatasetBuilder:
    """Has TFDS write a dataset into a folder, from raw files or from the network."""
    import tensorflow_datasets as tfds

    builder = _builder(name, target)
    if builder.is_prepared():
        return builder
    target.mkdir(parents=True, exist_ok=True)
    # A scratch folder of its own for each preparation: in a shared one TFDS takes the extracted
    # files of mnist for those of fashion_mnist, for their names are the same.
    # TFDS announces itself on stdout; what a person needs to know has been reported already.
    silence = contextlib.redirect_stdout(io.StringIO())
    with _scratch(target) as scratch, silence:
        config = tfds.download.DownloadConfig(
            manual_dir=raw, extract_dir=scratch / "extracted", try_download_gcs=False
        )
        try:
            builder.download_and_prepare(download_dir=scratch / "downloads", download_config=config)
        except Exception:
            # Another process may have finished first: TFDS then fails to put its folder in place.
            builder = _builder(name, target)
            if not builder.is_prepared():
                raise
    return builder


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder below `target` that is gone afterwards.

    Where one file is refused, TFDS' threads may still be extracting the others into it: it is
    then emptied until they have ended, and never in place of the error that says what is wrong.
    """
    scratch = Path(tempfile.mkdtemp(dir=target, prefix="scratch-"))
    try:
        yield scratch
    finally:
        for _ in range(50):
            shutil.rmtree(scratch, ignore_errors=True)
            if not scratch.exists():
                break
            time.sleep(0.1)


def _reachable(url: str) -> bool:
    """Whether `url` answers within about a second, through a proxy where one is set."""
    answers = []

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError):
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
                answers.append(url)

    # In a thread, because looking up a host's name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return bool(answers)


def _writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


# --- reading ----------------------------------------------------------------------------------


def _load_digits(requested: str) -> Dataset:
    """The embedded digits, prepared in the user's cache or, failing that, in a temporary folder."""
    cache = _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "l2o" / "tfds"
    if _writable(cache):
        return read_images(_prepare("digits", cache), requested)
    with tempfile.TemporaryDirectory(prefix="l2o-") as folder:
        return read_images(_prepare("digits", Path(folder)), requested)
