"""The recipe: every knob of a run, with its unit and the source of its default.

A recipe is eight sections of plain values, and perhaps some phases, frozen and checked. It is read
from TOML (a name that ships with the package, or a file), changed with ``section.key=value``
settings, and written back resolved into the run, so that the run folder alone says what was done.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, reduce
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from bertmill.errors import BertmillError, RecipeError

_RECIPES = Path(__file__).with_name("recipes")

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=8, le=2**15)]
T = TypeVar("T")


class Section(BaseModel):
    """A part of the recipe: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TextSection(Section):
    """How files become documents and documents become sentences."""

    field: str = Field("text", min_length=1)
    """Name of the text field of a ``.jsonl`` line or the text column of a ``.parquet`` file."""
    document: Literal["block", "line", "file"] = "block"
    """What a document is in ``.txt`` and ``.tokens``: lines up to a blank one (in WikiText: an
    article), each line, or the whole file."""
    sentences: Literal["sentencex", "spaced-period"] = "sentencex"
    """``spaced-period``: the text is split already, sentences end with `` . `` and a document
    without one is dropped, as the reference program does with WikiText."""
    language: str = Field("en", pattern=r"^[a-z]{2,3}(-[a-z]+)*$")
    """ISO 639 code whose rules ``sentencex`` applies."""
    failures: Literal["skip", "refuse"] = "skip"
    """``skip``: a document on which a library fails is left out, and named; ``refuse``: it ends the
    work."""
    held_out_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.02
    """Share of the documents, chosen by a hash of their text, that training never sees."""


class TokenizerSection(Section):
    """The vocabulary: trained on the corpus, or taken from a folder."""

    path: str = ""
    """A tokenizer folder or a ``vocab.txt`` to use as it is; empty: train one on the corpus."""
    kind: Literal["wordpiece", "word"] = "wordpiece"
    vocab_size: Annotated[int, Field(ge=8, le=2**24)] = 30_522
    """Entries at most, special tokens included (30,522: Devlin et al. 2019, uncased)."""
    min_frequency: Positive = 2
    """A word (``word``) or a merge (``wordpiece``) seen less often than this is left out."""
    lowercase: bool = True
    strip_accents: bool = True
    """WordPiece only; uncased BERT strips them."""
    max_training_bytes: Positive = 200_000_000
    """WordPiece is trained on this much text from the start of the corpus at most, in bytes."""
    pad_token: str = Field("[PAD]", min_length=1)
    unk_token: str = Field("[UNK]", min_length=1)
    cls_token: str = Field("[CLS]", min_length=1)
    sep_token: str = Field("[SEP]", min_length=1)
    mask_token: str = Field("[MASK]", min_length=1)

    @model_validator(mode="after")
    def _special_tokens_differ(self) -> Self:
        if len(set(self.special_tokens)) < 5:
            raise ValueError("tokenizer: the five special tokens must have five different names")
        return self

    @property
    def special_tokens(self) -> tuple[str, str, str, str, str]:
        """The five special tokens: pad, unk, cls, sep, mask."""
        return (self.pad_token, self.unk_token, self.cls_token, self.sep_token, self.mask_token)


class PairsSection(Section):
    """How two token ranges are drawn from the store (Devlin et al. 2019, section 3.1)."""

    kind: Literal["segments", "sentences", "none"] = "segments"
    """``segments``: runs of sentences, as BERT; ``sentences``: two sentences that fit, as the
    reference program; ``none``: full blocks, no second segment, masked language modeling alone."""
    max_length: Length = 128
    """Tokens in a sequence at most, special tokens included. With phases it is that of the last
    one, whatever is written here."""
    next_fraction: Fraction = 0.5
    """Probability that the second segment is the one that follows."""
    short_fraction: Fraction = 0.1
    """``segments``: probability that a sequence is cut to a random shorter length."""


class PhaseSection(Section):
    """A stretch of the run with sequences of its own length (Devlin et al. 2019, A.2)."""

    fraction: Fraction = 0.0
    """Share of the steps; the last phase may leave it out and has the rest."""
    max_length: Length
    """As `PairsSection.max_length`."""


class MaskingSection(Section):
    """Which tokens are predicted and what is shown in their place (Devlin et al. 2019, A.1)."""

    mask_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Predicted share of a sequence's tokens, rounded, at least one."""
    mask_token_fraction: Fraction = 0.8
    """Share of the predicted positions that show the mask token."""
    random_token_fraction: Fraction = 0.1
    """Share of the predicted positions that show a random token; the rest show their own."""
    whole_word: bool = False
    """Choose words instead of tokens; all pieces of a word are treated alike."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.mask_token_fraction + self.random_token_fraction > 1.0 + 1e-9:
            raise ValueError(
                "masking: mask_token_fraction + random_token_fraction is more than 1; "
                "lower one of them"
            )
        return self


class NetworkSection(Section):
    """What all networks have; names and defaults are those of a Hugging Face BERT ``config.json``.

    A network of another kind than BERT has its own class, in `MODEL_SECTIONS`, with a field
    ``architecture`` that is its name there.
    """

    hidden_size: Annotated[int, Field(ge=1, le=2**16)] = 768
    num_hidden_layers: Annotated[int, Field(ge=1, le=1024)] = 12
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)] = 12
    intermediate_size: Annotated[int, Field(ge=1, le=2**18)] = 3072
    hidden_act: Literal["gelu", "relu"] = "gelu"
    hidden_dropout_prob: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    attention_probs_dropout_prob: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**20)] = 512
    """Longest sequence, in tokens."""
    type_vocab_size: Annotated[int, Field(ge=2, le=1024)] = 2
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-12
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02
    """Standard deviation of the normal draw of the weights."""
    tie_word_embeddings: bool = True
    """Whether the masked-token head reads its output weights from the word embeddings."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model: num_attention_heads={self.num_attention_heads} does not divide "
                f"hidden_size={self.hidden_size}; choose a divisor"
            )
        return self


class ModelSection(NetworkSection):
    """BERT, and three ways to depart from it."""

    position_embedding: Literal["absolute", "rotary"] = "absolute"
    """``rotary``: Su et al. 2021, half-split form, base 10,000. `Deviation:` from BERT."""
    norm: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum (BERT) or before each sub-layer (Xiong et al. 2020)."""
    init: Literal["normal", "fan-in"] = "normal"
    """``fan-in``: inside the blocks, weights that read the residual stream are drawn with standard
    deviation 1/sqrt(hidden_size) and weights that write to it start at zero, so that attention is
    sharp enough from the first step to learn context. `Deviation:` from BERT."""

    @model_validator(mode="after")
    def _rotary_heads_are_even(self) -> Self:
        if self.position_embedding == "rotary" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                "model: rotary positions need an even hidden_size / num_attention_heads; "
                "choose another number of heads"
            )
        return self


MODEL_SECTIONS: dict[str, type[NetworkSection]] = {}
"""The knobs of each other kind of network; ``model.architecture`` chooses, without it BERT."""


class OptimizerSection(Section):
    """AdamW (Loshchilov and Hutter 2019) with BERT's values; weight decay 0 makes it Adam.

    `Deviation:` moments are corrected for their start, which BERT's optimizer leaves out.
    """

    lr: Annotated[float, Field(gt=0.0)] = 1e-4
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    eps: Annotated[float, Field(gt=0.0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled; biases and LayerNorm are left out, as in BERT."""
    clip_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest norm of the whole gradient; 0: no clipping."""


class ScheduleSection(Section):
    """Learning rate over the steps: linear warm-up, hold, linear decay to zero."""

    warmup_steps: Annotated[int, Field(ge=0)] = 10_000
    warmup_fraction: Fraction = 0.0
    """Share of a time budget after which the warm-up ends, unless `warmup_steps` come before; 0: it
    ends after these steps alone."""
    hold_fraction: Fraction = 0.0
    """Share of the steps after which the decay begins (BERT: at once, 0). A run with a time budget
    holds the peak until 70 % of it."""
    decay: Literal["linear", "none"] = "linear"


class TrainSection(Section):
    """The loop."""

    batch_size: Annotated[int, Field(ge=1, le=2**20)] = 256
    """Sequences in a step."""
    micro_batch_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens that are computed at once, at most (a longer sequence alone): less memory for the same
    update. 0: as many as `memory` allows, all of the batch if they fit. Dropout's draws depend on
    it, so a run keeps what was chosen."""
    memory: str = ""
    """What a step may take, such as 8GB, 500MB or 12GiB: on a CPU the whole process, else of the
    device. Empty: six tenths of the machine's memory, nine of a GPU's."""
    recompute: Literal["auto"] | bool = "auto"
    """Compute each block a second time in the backward pass instead of keeping what it computed:
    much less memory, a third more arithmetic, the same bits. ``auto``: where not even one sequence
    fits."""
    steps: Positive = 1_000_000
    """Parameter updates in the run, unless there is a budget."""
    budget_seconds: Annotated[float, Field(ge=0.0)] = 0.0
    """Training time of the run, over all its sessions, instead of steps; 0: by steps."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    nsp_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of next sentence prediction in the total loss."""
    log_every_steps: Positive = 10
    validate_every_steps: Positive = 500
    checkpoint_every_steps: Positive = 500
    checkpoint_every_minutes: Annotated[float, Field(ge=0.0)] = 10.0
    """Save also when the last checkpoint is so old; 0: by steps alone."""
    diagnosis: bool = True
    """Say what the run has not learned, and why that may be."""
    keep_checkpoints: Positive = 2
    """The newest ones; older ones are deleted."""
    validation_pairs: Positive = 2_048
    """Held-out sequences scored at a validation, at most."""
    device: str = "auto"
    """``auto``: CUDA where there is one, else the CPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``bf16``: matrix products of 16-bit factors, everything else fp32. ``auto``: bf16 where the
    device has units for it, on a CPU only for networks 256 wide or more. A run keeps what was
    chosen."""
    shard: Literal["none", "full"] = "none"
    """Where several processes train together: whether each keeps all weights and moments, or a part
    of them and fetches the others when it needs them (less memory, more traffic)."""
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 600.0
    """How long one of several processes may stand still, until the run is given up."""
    compile: bool = False
    """Let ``torch.compile`` fuse what a block does after its attention, at the start of each
    session. It needs a C++ compiler, and gained nothing on CPUs."""
    kernels: Literal["auto", "plain"] = "auto"
    """``plain``: every operation as public torch spells it, which is slow; ``auto``: the faster
    forms of ``model/kernels`` too. Losses are equal to rounding; dropout draws other elements."""

    @model_validator(mode="after")
    def _memory_is_a_size(self) -> Self:
        if self.memory and not parse_bytes(self.memory):
            raise ValueError(
                f"train: memory={self.memory!r} is not a size; write for example 8GB or 500MB"
            )
        return self


class Recipe(Section):
    """Everything that decides what a run computes."""

    name: str = Field(min_length=1)
    text: TextSection = TextSection()
    tokenizer: TokenizerSection = TokenizerSection()
    phases: list[PhaseSection] = Field(default_factory=list)
    """In the order of the run; none: the whole run is one, of `pairs`."""
    pairs: PairsSection = PairsSection()
    masking: MaskingSection = MaskingSection()
    model: ModelSection = ModelSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    train: TrainSection = TrainSection()

    @property
    def trains_pairs(self) -> bool:
        """Whether the pooler and the next-sentence head learn anything."""
        return self.pairs.kind != "none" and self.train.nsp_weight > 0

    @property
    def longest(self) -> int:
        """Tokens that a sequence of any phase has at most."""
        return max(pairs.max_length for pairs in self.phase_pairs())

    def phase_starts(self) -> list[int]:
        """Return the first step of each phase: shares of the steps, rounded to even."""
        shares = accumulate(phase.fraction for phase in self.phases[:-1])
        return [0, *(round(share * self.train.steps) for share in shares)]

    def phase_pairs(self) -> list[PairsSection]:
        """Return what pairs each phase is trained on."""
        lengths = [phase.max_length for phase in self.phases] or [self.pairs.max_length]
        return [self.pairs.model_copy(update={"max_length": length}) for length in lengths]

    @model_validator(mode="before")
    @classmethod
    def _end_at_the_last_length(cls, values: dict[str, Any]) -> dict[str, Any]:
        try:
            length = values["phases"][-1]["max_length"]
            return {**values, "pairs": {**values.get("pairs", {}), "max_length": length}}
        except (LookupError, TypeError):
            return values  # no phases, or none that will be accepted

    @model_validator(mode="after")
    def _sequences_fit_positions(self) -> Self:
        where = "phases" if self.phases else "pairs"
        if self.longest > self.model.max_position_embeddings:
            raise ValueError(
                f"{where}: max_length={self.longest} is above "
                f"model.max_position_embeddings={self.model.max_position_embeddings}; "
                "lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _phases_make_up_the_run(self) -> Self:
        if not self.phases:
            return self
        *shares, last = (phase.fraction for phase in self.phases)
        rest = 1.0 - sum(shares)
        if not all(shares) or rest < 1e-9 or (last and abs(last - rest) > 1e-9):
            raise ValueError(
                "phases: the fractions do not add up to 1; give each phase its share of the steps, "
                "the last one may leave it out"
            )
        if self.train.budget_seconds:
            raise ValueError(
                "phases: they are shares of the steps, and a time budget leaves these open; give "
                "train.steps, or pairs.max_length for a single phase"
            )
        return self


def parse_bytes(text: str) -> float | None:
    """Read ``500MB``, ``1.5GB`` or ``2GiB`` as bytes; None where it is not a size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text.strip())
    if not found:
        return None
    return float(found[1]) * (1024.0 if found[3] else 1000.0) ** " kMGT".index(found[2] or " ")


def first_problem(error: Exception) -> str:
    """Say in a few words what a file's values are found wrong for."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    if problem["type"] == "value_error":  # ours, in our words: what; fix
        return str(problem["ctx"]["error"]).partition("; ")[0]
    where = ".".join(str(part) for part in problem["loc"])
    if not where:
        return str(problem["msg"])
    shown = repr(problem["input"])
    value = f" is {shown}" if len(shown) < 60 and problem["type"] != "missing" else ""
    return f"{where}{value}: {problem['msg']}"


def read_json(path: Path, read: Callable[[bytes], T], error: type[BertmillError], fix: str) -> T:
    """Read a JSON file with a validator of pydantic; what is wrong with it becomes an `error`."""
    try:
        return read(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise error(path, f"is damaged ({first_problem(problem)})", fix) from None


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package, sorted."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml"))


def load_recipe(name_or_file: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe by name or from a TOML file and apply ``section.key=value`` settings.

    Parameters
    ----------
    name_or_file : str or Path
        One of `recipe_names`, or a path.
    settings : iterable of str
        Each ``section.key=value``; the value is TOML, Python's True or False, or plain text.

    Returns
    -------
    Recipe

    Raises
    ------
    RecipeError
        Unknown name, broken file, unknown key, or a value out of range.

    Examples
    --------
    >>> load_recipe("tiny", ["train.batch_size=8"]).train.batch_size
    8
    """
    return recipe_from_dict(read_recipe(name_or_file, settings), str(name_or_file))


def read_recipe(name_or_file: str | Path, settings: Iterable[str] = ()) -> dict[str, Any]:
    """Read what a recipe and the settings say, and no more: nested values, not checked yet.

    Raises
    ------
    RecipeError
        Unknown name, broken file, or a setting that is none.
    """
    source, names = str(name_or_file), recipe_names()
    path = _RECIPES / f"{source}.toml" if source in names else Path(source)
    if not os.path.isfile(path):
        raise RecipeError(
            f"recipe {source!r}",
            "is neither a known name nor a file" + did_you_mean(source, names),
            f"known names are {', '.join(names)}",
        )
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:  # a number may have too many digits
        raise RecipeError(path, f"is not TOML ({error})", "fix that line") from None
    values.setdefault("name", path.stem)
    apply_settings(values, settings)
    return values


def apply_settings(values: dict[str, Any], settings: Iterable[str]) -> None:
    """Write ``section.key=value`` settings into nested values, which are checked later.

    Of ``pairs.max_length`` and ``phases``, the one key without a section, the later one holds.

    Raises
    ------
    RecipeError
        A setting that is none.
    """
    for setting in settings:
        dotted, equals, text = setting.partition("=")
        dotted = dotted.strip()
        section, dot, key = dotted.partition(".")
        if not (equals and (dotted == "phases" or (dot and key))):
            raise RecipeError(
                f"--set {setting}",
                "is not of the form section.key=value",
                "write for example train.batch_size=64",
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = {"True": True, "False": False}.get(text.strip(), text.strip())
        if dotted == "pairs.max_length":
            values.pop("phases", None)
        if dotted == "phases":
            values["phases"] = value
        elif isinstance(table := values.setdefault(section, {}), dict):
            table[key] = value
        else:  # is refused as unknown, when all values are checked
            values[dotted] = value


def recipe_from_dict(values: Mapping[str, Any], source: str) -> Recipe:
    """Check nested plain values and make a `Recipe` of them; `source` names them in errors."""
    kind = _recipe_class(values, source)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _recipe_error(error, source, kind) from None


def _recipe_class(values: Mapping[str, Any], source: str) -> type[Recipe]:
    """Return `Recipe`, with the knobs of the network that ``model.architecture`` names."""
    model = values.get("model")
    if not isinstance(model, Mapping) or "architecture" not in model:
        return Recipe
    section = MODEL_SECTIONS.get(str(model["architecture"]))
    if section is None:
        raise RecipeError(
            f"recipe {source}: model.architecture",
            f"is {model['architecture']!r}, which is not a known network",
            "leave it out: the network is BERT"
            + "".join(f", or choose {known}" for known in MODEL_SECTIONS),
        )
    return _recipe_of(section)


@cache
def _recipe_of(section: type[NetworkSection]) -> type[Recipe]:
    return create_model("Recipe", __base__=Recipe, model=(section, section()))


def recipe_to_toml(recipe: Recipe) -> str:
    """Write the recipe, every knob included, as TOML that `load_recipe` reads back equal."""
    return tomli_w.dumps(recipe.model_dump())


def _recipe_error(error: ValidationError, source: str, kind: type[Recipe]) -> RecipeError:
    """Turn the first thing that pydantic found into our one line."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    dotted = ".".join(path)
    where = f"recipe {source}: {dotted}" if dotted else f"recipe {source}"
    if problem["type"] == "extra_forbidden":
        is_phase = path[0] == "phases"
        section = PhaseSection if is_phase else type(reduce(getattr, path[:-1], kind(name="any")))
        known = sorted(section.model_fields)
        return RecipeError(
            where,
            "is not a known key" + did_you_mean(path[-1], known),
            f"known keys are {', '.join(known)}",
        )
    if problem["type"] == "value_error":
        what, _, fix = str(problem["ctx"]["error"]).partition("; ")
        return RecipeError(f"recipe {source}", what, fix)
    if problem["type"] == "model_type":
        header = "[[phases]]" if path[0] == "phases" else f"[{dotted}]"
        return RecipeError(where, "is a section, not a value", f"write {header} and keys below it")
    shown = repr(problem["input"])
    what = f"{shown if len(shown) < 60 else shown[:60] + '...'} is not allowed"
    message = problem["msg"]
    return RecipeError(where, what, message[0].lower() + message[1:])


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Propose the known word that looks most like this one, in brackets, if any does."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
