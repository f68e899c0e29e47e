"""transformers' BERT, as people train it: its own loss, rectangles, its Trainer's optimizer."""

import torch
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DataCollatorForLanguageModeling,
)

from bertmill.model.architecture import architecture_of
from bertmill.model.conversion import to_config, to_huggingface
from peers.workload import Workload

CPU = torch.device("cpu")
IGNORED = -100


class HuggingFace:
    """One of its models; what differs is how the batches are laid out."""

    model_class: type

    def __init__(self, workload: Workload, device=CPU, precision="fp32", is_compiled=False):
        self.workload, self.device = workload, device
        self.precision, self.is_compiled = precision, is_compiled

    def start(self):
        self.model = self._make().train()
        if self.is_compiled:
            self.model.compile()
        lr = self.workload.recipe.optimizer.lr
        # What its Trainer takes by default.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr, fused=True)
        self.inputs = [self._moved(each) for each in self._inputs()]

    def step(self, number):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.model(**self.inputs[number]).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _make(self):
        torch.manual_seed(1)
        recipe, tokenizer = self.workload.recipe, self.workload.store.tokenizer
        config = to_config(recipe.model, tokenizer.size, tokenizer.pad_id, ())
        config = BertConfig(**config, attn_implementation="sdpa")  # its default, too
        return self.model_class(config).to(self.device)

    def _moved(self, inputs):
        return {name: x.to(self.device) for name, x in inputs.items()}


class ForPreTraining(HuggingFace):
    """Both losses; scores at every position, padding among them."""

    model_class = BertForPreTraining

    def losses(self):
        model = self._make().eval()
        weights = self.workload.weights()
        state = to_huggingface(
            architecture_of(self.workload.recipe.model),
            {name: torch.from_numpy(w) for name, w in weights.items()},
        )
        left = model.load_state_dict(state, strict=False)
        # Tied to others that were loaded.
        assert set(left.missing_keys) <= {
            "cls.predictions.decoder.weight",
            "cls.predictions.decoder.bias",
        }
        assert not left.unexpected_keys
        inputs = self._moved(self._inputs()[0])
        with torch.no_grad():
            out = model(**inputs)
        nsp = F.cross_entropy(out.seq_relationship_logits, inputs["next_sentence_label"])
        return float(out.loss - nsp), float(nsp)

    def _inputs(self):
        return [self._input(padded) for padded in self.workload.padded()]

    def _input(self, padded):
        tokens, segments, lengths, positions, weights, labels, is_next = map(
            torch.as_tensor, padded
        )
        rows, places = (weights > 0).nonzero(as_tuple=True)
        all_labels = torch.full_like(tokens, IGNORED)
        all_labels[rows, positions[rows, places]] = labels[rows, places]
        return {
            "input_ids": tokens,
            "attention_mask": (torch.arange(tokens.shape[1]) < lengths[:, None]).long(),
            "token_type_ids": segments,
            "labels": all_labels,
            "next_sentence_label": 1 - is_next,
        }


class ForMaskedLM(HuggingFace):
    """Masked language modeling alone, with its own collator's masks: another loss.

    The collator pads to the longest pair of the batch.
    """

    model_class = BertForMaskedLM

    def losses(self):
        return None

    def _inputs(self):
        tokenizer = AutoTokenizer.from_pretrained(self.workload.store_folder / "tokenizer")
        share = self.workload.recipe.masking.mask_fraction
        collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)
        return [dict(collate(self._examples(batch))) for batch in self.workload.batches]

    def _examples(self, batch):
        whole = batch.token_ids.copy()
        whole[batch.masked_at] = batch.masked_labels
        bounds = zip(batch.sequence_starts[:-1], batch.sequence_starts[1:], strict=True)
        return [
            {
                "input_ids": whole[start:stop].tolist(),
                "token_type_ids": batch.segment_ids[start:stop].tolist(),
            }
            for start, stop in bounds
        ]
