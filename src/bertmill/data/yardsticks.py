"""What a masked-token loss must be compared with before it means anything."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bertmill.config import MaskingSection
from bertmill.data.randomness import Ints
from bertmill.text.tokenizer import Tokenizer


class Yardsticks(NamedTuple):
    """Cross entropies, in nats a prediction, of predictors that learned no context."""

    unigram_nats: float
    """Training frequencies alone, whatever stands at the position."""
    no_context_nats: float
    """The best predictor that sees only the token shown at the position itself. A model that sits
    here has learned no context, however far below the word frequencies it is."""


def measure_yardsticks(
    token_counts: Ints,
    shown: Ints,
    labels: Ints,
    masking: MaskingSection,
    tokenizer: Tokenizer,
) -> Yardsticks:
    """Score the two context-free predictors on given masks.

    With training frequencies p (one added to each count) and the shares m shown as the mask token,
    r as a random one of R ordinary tokens, k = 1 - m - r as itself, the posterior of label y is
    p(y) at a mask token and, at any other shown token w,

        P(y | w) = (k p(w) [y = w] + r p(y) / R) / (k p(w) + r / R),

    where r is 0 if w is special, because replacements are ordinary tokens.

    Parameters
    ----------
    token_counts : ndarray of int64, shape (V,)
        Of the training split.
    shown, labels : ndarray of int64, shape (P,)
        The token at each predicted position, and the true one.
    """
    smoothed = token_counts + 1.0
    p = smoothed / smoothed.sum()
    unigram = -np.log(p[labels])
    kept = 1.0 - masking.mask_token_fraction - masking.random_token_fraction
    num_ordinary = np.count_nonzero(~tokenizer.is_special)
    random = np.where(
        tokenizer.is_special[shown], 0.0, masking.random_token_fraction / num_ordinary
    )
    # A share of 0 makes the shown token impossible; rounding may leave k a hair below 0.
    kept = max(kept, 0.0)
    numerator = kept * p[shown] * (shown == labels) + random * p[labels]
    denominator = kept * p[shown] + random
    visible = shown != tokenizer.mask_id
    no_context = unigram.copy()
    no_context[visible] = -np.log(numerator[visible] / denominator[visible])
    return Yardsticks(float(unigram.mean()), float(no_context.mean()))
