"""What people call: one function a verb. The command line prints what these return."""

from bertmill.api.judging import evaluate
from bertmill.api.pretraining import Run, prepare, pretrain
from bertmill.api.using import (
    Embedded,
    FineTuned,
    Predicted,
    embed,
    export,
    finetune,
    inspect,
    predict,
    similar_words,
)
from bertmill.data.store import Store
from bertmill.evaluation.frozen_pairs import FrozenScores
from bertmill.evaluation.minimal_pairs import MinimalPairScores
from bertmill.evaluation.tasks import AllTaskScores
from bertmill.train.validate import HeldOutScores
from bertmill.use.fill_mask import Filler
from bertmill.use.predict import Prediction
from bertmill.use.pretrained import Encoding, Pretrained, load
from bertmill.use.similar import SimilarWord

__all__ = [
    "AllTaskScores",
    "Embedded",
    "Encoding",
    "Filler",
    "FineTuned",
    "FrozenScores",
    "HeldOutScores",
    "MinimalPairScores",
    "Predicted",
    "Prediction",
    "Pretrained",
    "Run",
    "SimilarWord",
    "Store",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "predict",
    "prepare",
    "pretrain",
    "similar_words",
]
