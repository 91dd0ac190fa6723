"""Episodes of an evolution strategy: who begins a new fit when, how long, from where, on what.

All that is random derives from a key, so that nothing of this needs saving.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from l2o.tasks.batches import Stream, batch_indices, held_out
from l2o.tasks.task import Task, random_scale

STARTS = 32  # different initial weights: making a network takes longer than a window of a small one
FEWEST = 1_000  # examples of a subset, if there are as many
NOISY = (0.3, 10.0)  # range of the length of the noise on a gradient, which is cut to length 1
REPARAMETERISED = (0.03, 30.0)  # general range of the factor (after Celo, Moudgil et al. 2025)


@dataclass(frozen=True)
class Evolution:
    """How an evolution strategy estimates the meta-gradient (Li et al. 2023; Vicol et al. 2021).

    Attributes:
        noise_size: Standard deviation of the noise on the policy's weights.
        fresh_noise: Noise anew at every window, which is persistent evolution strategies; else one
            for a whole fit, noise-reuse evolution strategies.
        shortest: Steps of the shortest fit; the longest is the unroll. Log-uniform between.
        end_weight: The last fifth of a fit weighs as many times as the rest.
        loss_limit: A loss counts for at most as many times that of the fit's first step, or that of
            the problem before a fit, whichever is larger.
        gradient_norm: Longest meta-gradient.
        cosine: Whether the learning rate falls along half a cosine over a stage's most periods.
        subsets: Whether a fit has only some of the examples, from a thousand to all, log-uniform.
        reparameterised: Share of the fits whose parameters are divided by one factor, log-uniform
            between 0.03 and 30.
        untold: Share of the fits whose length the rule is not told.
        noisy: Share of the fits whose gradients are as under DP-SGD: cut to length 1, with Gaussian
            noise added, whose length is log-uniform between 0.3 and 10.
    """

    noise_size: float = 0.02
    fresh_noise: bool = False
    shortest: int = 200
    end_weight: float = 5.0
    loss_limit: float = 1.4
    gradient_norm: float = 3.0
    cosine: bool = False
    subsets: bool = False
    reparameterised: float = 0.0
    untold: float = 0.0
    noisy: float = 0.0

    def __post_init__(self):
        for name in ("noise_size", "end_weight", "gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be a number above 0. Received: {getattr(self, name)}"
                )
        if not 1 < self.loss_limit < math.inf:
            raise ValueError(f"loss_limit must be a number above 1. Received: {self.loss_limit}")
        if self.shortest < 1:
            raise ValueError(f"shortest must be at least 1. Received: {self.shortest}")
        for name in ("reparameterised", "untold", "noisy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, 0 to 1. Received: {getattr(self, name)}")


class Entry(NamedTuple):
    """One window of P pairs, as the device needs it.

    Attributes:
        fresh: Whether the fit begins, bools [P].
        start: Parameters [P, D] and carried values [P, ...] of fits that begin.
        scale: Of the coordinates, [P, D] or [P, 1].
        noise: On the policy's K weights, of deviation 1, [P, K].
        total: Of all noise that the fit has had, [P, K].
        step: Steps behind, float [P].
        steps, epochs: Of the whole fit, float [P].
        told: 1 where the rule knows these, else 0, [P].
        noisiness: Deviation of the noise on a coordinate of the gradient, [P]; 0 is none, and then
            the gradient is not cut either.
        seed: Of that noise, int32 [P, 2].
        examples, judged: Indices of those to train on, [P, W, B], and of those that the meta-loss
            is measured on, or ().
    """

    fresh: Any
    start: tuple[Any, list]
    scale: Any
    noise: Any
    total: Any
    step: Any
    steps: Any
    epochs: Any
    told: Any
    noisiness: Any
    seed: Any
    examples: Any
    judged: Any


@dataclass(frozen=True, eq=False)
class Episode:
    """One fit of a pair of particles.

    Attributes:
        key: Names it.
        steps: T, of the whole fit.
        begun: The window, counted for all pairs alike, that it begins with.
        end: The window after its last: before its end where it is the first of its pair, or all
            pairs would begin and end together; behind it where pairs are abreast.
        kept, tenth: Indices of the examples to train on, and of those held out or ().
    """

    key: tuple[int, ...]
    steps: int
    begun: int
    end: int
    kept: np.ndarray
    tenth: Any


@dataclass(frozen=True, eq=False)
class Timetable:
    """The episodes of P pairs of particles on one task, out of step with each other.

    Attributes:
        task: What is trained.
        key: Names the stream of episodes.
        pairs: By number.
        evolution: Settings.
        window: W, steps.
        longest: Steps of the longest fit, a multiple of W.
        weights: K, of the policy.
        scale_limit: Largest logarithm of a coordinate's random scale; 0 for none.
        held_out: Whether the meta-loss is measured on examples that the fit never trains on.
        abreast: Whether all begin together, with lengths evenly between, and only once: for
            validation.
    """

    task: Task
    key: tuple[int, ...]
    pairs: range
    evolution: Evolution
    window: int
    longest: int
    weights: int
    scale_limit: float = 0.0
    held_out: bool = False
    abreast: bool = False
    _now: dict[int, tuple[int, Episode]] = field(default_factory=dict)

    def entry(self, number: int) -> Entry:
        """Window `number`, counted from 0, of every pair."""
        parts = [self._part(self._episode(pair, number), number) for pair in self.pairs]
        return tf.nest.map_structure(lambda *x: np.stack(x), *parts)

    def _episode(self, pair: int, number: int) -> Episode:
        """The one of a pair that window `number` is in; asked in order, that takes no time."""
        count, episode = self._now.get(pair, (-1, None))
        if episode is None or number < episode.begun:
            count, episode = 0, self._drawn(pair, 0, 0)
        while number >= episode.end:
            count, episode = count + 1, self._drawn(pair, count + 1, episode.end)
        self._now[pair] = count, episode
        return episode

    def _drawn(self, pair: int, count: int, begun: int) -> Episode:
        """Number `count` of a pair's episodes."""
        key = (*self.key, pair, count)
        generator = np.random.default_rng(Stream.START.key(*key))
        shortest = min(self.evolution.shortest, self.longest)
        share = 1 - pair / len(self.pairs) if self.abreast else generator.uniform()
        steps = shortest * (self.longest / shortest) ** share
        windows = max(round(steps / self.window), 1)
        end = begun + windows
        if self.abreast:  # what follows a shorter fit counts for nothing
            end = begun + self.longest // self.window
        elif count == 0:
            end = begun + int(generator.integers(1, windows + 1))
        examples = len(self.task.dataset.train.labels)
        kept, tenth = held_out(examples, key) if self.held_out else (np.arange(examples), ())
        if self.evolution.subsets and len(kept) > FEWEST:
            size = int(FEWEST * (len(kept) / FEWEST) ** generator.uniform())
            kept = generator.permutation(kept)[: max(size, self.task.batch_size)]
        return Episode(key, windows * self.window, begun, end, kept, tenth)

    def _part(self, episode: Episode, number: int) -> Entry:
        """One pair's window; its arrays lack the axis P."""
        key, batch, dtype = episode.key, self.task.batch_size, keras.config.floatx()
        behind, again = number - episode.begun, self.evolution.fresh_noise
        noises = [_noise(key, k, self.weights) for k in range(behind + 1 if again else 1)]
        drawn = behind * self.window, self.window
        indices = batch_indices(Stream.BATCHES.key(*key), len(episode.kept), batch, *drawn)
        judged = ()
        if self.held_out:
            stream = Stream.HELD_OUT_BATCHES.key(*key)
            few = min(batch, len(episode.tenth))
            judged = episode.tenth[batch_indices(stream, len(episode.tenth), few, *drawn)]
        start, scale, told, noise = self._start(episode)
        seed = np.random.default_rng(Stream.GRADIENT_NOISE.key(*key)).integers(2**31, size=2)
        return Entry(
            fresh=np.bool_(behind == 0),
            start=start,
            scale=scale.astype(dtype),
            noise=noises[-1].astype(dtype),
            total=np.sum(noises, axis=0).astype(dtype),
            step=np.asarray(behind * self.window, dtype),
            steps=np.asarray(episode.steps, dtype),
            epochs=np.asarray(episode.steps / max(len(episode.kept) // batch, 1), dtype),
            told=np.asarray(told, dtype),
            noisiness=np.asarray(noise / math.sqrt(self.task.layout.size), dtype),
            seed=seed.astype("int32"),
            examples=episode.kept[indices].astype("int32"),
            judged=judged,
        )

    def _start(self, episode: Episode) -> tuple[tuple, np.ndarray, bool, float]:
        """Initial weights, the scale of their coordinates, [D] or [1], whether T is told, noise."""
        generator = np.random.default_rng(Stream.SCALE.key(*episode.key))
        start = _initial(self.task, int(generator.integers(STARTS)))
        scale = np.ones(1)
        if self.scale_limit:
            scale = random_scale(generator, self.task.layout.size, self.scale_limit)
        if generator.uniform() < self.evolution.reparameterised:
            scale = scale * np.exp(generator.uniform(*np.log(REPARAMETERISED)))
        told = generator.uniform() >= self.evolution.untold
        noisy = generator.uniform() < self.evolution.noisy
        return start, scale, told, noisy * np.exp(generator.uniform(*np.log(NOISY)))


_drawing = threading.Lock()  # initial weights come from generators that all threads share


@lru_cache(maxsize=32 * STARTS)
def _initial(task: Task, seed: int) -> tuple:
    with _drawing:
        return task.initial(seed)


@lru_cache(maxsize=4096)
def _noise(key: tuple[int, ...], window: int, size: int) -> np.ndarray:
    return np.random.default_rng([*Stream.NOISE.key(*key), window]).normal(size=size)
