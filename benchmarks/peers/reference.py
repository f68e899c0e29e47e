"""The reference program: the BERT of Dive into Deep Learning in TensorFlow, written anew.

Two losses over rectangles, Keras's Adam, a gradient tape around the loss, both losses read after
every step, as its deck has it. What the deck does not show is the network, which follows the book's
published one: embeddings without LayerNorm, a thousand learned positions, blocks with biases and
ReLU, dropout on the attention weights and on each sub-layer's output, LayerNorm after the sum, a
decoder of its own.

Letters in shapes: B sequences, L tokens wide, K predictions wide, D hidden, H heads, V vocabulary.
"""

import keras
import tensorflow as tf
from keras import layers

from peers.workload import Workload

DROPOUT = 0.2
LEARNING_RATE = 1e-4
NUM_POSITIONS = 1000
# Scores of padding before the softmax.
VERY_LOW = -1e6


class MultiHeadAttention(layers.Layer):
    def __init__(self, section, dropout):
        super().__init__()
        self.num_heads = section.num_attention_heads
        self.query, self.key, self.value, self.out = (
            layers.Dense(section.hidden_size) for _ in range(4)
        )
        self.dropout = layers.Dropout(dropout)

    def call(self, x, valid_lengths, training):
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        size = tf.cast(tf.shape(query)[-1], x.dtype)
        scores = tf.matmul(query, key, transpose_b=True) / tf.sqrt(size)  # [B * H, L, L]
        lengths = tf.repeat(valid_lengths, self.num_heads)
        is_token = tf.range(tf.shape(x)[1], dtype=lengths.dtype) < lengths[:, None]
        scores = tf.where(is_token[:, None], scores, VERY_LOW)
        weights = self.dropout(tf.nn.softmax(scores), training=training)
        return self.out(self._join(tf.matmul(weights, value)))

    def _split(self, x):
        """[B, L, D] to [B * H, L, D / H]."""
        shape = tf.shape(x)
        x = tf.reshape(x, [shape[0], shape[1], self.num_heads, x.shape[-1] // self.num_heads])
        return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, shape[1], x.shape[-1]])

    def _join(self, x):
        """[B * H, L, D / H] to [B, L, D]."""
        shape = tf.shape(x)
        x = tf.reshape(x, [-1, self.num_heads, shape[1], x.shape[-1]])
        return tf.reshape(
            tf.transpose(x, [0, 2, 1, 3]), [-1, shape[1], self.num_heads * x.shape[-1]]
        )


class Block(layers.Layer):
    def __init__(self, section, dropout, activation, epsilon):
        super().__init__()
        self.attention = MultiHeadAttention(section, dropout)
        self.attention_dropout = layers.Dropout(dropout)
        self.attention_norm = layers.LayerNormalization(epsilon=epsilon)
        self.inner = layers.Dense(section.intermediate_size, activation=activation)
        self.outer = layers.Dense(section.hidden_size)
        self.feed_forward_dropout = layers.Dropout(dropout)
        self.feed_forward_norm = layers.LayerNormalization(epsilon=epsilon)

    def call(self, x, valid_lengths, training):
        mixed = self.attention(x, valid_lengths, training=training)
        x = self.attention_norm(x + self.attention_dropout(mixed, training=training))
        mapped = self.outer(self.inner(x))
        return self.feed_forward_norm(x + self.feed_forward_dropout(mapped, training=training))


class Bert(keras.Model):
    """The network; `section` gives the sizes, the rest is the reference's unless told otherwise."""

    def __init__(
        self,
        section,
        vocab_size,
        dropout=DROPOUT,
        activation="relu",
        epsilon=1e-3,
        num_positions=NUM_POSITIONS,
        has_embedding_norm=False,
    ):
        super().__init__()
        width = section.hidden_size
        self.word = layers.Embedding(vocab_size, width)
        self.segment = layers.Embedding(2, width)
        self.position = self.add_weight(shape=(1, num_positions, width), name="position")
        self.norm = (
            layers.LayerNormalization(epsilon=epsilon) if has_embedding_norm else layers.Identity()
        )
        self.blocks = [
            Block(section, dropout, activation, epsilon) for _ in range(section.num_hidden_layers)
        ]
        self.masked = layers.Dense(width, activation=activation)
        self.masked_norm = layers.LayerNormalization(epsilon=epsilon)
        self.decoder = layers.Dense(vocab_size)
        self.pooler = layers.Dense(width, activation="tanh")
        self.next_sentence = layers.Dense(2)

    def call(self, tokens, segments, valid_lengths, masked_positions, training=False):
        """Score the masked positions, fillers among them, [B, K, V], and the pairs, [B, 2]."""
        x = self.word(tokens) + self.segment(segments)
        x = self.norm(x + self.position[:, : tf.shape(tokens)[1]])
        for block in self.blocks:
            x = block(x, valid_lengths, training=training)
        masked = tf.gather(x, masked_positions, batch_dims=1)
        mlm = self.decoder(self.masked_norm(self.masked(masked)))
        return mlm, self.next_sentence(self.pooler(x[:, 0]))

    def load(self, weights):
        """Copy weights that have our names; Dense keeps its matrix the other way round."""

        def dense(layer, name, rows=slice(None)):
            layer.kernel.assign(weights[f"{name}.weight"][rows].T)
            layer.bias.assign(weights[f"{name}.bias"][rows])

        def norm(layer, name):
            layer.gamma.assign(weights[f"{name}.weight"])
            layer.beta.assign(weights[f"{name}.bias"])

        word = weights["encoder.embeddings.word.weight"]
        self.word.embeddings.assign(word)
        self.segment.embeddings.assign(weights["encoder.embeddings.segment.weight"])
        self.position.assign(weights["encoder.embeddings.position.weight"][None])
        norm(self.norm, "encoder.embeddings.norm")
        for number, block in enumerate(self.blocks):
            ours, attention = f"encoder.blocks.{number}", block.attention
            width = word.shape[1]
            for i, layer in enumerate((attention.query, attention.key, attention.value)):
                rows = slice(i * width, (i + 1) * width)
                dense(layer, f"{ours}.attention.query_key_value", rows)
            dense(attention.out, f"{ours}.attention.output")
            norm(block.attention_norm, f"{ours}.attention_norm")
            dense(block.inner, f"{ours}.feed_forward.input")
            dense(block.outer, f"{ours}.feed_forward.output")
            norm(block.feed_forward_norm, f"{ours}.feed_forward_norm")
        dense(self.masked, "masked_token_head.dense")
        norm(self.masked_norm, "masked_token_head.norm")
        self.decoder.kernel.assign(weights.get("masked_token_head.decoder.weight", word).T)
        self.decoder.bias.assign(weights["masked_token_head.bias"])
        dense(self.pooler, "pooler")
        # Our row 0 is "next", as in Hugging Face's folders; here it is the label's own row.
        dense(self.next_sentence, "next_sentence_head", [1, 0])


_cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")


def batch_losses(model, batch, training):
    tokens, segments, valid_lengths, masked_positions, weights, labels, is_next = batch
    mlm_logits, nsp_logits = model(
        tokens, segments, valid_lengths, masked_positions, training=training
    )
    vocab_size = mlm_logits.shape[-1]
    each = _cross_entropy(tf.reshape(labels, [-1]), tf.reshape(mlm_logits, [-1, vocab_size]))
    mlm = tf.reduce_sum(each * tf.reshape(weights, [-1])) / (tf.reduce_sum(weights) + 1e-8)
    return mlm, tf.reduce_mean(_cross_entropy(is_next, nsp_logits))


class ReferenceProgram:
    """Eager, as its deck has it, or the same step compiled once by ``tf.function``."""

    def __init__(self, workload: Workload, as_graph=False):
        self.workload, self.as_graph = workload, as_graph

    def losses(self):
        section = self.workload.recipe.model
        model = Bert(
            section,
            self.workload.vocab_size,
            activation=section.hidden_act,  # Keras's GELU is the exact one, too
            epsilon=section.layer_norm_eps,
            num_positions=section.max_position_embeddings,
            has_embedding_norm=True,
        )
        batch = self._tensors(self.workload.padded()[0])
        batch_losses(model, batch, training=False)  # makes the variables
        model.load(self.workload.weights())
        mlm, nsp = batch_losses(model, batch, training=False)
        return float(mlm), float(nsp)

    def start(self):
        keras.utils.set_random_seed(1)
        self.model = Bert(self.workload.recipe.model, self.workload.vocab_size)
        self.optimizer = keras.optimizers.Adam(learning_rate=LEARNING_RATE)
        self.batches = [self._tensors(padded) for padded in self.workload.padded()]
        self.train = tf.function(self._train) if self.as_graph else self._train

    def step(self, number):
        mlm, nsp = self.train(self.batches[number])
        self.shown = float(mlm), float(nsp)

    def _train(self, batch):
        with tf.GradientTape() as tape:
            mlm, nsp = batch_losses(self.model, batch, training=True)
            loss = mlm + nsp
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return mlm, nsp

    def _tensors(self, padded):
        tokens, segments, valid_lengths, *rest = padded
        positions, weights, labels, is_next = rest
        integers = [tf.constant(part, tf.int32) for part in (tokens, segments)]
        return (
            *integers,
            tf.constant(valid_lengths, tf.float32),
            tf.constant(positions, tf.int32),
            tf.constant(weights, tf.float32),
            tf.constant(labels, tf.int32),
            tf.constant(is_next, tf.int32),
        )
