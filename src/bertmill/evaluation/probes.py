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
    from scipy.sparse import issparse
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    # TF-IDF vectors have length 1 already.
    is_sparse = issparse(features)
    scaler = "passthrough" if is_sparse else StandardScaler()
    if task.kind == "regression":
        # The features of two texts are collinear, which only svd handles.
        linear, strengths = Ridge(solver="auto" if is_sparse else "svd"), "linear__alpha"
    else:
        linear, strengths = LogisticRegression(max_iter=300), "linear__C"
    values = [1 / each if task.kind == "regression" else each for each in _STRENGTHS]
    classifier = Pipeline([("scaler", scaler), ("linear", linear)])
    learned, choosing = choosing_rows(len(targets), seed)
    if len(np.unique(targets[learned])) < 2:  # too few examples to choose by
        classifier.set_params(**{strengths: values[len(values) // 2]})
    else:
        splits = [(learned, choosing)]
        classifier = GridSearchCV(classifier, {strengths: values}, scoring=_quality, cv=splits)
    with warnings.catch_warnings():
        # A fit that has not quite converged is scored as it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted: Targets = classifier.fit(features, targets).predict(dev_features)
    return predicted


def _quality(fitted: Any, features: Features, targets: Targets) -> float:
    predicted = fitted.predict(features)
    if hasattr(fitted, "classes_"):
        return float(np.mean(predicted == targets))
    return -float(np.mean((predicted - targets) ** 2))
