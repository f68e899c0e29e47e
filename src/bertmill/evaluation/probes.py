"""Linear classifiers over fixed vectors: those of a frozen encoder, or TF-IDF.

For two texts with vectors u and v the features are u, v, |u - v| and u * v (Conneau and Kiela 2018,
SentEval).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from bertmill.data.randomness import Permutation, make_key
from bertmill.errors import MissingExtraError
from bertmill.model.task import Task
from bertmill.use.examples import Examples
from bertmill.use.pretrained import Pretrained

Targets = npt.NDArray[np.float64]
"""Class numbers, or the numbers to predict, [examples]."""
Features = Any
"""[examples, features], dense or sparse."""

_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of regularization to choose from."""
_CHOOSING_FRACTION = 0.1


def refuse_without_scikit_learn() -> None:
    """Raise `MissingExtraError` where the classifiers are not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "`tasks`", "needs scikit-learn", "type: pip install 'bertmill[evaluate]'"
        ) from None


def choosing_rows(num_examples: int, seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Split training examples at random: those to learn from, and a tenth to choose by."""
    order = Permutation(num_examples, make_key(seed, "choosing"))(np.arange(num_examples))
    num_choosing = max(1, round(_CHOOSING_FRACTION * num_examples))
    return order[num_choosing:], order[:num_choosing]


def encoder_features(model: Pretrained, examples: Examples) -> Features:
    """Compute features from sentence vectors, as `Pretrained.embed` makes them."""
    first = model.embed([str(text) for text in examples.first])
    if examples.second is None:
        return first
    second = model.embed(examples.second)
    return np.hstack([first, second, np.abs(first - second), first * second])


def tfidf_features(train: Examples, dev: Examples) -> tuple[Features, Features]:
    """Compute features from words and pairs of words, weighted by the training texts."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    words_and_marks = r"\w+|[^\w\s]"
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=words_and_marks, sublinear_tf=True
    )
    vectorizer.fit([str(text) for text in [*train.first, *(train.second or [])]])

    def features(examples: Examples) -> Features:
        first = vectorizer.transform(examples.first)
        if examples.second is None:
            return first
        second = vectorizer.transform(examples.second)
        return hstack([first, second, abs(first - second), first.multiply(second)]).tocsr()

    return features(train), features(dev)


def predict_constant(task: Task, train: Targets, num_dev: int) -> Targets:
    """Predict the most frequent class, or the mean, for every example."""
    if task.kind == "regression":
        return np.full(num_dev, train.mean())
    return np.full(num_dev, float(np.bincount(train.astype(np.int64)).argmax()))


def predict_linearly(
    task: Task, features: Features, targets: Targets, dev_features: Features, seed: int
) -> Targets:
    """Fit logistic or ridge regression, its strength chosen on a tenth of the training examples."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # A fit that has not quite converged is scored as it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        strength = _choose_strength(task, features, targets, seed)
        predicted: Targets = _fit(task, strength, features, targets).predict(dev_features)
    return predicted


def _choose_strength(task: Task, features: Features, targets: Targets, seed: int) -> float:
    learned, choosing = choosing_rows(len(targets), seed)
    if len(np.unique(targets[learned])) < 2:  # too few examples to learn from
        return _STRENGTHS[len(_STRENGTHS) // 2]

    def quality(strength: float) -> float:
        fitted = _fit(task, strength, features[learned], targets[learned])
        predicted, true = fitted.predict(features[choosing]), targets[choosing]
        if task.kind == "regression":
            return -float(np.mean((predicted - true) ** 2))
        return float(np.mean(predicted == true))

    return max(_STRENGTHS, key=quality)


def _fit(task: Task, strength: float, features: Features, targets: Targets) -> Any:
    from scipy.sparse import issparse
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    is_sparse = issparse(features)
    regression = (
        # The features of two texts are collinear, which only svd handles.
        Ridge(alpha=1 / strength, solver="auto" if is_sparse else "svd")
        if task.kind == "regression"
        else LogisticRegression(C=strength, max_iter=300)
    )
    # TF-IDF vectors have length 1 already.
    steps = [regression] if is_sparse else [StandardScaler(), regression]
    return make_pipeline(*steps).fit(features, targets)
