"""A model as one ONNX file, which onnxruntime computes without torch or bertmill.

::

    model.onnx       input_ids, attention_mask, token_type_ids [B, L] -> last_hidden_state [B, L, D]
                     and, with a head, logits [B, C], [B, L, C] for words or [B, L, V] for masks
    model.int8.onnx  the same with weights of 8 bits
    config.json  tokenizer.json  tokenizer_config.json  vocab.txt  bertmill.json

Letters in shapes: B sequences, L tokens of the longest, N tokens of all, D hidden, C classes, V
vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bertmill.errors import InputError, MissingExtraError, ModelError
from bertmill.evaluation.held_out import open_held_out, score_held_out
from bertmill.model.architecture import architecture_of
from bertmill.model.folder import LoadedModel, load_model, save_description
from bertmill.model.packed import Encoder, PackedTokens, Selection
from bertmill.model.pooling import longest_text
from bertmill.model.pretraining import PretrainingModel
from bertmill.model.task import TaskModel
from bertmill.storage import folder_that_appears_whole, refuse_if_there, write_json
from bertmill.train.validate import HeldOut, HeldOutScores
from bertmill.use.pretrained import refuse_without_masked_token_head

ONNX_FILE, INT8_FILE, _REPORT_FILE = "model.onnx", "model.int8.onnx", "onnx.json"
LARGEST_DIFFERENCE = 1e-4
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_HIDDEN, _LOGITS = "last_hidden_state", "logits"
_OPSET = 18  # the exporter's own; LayerNormalization is one operator since 17
_LONGEST_COMPARED = 512


def export_onnx(
    model: str | Path,
    out: str | Path,
    int8: bool,
    sources: Sequence[str],
    settings: Sequence[str],
    say: Callable[[str], None],
    workers: int | None = 1,
    masked_tokens: bool = False,
) -> Path:
    """Write a folder for onnxruntime: network, tokenizer, and a report on accuracy.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    out : str or Path
        The new folder, which must not exist yet.
    int8 : bool
        Whether to write the network with weights of 8 bits too.
    sources, settings, say, workers
        Text to evaluate the files on, as in `evaluate_held_out`; none leaves that out.
    masked_tokens : bool
        Whether the masked-token head is written too; the head of a fine-tuned model always is.

    Returns
    -------
    Path
        `out`. Its ``onnx.json`` has the largest difference between the vectors of onnxruntime and
        torch, that of the logits where there is a head, and the scores of `score_files`.

    Raises
    ------
    MissingExtraError
        A package of the extra ``onnx`` is not installed.
    InputError
        `out` exists or cannot be written, or text to measure 8 bits on is missing.
    BertmillError
        The model cannot be opened or has no masked-token head, onnxruntime computes something
        else, or the text cannot be read.
    """
    out = Path(out)
    refuse_if_there(out)
    refuse_without_onnx_packages()
    loaded = load_model(model)
    if int8 and not sources and loaded.task_model is None:
        raise InputError("`int8`", "needs `held_out`", "give text to measure what 8 bits cost")
    if masked_tokens:
        refuse_without_masked_token_head(loaded)
    held_out = open_held_out(loaded, sources, settings, say, workers) if sources else None
    with folder_that_appears_whole(out, InputError) as folder:
        differences = write_onnx(folder, loaded, masked_tokens)
        report: dict[str, Any] = {"largest_difference": differences[_HIDDEN]}
        if _LOGITS in differences:
            report["largest_difference_of_logits"] = differences[_LOGITS]
        if int8:
            path = write_int8(folder)
            if loaded.task_model is not None:
                found = _largest_differences(path, loaded.model, loaded.task_model)
                report["largest_difference_of_int8_logits"] = found[_LOGITS][0]
        if held_out is not None:
            scores = score_files(loaded, folder, held_out)
            report["held_out"] = {n: dataclasses.asdict(each) for n, each in scores.items()}
        write_json(folder / _REPORT_FILE, report)
    return out


def score_files(loaded: LoadedModel, folder: Path, held_out: HeldOut) -> dict[str, HeldOutScores]:
    """Score a model and its ONNX files on the same pairs and masks.

    Parameters
    ----------
    loaded : LoadedModel
        Its heads are used with every encoder.
    folder : Path
        Has the files.
    held_out : HeldOut
        From `open_held_out`.

    Returns
    -------
    dict
        The scores of ``torch``, and of each file by its name.
    """
    models = {"torch": loaded.model}
    for path in sorted(folder.glob("*.onnx")):
        twin = models[path.name] = copy.deepcopy(loaded.model)
        twin.add_module("encoder", OnnxEncoder(path, twin.encoder.word_embeddings))
    return {name: score_held_out(loaded, held_out, each) for name, each in models.items()}


class OnnxEncoder(Encoder):
    """An ONNX file that replaces an `Encoder`, computed by onnxruntime on the CPU.

    Parameters
    ----------
    path : Path
    word_embeddings : Embedding
        The encoder's own, which a tied masked-token head reads.
    """

    def __init__(self, path: Path, word_embeddings: nn.Embedding) -> None:
        import onnxruntime

        super().__init__()
        self._word_embeddings = word_embeddings
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The encoder's own."""
        return self._word_embeddings

    def forward(self, packed: PackedTokens, selection: Selection | None = None) -> Tensor:
        """Compute what `Encoder` does, padding included."""
        vectors = self.outputs(packed, [_HIDDEN])[_HIDDEN]
        return vectors if selection is None else vectors.index_select(0, selection.at)

    def outputs(self, packed: PackedTokens, names: Sequence[str]) -> dict[str, Tensor]:
        """Compute some of the file's outputs: [N, ...] of those that are of each token."""
        lengths = list(packed.lengths)
        has_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        token_ids, segment_ids = (
            pad_sequence(list(torch.split(values, lengths)), batch_first=True)
            for values in (packed.token_ids, packed.segment_ids)
        )
        inputs = (token_ids.numpy(), has_token.long().numpy(), segment_ids.numpy())
        found = self._session.run(list(names), dict(zip(_INPUTS, inputs, strict=True)))
        tensors = dict(zip(names, map(torch.from_numpy, found), strict=True))
        return {name: t[has_token] if t.ndim == 3 else t for name, t in tensors.items()}


class _WithHead(nn.Module):
    """A padded encoder, and what a head makes of its vectors: the head of a task, or of masks."""

    def __init__(self, padded: Any, model: PretrainingModel | TaskModel) -> None:
        super().__init__()
        self.padded, self.model = padded, copy.deepcopy(model)
        self.model.encoder = padded.encoder  # a tied head reads the same weights

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden = self.padded(input_ids, attention_mask, token_type_ids)
        if isinstance(self.model, PretrainingModel):
            return hidden, self.model.masked_token_logits(hidden)
        return hidden, self.model.answer(hidden[:, 0] if self.model.pooler else hidden)


def write_onnx(folder: Path, loaded: LoadedModel, masked_tokens: bool = False) -> dict[str, float]:
    """Write a model for onnxruntime, and compare what both compute.

    Parameters
    ----------
    folder : Path
        Exists; the caller renames it when it is complete.
    loaded : LoadedModel
    masked_tokens : bool
        Whether the masked-token head is written too; the head of a task always is.

    Returns
    -------
    dict
        By the name of an output, the largest difference of any number in it, over random ids.

    Raises
    ------
    ModelError
        The network has no padded form, or onnxruntime computes something else than torch: vectors
        that differ by more than 1e-4, or logits by more than 1e-4 of the largest.
    """
    model = loaded.model
    architecture = architecture_of(model.section)
    if architecture.pad is None:
        raise ModelError(
            loaded.folder,
            f"is a {architecture.MODEL_TYPES[0]} network, which bertmill cannot write as ONNX",
        )
    with_head = model if masked_tokens else loaded.task_model
    parts = ("encoder.", "masked_token_head.") if masked_tokens else ("encoder.",)
    state = [name for name in model.state_dict() if name.startswith(parts)]
    named = loaded.task_model or model  # which class of transformers config.json names
    save_description(folder, named, loaded.tokenizer, loaded.about, state, longest_text(loaded))
    padded = architecture.pad(model.encoder)
    outputs = [_HIDDEN] if with_head is None else [_HIDDEN, _LOGITS]
    whole = padded if with_head is None else _WithHead(padded, with_head)
    _write_file(folder / ONNX_FILE, whole, outputs)
    differences = _largest_differences(folder / ONNX_FILE, model, with_head)
    for name, (difference, largest) in differences.items():
        what, scale = ("vectors", 1.0) if name == _HIDDEN else ("logits", largest)
        limit = LARGEST_DIFFERENCE * scale
        if not difference <= limit:  # or not a number
            raise ModelError(
                loaded.folder,
                f"onnxruntime computes other {what}, by {difference:.2g} (limit {limit:.2g})",
                "install another version of onnxruntime or onnxscript",
            )
    return {name: difference for name, (difference, _) in differences.items()}


def write_int8(folder: Path) -> Path:
    """Write ``model.int8.onnx`` next to ``model.onnx``, about a quarter of its size.

    Weights and embeddings have 8 bits; hidden vectors are quantized before each product, by their
    own range.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            folder / ONNX_FILE,
            folder / INT8_FILE,
            op_types_to_quantize=["Gather", "MatMul"],
            # One scale per column: 1 % more bytes, a third of the error in a trained encoder.
            per_channel=True,
            # Signed is fastest; with 7 of the 8 bits, 16-bit sums overflow on no CPU.
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
    return folder / INT8_FILE


def refuse_without_onnx_packages() -> None:
    """Raise `MissingExtraError` where the extra ``onnx`` is not installed."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise MissingExtraError(
                "ONNX", f"{package} is not installed", "type: pip install 'bertmill[onnx]'"
            )


def _write_file(path: Path, padded: nn.Module, outputs: Sequence[str]) -> None:
    # Three tensors: the same one three times would be traced as one input.
    examples = tuple(torch.ones(2, 2, dtype=torch.int64) for _ in _INPUTS)
    with _quiet():
        program = torch.onnx.export(
            padded.eval(),
            examples,
            input_names=_INPUTS,
            output_names=outputs,
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in _INPUTS},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # source lines, with paths of this machine
        program.save(path)  # weights above 1.5 GB go to a second file


def _largest_differences(
    path: Path, model: PretrainingModel, with_head: PretrainingModel | TaskModel | None
) -> dict[str, tuple[float, float]]:
    """Compare a file with its model on batches of mixed lengths, number by number.

    Of each output, the largest difference and the largest number.
    """
    section, vocab_size = model.section, model.vocab_size
    longest = min(section.max_position_embeddings, _LONGEST_COMPARED)
    generator = torch.Generator().manual_seed(0)
    twin = OnnxEncoder(path, model.encoder.word_embeddings)
    found: dict[str, list[Tensor]] = {}
    for batch in ((longest,), (longest, longest // 2, 1), (2,), (31, 9, 9, 5, 2)):
        lengths = [min(max(length, 1), longest) for length in batch]
        token_ids, segment_ids = (
            torch.randint(high, (sum(lengths),), generator=generator)
            for high in (vocab_size, section.type_vocab_size)
        )
        position_ids = torch.cat([torch.arange(length) for length in lengths])
        packed = PackedTokens.pack(token_ids, segment_ids, position_ids, lengths)
        with torch.inference_mode():
            expected = {_HIDDEN: model.encode(packed)}
            if isinstance(with_head, PretrainingModel):
                expected[_LOGITS] = model.masked_token_logits(expected[_HIDDEN])
            elif with_head is not None:
                expected[_LOGITS] = with_head(packed)
            for name, ours in twin.outputs(packed, list(expected)).items():
                pair = torch.stack([(ours - expected[name]).abs().max(), ours.abs().max()])
                found.setdefault(name, []).append(pair)
    return {name: tuple(torch.stack(each).amax(0).tolist()) for name, each in found.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings that are meant for the libraries' developers."""
    root, disabled = logging.getLogger(), logging.root.manager.disable
    handler = logging.NullHandler()  # without one, logging would add one that prints
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)
