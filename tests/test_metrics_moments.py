"""FVD's and IS's formulas against closed forms and against other people's implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from vidrd_core.metrics.moments import Average, InceptionMoments, Moments, frechet_distance


def features(count: int, width: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + seed


def moments(values: Tensor, batch: int = 7) -> Moments:
    found = Moments(values.shape[1])
    for part in values.split(batch):
        found.update(part)
    return found


def probabilities(count: int, classes: int = 5, seed: int = 0) -> Tensor:
    return (2 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))).double().softmax(1)


class Flat(nn.Module):
    """Hands torchmetrics the "images" it is given as their features."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_streamed_moments_are_those_of_all_features_at_once() -> None:
    values = features(100) + 1e4  # far from zero, where sums of squares would cancel
    found = moments(values)
    assert found.count == 100
    assert np.allclose(found.mean, values.numpy().mean(0), rtol=0, atol=1e-9)
    assert np.allclose(found.covariance, np.cov(values.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_merged_moments_are_those_of_one_process() -> None:
    values = features(50)
    whole, first, second = moments(values), moments(values[:13]), moments(values[13:])
    first.merge(Moments(6))
    first.merge(Moments.from_tensors(second.tensors()))
    assert torch.allclose(first.covariance, whole.covariance) and torch.allclose(first.mean, whole.mean)


def test_identical_sets_have_a_distance_of_zero() -> None:
    assert frechet_distance(moments(features(80)), moments(features(80), batch=80)) == pytest.approx(0, abs=1e-8)


def test_shifted_gaussians_have_the_squared_shift_as_distance() -> None:
    values = features(200)
    shift = torch.tensor([3.0, 0, -4.0, 0, 0, 0]).double()
    assert frechet_distance(moments(values), moments(values + shift)) == pytest.approx(25, rel=1e-9)


def test_scaled_gaussians_have_the_known_distance() -> None:
    values = features(200)
    values -= values.mean(0)
    expected = (2 - 1) ** 2 * float(moments(values).covariance.trace())
    assert frechet_distance(moments(values), moments(2 * values)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [400, 5])  # 5 vectors of width 6: a singular covariance
def test_the_distance_agrees_with_scipys_matrix_root(count: int) -> None:
    first, second = features(count, seed=1), features(count + 3, seed=2)
    a, b = (np.cov(x.numpy(), rowvar=False) for x in (first, second))
    root = np.real(scipy.linalg.sqrtm(a @ b))
    expected = float(((first.mean(0) - second.mean(0)) ** 2).sum()) + np.trace(a + b - 2 * root)
    assert frechet_distance(moments(first), moments(second)) == pytest.approx(expected, rel=1e-5)


def test_the_distance_agrees_with_torchmetrics() -> None:
    first, second = (features(120, 12, seed).float().reshape(120, 3, 2, 2) for seed in (1, 2))
    theirs = FrechetInceptionDistance(feature=Flat(12), normalize=False, input_img_size=(3, 2, 2))
    theirs.set_dtype(torch.float64)
    theirs.update(first.double(), real=True)
    theirs.update(second.double(), real=False)
    ours = frechet_distance(moments(first.flatten(1)), moments(second.flatten(1)))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_features_of_another_width_or_with_nan_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 5\]; expected \[B, 6\]"):
        Moments(6).update(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="NaN"):
        Moments(6).update(torch.full((2, 6), math.nan))
    with pytest.raises(ValueError, match="at least 2 videos"):
        _ = moments(features(1)).covariance
    with pytest.raises(ValueError, match="6 and 5 wide"):
        frechet_distance(moments(features(9)), moments(features(9, 5)))


def test_uniform_predictions_score_one() -> None:
    found = InceptionMoments(5, splits=2)
    found.update(torch.full((8, 5), 0.2), [n % 2 for n in range(8)])
    assert found.score() == pytest.approx((1, 0), abs=1e-9)


def test_one_hot_predictions_of_all_classes_score_the_number_of_classes() -> None:
    found = InceptionMoments(5, splits=1)
    found.update(torch.eye(5).repeat(4, 1), [0] * 20)
    assert found.score().mean == pytest.approx(5)


def test_one_hot_predictions_of_one_class_score_one() -> None:
    found = InceptionMoments(5, splits=1)
    found.update(torch.eye(5)[:1].repeat(4, 1), [0] * 4)
    assert found.score().mean == pytest.approx(1)


def test_the_score_agrees_with_torchmetrics() -> None:
    values = probabilities(60)
    theirs = InceptionScore(feature=Flat(5), splits=1)
    theirs.update(values.log().reshape(60, 5, 1, 1))  # it applies a softmax itself
    found = InceptionMoments(5, splits=1)
    for part in values.split(9):
        found.update(part, [0] * len(part))
    assert found.score().mean == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


def test_merged_scores_are_those_of_one_process() -> None:
    values, splits = probabilities(40), [n * 4 // 40 for n in range(40)]
    whole, first, second = (InceptionMoments(5, 4) for _ in range(3))
    whole.update(values, splits)
    first.update(values[:17], splits[:17])
    second.update(values[17:], splits[17:])
    first.merge(InceptionMoments.from_tensors(second.tensors()))
    assert first.score() == pytest.approx(whole.score())
    assert whole.score().deviation > 0


def test_logits_are_no_probabilities() -> None:
    with pytest.raises(ValueError, match="softmax"):
        InceptionMoments(5).update(torch.randn(4, 5), [0] * 4)


def test_an_average_merges_and_needs_a_number() -> None:
    first, second = Average(), Average()
    first.update(torch.tensor([1.0, 2.0]))
    second.update(torch.tensor([6.0]))
    first.merge(Average.from_tensors(second.tensors()))
    assert first.mean == pytest.approx(3)
    with pytest.raises(ValueError, match="at least one"):
        _ = Average().mean
