"""Which devices a run is spread over."""

import numpy as np
import pytest

from l2o.runs.devices import RunError, chosen_devices


@pytest.mark.parametrize(
    "devices, gpus, names",
    [
        (None, 0, "cpu:0"),
        (3, 0, "cpu:0 cpu:1 cpu:2"),
        (None, 3, "gpu:0 gpu:1 gpu:2"),
        (2, 3, "gpu:0 gpu:1"),
        (("gpu:2", "gpu:0"), 3, "gpu:2 gpu:0"),
        (("gpu:1", "gpu:1"), 3, "gpu:1"),
        ("gpu:1", 3, "gpu:1"),
    ],
)
def test_devices_by_number_and_by_name(devices, gpus, names):
    if isinstance(devices, int):
        assert chosen_devices(np.int64(devices), gpus) == chosen_devices(devices, gpus)
    assert chosen_devices(devices, gpus) == [f"/{name}" for name in names.split()]


@pytest.mark.parametrize(
    "devices, gpus, message",
    [
        (4, 3, "there are 3 GPUs. Received: 4"),
        (-1, 0, "at most 64 logical ones. Received: -1"),
        (65, 0, "at most 64 logical ones. Received: 65"),
        (("gpu:0", "gpu:3"), 3, "there is gpu:0, gpu:1, gpu:2. Received: gpu:3"),
        (("cpu:0",), 0, "there is no GPU. Received: cpu:0"),
    ],
)
def test_devices_that_are_not_there(devices, gpus, message):
    with pytest.raises(RunError, match=f"--devices: {message}$"):
        chosen_devices(devices, gpus)
