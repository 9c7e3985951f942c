"""--strategy features: closed forms against scikit-learn's, and the fold against the scores themselves."""

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from edgetl.transfer import classifiers, probe

Floats = npt.NDArray[np.float64]


def _blobs(n: int, d: int, classes: int, seed: int = 0, apart: float = 1.0) -> tuple[Floats, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % classes
    mixing = rng.normal(size=(d, d)) / d**0.5
    return rng.normal(size=(n, d)) @ mixing + apart * rng.normal(size=(classes, d))[targets], targets


@pytest.mark.parametrize(("n", "d"), [(40, 8), (12, 30)])
@pytest.mark.parametrize("shrinkage", [0.1, 0.6])
@pytest.mark.parametrize("even", [True, False])
def test_discriminant_analysis_is_scikit_learns(n: int, d: int, shrinkage: float, even: bool) -> None:
    features, targets = _blobs(n, d, 3)
    features, targets = features[: n - 2], targets[: n - 2]  # classes of unequal size
    priors = np.full(3, 1 / 3) if even else None
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=priors).fit(features, targets)
    if even:  # scikit-learn weighs the classes' covariances with the priors too; ours pools the images
        theirs.covariance_ = sum(np.cov(features[targets == c].T, bias=True) * (targets == c).mean() for c in range(3))
        theirs.covariance_ = (1 - shrinkage) * theirs.covariance_ + shrinkage * np.trace(
            theirs.covariance_
        ) / d * np.eye(d)
        theirs.coef_ = np.linalg.solve(theirs.covariance_, theirs.means_.T).T
        theirs.intercept_ = -0.5 * (theirs.means_ * theirs.coef_).sum(1) + np.log(priors)
    ((weight, bias),) = classifiers.discriminants(features, targets, [shrinkage], even)
    np.testing.assert_allclose(weight, theirs.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bias, theirs.intercept_, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_gives_the_chosen_classifiers_answers_on_raw_features(classes: int) -> None:
    features, targets = _blobs(90, 12, classes, apart=0.7)
    raw = (features * np.linspace(0.01, 50, 12) + 7).astype(np.float32)
    found = classifiers.fit(raw, targets, classes, seed=0)
    scaled = StandardScaler().fit_transform(raw)
    if found.name == "ridge":
        theirs = RidgeClassifierCV(classifiers.ALPHAS).fit(scaled, targets)
    else:
        share = float(found.setting.split()[-1])
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share).fit(scaled, targets)
    logits = found.logits(raw)
    np.testing.assert_array_equal(logits.argmax(1), theirs.predict(scaled))
    scores = theirs.decision_function(scaled)
    ours = logits[:, 1] - logits[:, 0] if classes == 2 else logits - logits.mean(1, keepdims=True)
    theirs_centred = scores if classes == 2 else scores - scores.mean(1, keepdims=True)
    factor = (ours * theirs_centred).sum() / (theirs_centred**2).sum()
    assert factor > 0
    np.testing.assert_allclose(ours, factor * theirs_centred, rtol=1e-2, atol=1e-2 * np.abs(ours).max())


def test_the_best_in_cross_validation_is_chosen_and_said() -> None:
    features, targets = _blobs(120, 20, 4, apart=0.6)
    found = classifiers.fit(features.astype(np.float32), targets, 4, seed=0)
    assert found.accuracies[found.name] == max(found.accuracies.values())
    assert set(found.accuracies) == {"ridge", *(f"lda {s:g}" for s in classifiers.SHRINKAGES)}
    assert found.told.startswith(f"{found.name} ({found.setting}); cross-validated: ridge 0.")


def test_it_is_no_linear_probe() -> None:
    features, targets = _blobs(60, 20, 3)
    features = features.astype(np.float32)
    ours, theirs = classifiers.fit(features, targets, 3, seed=0), probe.fit(features, targets, 3, seed=0)
    cosine = (ours.weight * theirs.weight).sum() / np.linalg.norm(ours.weight) / np.linalg.norm(theirs.weight)
    assert cosine < 0.99


def test_the_softmax_of_the_scores_is_a_probability() -> None:
    """Ridge's scores lie between -1 and 1: unscaled they would call everything about even."""
    features, targets = _blobs(600, 10, 3, apart=1.5)
    found = classifiers.fit(features[:300].astype(np.float32), targets[:300], 3, seed=0)
    logits = found.logits(features[300:])
    chances = np.exp(logits - logits.max(1, keepdims=True))
    sure = (chances / chances.sum(1, keepdims=True)).max(1).mean()
    right = (logits.argmax(1) == targets[300:]).mean()
    assert abs(sure - right) < 0.06


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 5, 5), (2, 2, 2)])
def test_very_few_images_still_give_a_classifier(counts: tuple[int, ...]) -> None:
    targets = np.repeat(np.arange(3), counts)
    features = (np.eye(3)[targets] * 3 + np.random.default_rng(0).normal(size=(len(targets), 3))).astype(np.float32)
    found = classifiers.fit(features, targets, 3, seed=0)
    assert np.isfinite(found.weight).all() and np.isfinite(found.bias).all()
    assert bool(found.accuracies) == (max(counts) > 1)


def test_the_same_seed_gives_the_same_bits() -> None:
    features, targets = _blobs(60, 20, 3)
    one, two = (classifiers.fit(features.astype(np.float32), targets, 3, seed=4) for _ in range(2))
    assert (one.weight == two.weight).all() and one.told == two.told
