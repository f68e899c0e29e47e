"""The same network in plain PyTorch, as one writes it first: rectangles, and a mask over padding.

It is not a straw man: scores of masked positions alone, the library's own attention, fused AdamW.
"""

import torch
from torch import nn
from torch.nn import functional as F

from peers.workload import Workload

# Ours, here.
NAMES = {
    "encoder.embeddings.": "",
    "encoder.": "",
    "attention.query_key_value": "query_key_value",
    "attention.output": "mixed",
    "feed_forward.input": "inner",
    "feed_forward.output": "outer",
    "masked_token_head.dense": "masked",
    "masked_token_head.norm": "masked_norm",
    "masked_token_head.decoder": "decoder",
    "masked_token_head.bias": "decoder.bias",
}


class PaddedBlock(nn.Module):
    def __init__(self, section):
        super().__init__()
        width, inner = section.hidden_size, section.intermediate_size
        self.num_heads = section.num_attention_heads
        self.attention_dropout = section.attention_probs_dropout_prob
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, section.layer_norm_eps)
        self.inner = nn.Linear(width, inner)
        self.activation = nn.GELU() if section.hidden_act == "gelu" else nn.ReLU()
        self.outer = nn.Linear(inner, width)
        self.feed_forward_norm = nn.LayerNorm(width, section.layer_norm_eps)
        self.dropout = nn.Dropout(section.hidden_dropout_prob)

    def forward(self, x, is_token):
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=is_token[:, None, None],
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        x = self.attention_norm(x + self.dropout(self.mixed(mixed.transpose(1, 2).flatten(2))))
        return self.feed_forward_norm(x + self.dropout(self.outer(self.activation(self.inner(x)))))


class PaddedBert(nn.Module):
    def __init__(self, section, vocab_size):
        super().__init__()
        width = section.hidden_size
        self.word = nn.Embedding(vocab_size, width)
        self.segment = nn.Embedding(section.type_vocab_size, width)
        self.position = nn.Embedding(section.max_position_embeddings, width)
        self.norm = nn.LayerNorm(width, section.layer_norm_eps)
        self.dropout = nn.Dropout(section.hidden_dropout_prob)
        self.blocks = nn.ModuleList(PaddedBlock(section) for _ in range(section.num_hidden_layers))
        self.masked = nn.Linear(width, width)
        self.activation = nn.GELU() if section.hidden_act == "gelu" else nn.ReLU()
        self.masked_norm = nn.LayerNorm(width, section.layer_norm_eps)
        self.decoder = nn.Linear(width, vocab_size)
        if section.tie_word_embeddings:
            self.decoder.weight = self.word.weight
        self.pooler = nn.Linear(width, width)
        self.next_sentence_head = nn.Linear(width, 2)

    def forward(self, tokens, segments, is_token, masked_at):
        """Score the masked positions, [P, V], and the pairs, [B, 2]; row 0 is "next"."""
        positions = torch.arange(tokens.shape[1])
        x = self.word(tokens) + self.segment(segments) + self.position(positions)
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, is_token)
        masked = self.masked_norm(self.activation(self.masked(x.flatten(0, 1)[masked_at])))
        pooled = torch.tanh(self.pooler(x[:, 0]))
        return self.decoder(masked), self.next_sentence_head(pooled)

    def load(self, weights):
        """Copy weights that have our names."""
        state = {}
        for name, array in weights.items():
            for ours, here in NAMES.items():
                name = name.replace(ours, here)
            state[name] = torch.from_numpy(array)
        state.setdefault("decoder.weight", state["word.weight"])
        self.load_state_dict(state)


class PaddedTorch:
    def __init__(self, workload: Workload):
        self.workload = workload

    def losses(self):
        model = self._make().eval()
        model.load(self.workload.weights())
        with torch.no_grad():
            mlm, nsp = self._losses(model, self._inputs(self.workload.padded()[0]))
        return float(mlm), float(nsp)

    def start(self):
        self.model = self._make().train()
        lr = self.workload.recipe.optimizer.lr
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr, fused=True)
        self.inputs = [self._inputs(padded) for padded in self.workload.padded()]

    def step(self, number):
        mlm, nsp = self._losses(self.model, self.inputs[number])
        (mlm + nsp).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _make(self):
        torch.manual_seed(1)
        return PaddedBert(self.workload.recipe.model, self.workload.vocab_size)

    def _inputs(self, padded):
        tokens, segments, lengths, positions, weights, labels, is_next = map(
            torch.as_tensor, padded
        )
        width = tokens.shape[1]
        is_token = torch.arange(width) < lengths[:, None]
        masked_at = (positions + torch.arange(len(tokens))[:, None] * width)[weights > 0]
        return (tokens, segments, is_token, masked_at), labels[weights > 0], 1 - is_next

    def _losses(self, model, inputs):
        shown, labels, rows = inputs
        mlm, nsp = model(*shown)
        return F.cross_entropy(mlm, labels), F.cross_entropy(nsp, rows)
