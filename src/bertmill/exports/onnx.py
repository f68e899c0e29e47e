"""The encoder as one ONNX file, which onnxruntime computes without torch or bertmill.

::

    model.onnx       input_ids, attention_mask, token_type_ids [B, L] -> last_hidden_state [B, L, D]
    model.int8.onnx  the same with weights of 8 bits
    config.json  tokenizer.json  tokenizer_config.json  vocab.txt  bertmill.json

Letters in shapes: B sequences, L tokens of the longest, N tokens of all, D hidden.
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
from bertmill.storage import folder_that_appears_whole, refuse_if_there, write_json
from bertmill.train.validate import HeldOut, HeldOutScores

ONNX_FILE, INT8_FILE, _REPORT_FILE = "model.onnx", "model.int8.onnx", "onnx.json"
LARGEST_DIFFERENCE = 1e-4
_INPUTS, _OUTPUT = ("input_ids", "attention_mask", "token_type_ids"), "last_hidden_state"
_OPSET = 18  # the exporter's own; LayerNormalization is one operator since 17
_LONGEST_COMPARED = 512


def export_onnx(
    model: str | Path,
    out: str | Path,
    int8: bool,
    sources: Sequence[str],
    settings: Sequence[str],
    say: Callable[[str], None],
) -> Path:
    """Write a folder for onnxruntime: encoder, tokenizer, and a report on accuracy.

    Parameters
    ----------
    model : str or Path
        A run folder, a model folder or a Hugging Face BERT folder.
    out : str or Path
        The new folder, which must not exist yet.
    int8 : bool
        Whether to write the encoder with weights of 8 bits too.
    sources, settings, say
        Text to evaluate the files on, as in `evaluate_held_out`; none leaves that out.

    Returns
    -------
    Path
        `out`. Its ``onnx.json`` has the largest difference between the vectors of onnxruntime and
        torch, and the scores of `score_files`.

    Raises
    ------
    MissingExtraError
        A package of the extra ``onnx`` is not installed.
    InputError
        `out` exists or cannot be written.
    BertmillError
        The model cannot be opened or has no masked-token head to evaluate, onnxruntime computes
        other vectors, or the text cannot be read.
    """
    out = Path(out)
    refuse_if_there(out)
    refuse_without_onnx_packages()
    loaded = load_model(model)
    held_out = open_held_out(loaded, sources, settings, say) if sources else None
    with folder_that_appears_whole(out, InputError) as folder:
        if loaded.task_model is not None:
            say("the files hold only the encoder, without the head that was fine-tuned")
        report: dict[str, Any] = {"largest_difference": write_onnx(folder, loaded)}
        if int8:
            write_int8(folder)
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
        lengths = list(packed.lengths)
        has_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        token_ids, segment_ids = (
            pad_sequence(list(torch.split(values, lengths)), batch_first=True)
            for values in (packed.token_ids, packed.segment_ids)
        )
        inputs = (token_ids.numpy(), has_token.long().numpy(), segment_ids.numpy())
        (hidden,) = self._session.run([_OUTPUT], dict(zip(_INPUTS, inputs, strict=True)))
        vectors = torch.from_numpy(hidden)[has_token]
        return vectors if selection is None else vectors.index_select(0, selection.at)


def write_onnx(folder: Path, loaded: LoadedModel) -> float:
    """Write a model's encoder for onnxruntime, and compare the vectors of both.

    Parameters
    ----------
    folder : Path
        Exists; the caller renames it when it is complete.
    loaded : LoadedModel

    Returns
    -------
    float
        Largest difference of any component of any token's vector, over random ids.

    Raises
    ------
    ModelError
        The network has no padded form, or onnxruntime computes other vectors than torch, by more
        than 1e-4.
    """
    model = loaded.model
    architecture = architecture_of(model.section)
    if architecture.pad is None:
        raise ModelError(
            loaded.folder,
            f"is a {architecture.MODEL_TYPES[0]} network, which bertmill cannot write as ONNX",
        )
    encoder = [name for name in model.state_dict() if name.startswith("encoder.")]
    save_description(folder, model, loaded.tokenizer, loaded.about, encoder, longest_text(loaded))
    _write_file(folder / ONNX_FILE, architecture.pad(model.encoder))
    difference = _largest_difference(folder / ONNX_FILE, model.encoder)
    if not difference <= LARGEST_DIFFERENCE:  # or not a number
        raise ModelError(
            loaded.folder,
            f"onnxruntime computes other vectors, by {difference:.2g} (limit {LARGEST_DIFFERENCE})",
            "install another version of onnxruntime or onnxscript",
        )
    return difference


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


def _write_file(path: Path, padded: nn.Module) -> None:
    # Three tensors: the same one three times would be traced as one input.
    examples = tuple(torch.ones(2, 2, dtype=torch.int64) for _ in _INPUTS)
    with _quiet():
        program = torch.onnx.export(
            padded.eval(),
            examples,
            input_names=_INPUTS,
            output_names=[_OUTPUT],
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in _INPUTS},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # source lines, with paths of this machine
        program.save(path)  # weights above 1.5 GB go to a second file


def _largest_difference(path: Path, encoder: Encoder) -> float:
    """Compare a file with its encoder on batches of mixed lengths, token by token."""
    section, vocab_size = encoder.section, encoder.word_embeddings.num_embeddings
    longest = min(section.max_position_embeddings, _LONGEST_COMPARED)
    generator = torch.Generator().manual_seed(0)
    twin = OnnxEncoder(path, encoder.word_embeddings)
    differences = []
    for batch in ((longest,), (longest, longest // 2, 1), (2,), (31, 9, 9, 5, 2)):
        lengths = [min(max(length, 1), longest) for length in batch]
        token_ids, segment_ids = (
            torch.randint(high, (sum(lengths),), generator=generator)
            for high in (vocab_size, section.type_vocab_size)
        )
        position_ids = torch.cat([torch.arange(length) for length in lengths])
        packed = PackedTokens.pack(token_ids, segment_ids, position_ids, lengths)
        with torch.inference_mode():
            differences.append((twin(packed) - encoder(packed)).abs().max())
    return torch.stack(differences).max().item()


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
