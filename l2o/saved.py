"""What files hold of an optimizer: the state of each variable by itself, however it is packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from keras import ops

from l2o.rules import State
from l2o.step import Group

_TENSOR = "tensor_"  # before the name of what belongs to a tensor as a whole
_LOSS_SCALE = 4  # variables of Keras' LossScaleOptimizer, before those of the optimizer within


def separated(groups: Sequence[Group], states: Sequence[State]) -> list[dict[str, np.ndarray]]:
    """The state of each of the model's variables, by name."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for group, state in zip(groups, states, strict=True):
        each: list[dict] = [{} for _ in group.members]
        for name, whole in state.coordinate.items():
            parts = group.cut(ops.convert_to_numpy(whole))
            for own, part in zip(each, parts, strict=True):
                own[name] = ops.convert_to_numpy(part)
        for name, whole in state.tensor.items():
            values = ops.convert_to_numpy(whole)
            for k, own in enumerate(each):
                own[_TENSOR + name] = values[..., k : k + 1]
        found |= dict(zip(group.members, each, strict=True))
    return [found[k] for k in sorted(found)]


def packed(groups: Sequence[Group], states: Sequence[State], parts: Sequence[Mapping]) -> list:
    """Pairs of a variable in `states` and what it holds, from what `separated` gave."""
    pairs = []
    for group, state in zip(groups, states, strict=True):
        own = [parts[k] for k in group.members]
        for name, variable in state.coordinate.items():
            pairs.append((variable, group.join([each[name] for each in own])))
        for name, variable in state.tensor.items():
            columns = np.concatenate([each[_TENSOR + name] for each in own], axis=-1)
            pairs.append((variable, columns))
    return pairs


def check_same(
    optimizer: str, saved: Sequence[np.ndarray], here: Mapping[str, np.ndarray], within: Sequence
) -> None:
    """Raises ValueError, which names what differs, if saved variables are not an optimizer's.

    Args:
        optimizer: Its name.
        saved: What was saved.
        here: What it would save.
        within: The shapes of its variables, as Keras' LossScaleOptimizer would save them.
    """
    names = dict(enumerate(here))
    there = {k: tuple(value.shape) for k, value in enumerate(saved)}
    own = {k: tuple(value.shape) for k, value in enumerate(here.values())}
    wrong = [
        f"{names.get(k, f'number {k}')} (saved: {there.get(k, 'no')}, here: {own.get(k, 'no')})"
        for k in {**own, **there}
        if there.get(k) != own.get(k)
    ]
    if not wrong:
        return
    if list(there.values())[_LOSS_SCALE:] in (list(own.values()), list(within)):
        raise ValueError(
            f"The variables saved for the optimizer are those of '{optimizer}' within Keras' "
            "LossScaleOptimizer, as a model of mixed_float16 has it: call "
            'keras.config.set_dtype_policy("mixed_float16") before loading the model'
        )
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise ValueError(
        f"The variables saved for the optimizer are not those of '{optimizer}', which has "
        f"{len(own)} where {len(there)} were saved. They differ in {', '.join(wrong[:5])}"
        f"{more}. Policy, averaging and which layers are trainable must be the same. "
        "To load a model's weights alone: keras.saving.load_model(path, compile=False), or "
        "model.load_weights before compiling it or with skip_mismatch=True."
    )
