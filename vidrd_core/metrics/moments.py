"""Running statistics of features, so that any number of videos needs memory for the moments only.

:class:`Moments` gives Frechet distances (FVD), :class:`InceptionMoments` inception scores (IS). Both add up in float64,
merge with those of other processes, and turn into tensors to be saved and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Moments:
    """Count, mean and covariance of feature vectors of width D, updated in batches (Chan, Golub and LeVeque, 1979)."""

    def __init__(self, width: int):
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)  # sum of (x - mean)(x - mean)^T

    def update(self, features: Tensor) -> None:
        """Add features ``[B, D]`` of any float type."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features are {list(features.shape)}; expected [B, {len(self.mean)}]")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features contain NaN or infinity: the detector or the videos are broken")
        if not len(features):
            return
        batch = Moments(len(self.mean))
        values = features.detach().to("cpu", torch.float64)
        batch.count = len(values)
        batch.mean = values.mean(0)
        centered = values - batch.mean
        batch.scatter = centered.T @ centered
        self.merge(batch)

    def merge(self, other: Moments) -> None:
        """Add everything that ``other`` has seen."""
        if not other.count:
            return
        total = self.count + other.count
        difference = other.mean - self.mean
        self.scatter += other.scatter + torch.outer(difference, difference) * (self.count * other.count / total)
        self.mean = self.mean + difference * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance ``[D, D]``."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 videos, got {self.count}")
        return self.scatter / (self.count - 1)

    def tensors(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        moments = cls(len(tensors["mean"]))
        moments.count = int(tensors["count"])
        moments.mean, moments.scatter = tensors["mean"].clone(), tensors["scatter"].clone()
        return moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Frechet distance of two Gaussians: ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (arXiv 1706.08500).

    The trace of the root comes from the eigenvalues of ``C1^(1/2) C2 C1^(1/2)``, which are those of ``C1 C2`` but of a
    symmetric matrix, so that singular covariances (fewer videos than features) need no regularisation.
    """
    if len(first.mean) != len(second.mean):
        raise ValueError(f"features are {len(first.mean)} and {len(second.mean)} wide; expected one detector for both")
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ second.covariance @ root
    trace_of_root = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    shift = (first.mean - second.mean).square().sum()
    distance = shift + first.covariance.trace() + second.covariance.trace() - 2 * trace_of_root
    return max(0.0, float(distance))


class Score(NamedTuple):
    """A mean over splits and its standard deviation (0 for one split)."""

    mean: float
    deviation: float


class InceptionMoments:
    """Running statistics of the probabilities of K classes for inception scores, in separate splits."""

    def __init__(self, classes: int, splits: int = 10):
        if classes < 2 or splits < 1:
            raise ValueError(f"classes is {classes} and splits {splits}; expected at least 2 and 1")
        self.counts = torch.zeros(splits, dtype=torch.float64)
        self.totals = torch.zeros(splits, classes, dtype=torch.float64)  # sum of p
        self.neg_entropies = torch.zeros(splits, dtype=torch.float64)  # sum of p log p

    def update(self, probabilities: Tensor, splits: Iterable[int]) -> None:
        """Add ``[B, K]`` rows that sum to 1; ``splits``: the split of each row."""
        index = torch.tensor(list(splits))
        values = probabilities.detach().to("cpu", torch.float64)
        if values.ndim != 2 or values.shape != (len(index), self.totals.shape[1]):
            raise ValueError(f"probabilities are {list(values.shape)}; expected [{len(index)}, {self.totals.shape[1]}]")
        if not len(values):
            return
        if bool((values < 0).any()) or not torch.allclose(values.sum(1), torch.ones(len(values)).double(), atol=1e-3):
            raise ValueError("probabilities must be 0 or more and sum to 1 in each row; apply a softmax to logits")
        self.counts.index_add_(0, index, torch.ones(len(values), dtype=torch.float64))
        self.totals.index_add_(0, index, values)
        self.neg_entropies.index_add_(0, index, torch.xlogy(values, values).sum(1))

    def merge(self, other: InceptionMoments) -> None:
        """Add everything that ``other`` has seen."""
        self.counts += other.counts
        self.totals += other.totals
        self.neg_entropies += other.neg_entropies

    def score(self) -> Score:
        """``exp(E[KL(p(y|x) || p(y))])`` (arXiv 1606.03498) of every split that has videos."""
        filled = self.counts > 0
        if not bool(filled.any()):
            raise ValueError("an inception score needs at least one video")
        counts, totals = self.counts[filled], self.totals[filled]
        marginal = totals / counts[:, None]
        divergence = self.neg_entropies[filled] / counts - torch.xlogy(marginal, marginal).sum(1)
        scores = divergence.exp()
        return Score(float(scores.mean()), float(scores.std(correction=0)))

    def tensors(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "totals": self.totals, "neg_entropies": self.neg_entropies}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> InceptionMoments:
        splits, classes = tensors["totals"].shape
        moments = cls(classes, splits)
        moments.counts, moments.totals = tensors["counts"].clone(), tensors["totals"].clone()
        moments.neg_entropies = tensors["neg_entropies"].clone()
        return moments


class Average:
    """A running mean of numbers."""

    def __init__(self, count: float = 0.0, total: float = 0.0):
        self.count, self.total = count, total

    def update(self, values: Tensor) -> None:
        self.count += values.numel()
        self.total += float(values.double().sum())

    def merge(self, other: Average) -> None:
        self.count += other.count
        self.total += other.total

    @property
    def mean(self) -> float:
        if not self.count:
            raise ValueError("a mean needs at least one number")
        return self.total / self.count

    def tensors(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count).double(), "total": torch.tensor(self.total).double()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Average:
        return cls(float(tensors["count"]), float(tensors["total"]))
