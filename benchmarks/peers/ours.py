"""bertmill's own training step, as a run takes it."""

import torch

from bertmill.config import apply_settings, recipe_from_dict
from bertmill.data.randomness import make_key
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.train.compiled import compile_blocks
from bertmill.train.device import to_device
from bertmill.train.malloc import freed_memory_kept
from bertmill.train.optimizer import make_optimizer
from bertmill.train.step import StepInput, take_step
from bertmill.train.world import World
from peers.workload import Workload

CPU = torch.device("cpu")


class Bertmill:
    def __init__(self, workload: Workload, settings=(), device=CPU):
        self.device = device
        values = workload.recipe.model_dump()
        apply_settings(values, ["train.precision=fp32", *settings])
        self.workload, self.recipe = workload, recipe_from_dict(values, "the benchmark")

    def losses(self):
        model = PretrainingModel(self.recipe.model, self.workload.vocab_size).eval()
        weights = self.workload.weights()
        model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
        model.to(self.device)
        batch = to_device(self.workload.batches[0], self.device)
        with torch.no_grad():
            sums = model(batch)
        num_predictions, num_pairs = len(batch.masked_labels), len(batch.next_sentence_labels)
        return float(sums.mlm) / num_predictions, float(sums.nsp) / num_pairs

    def start(self):
        freed_memory_kept().__enter__()  # for the rest of the process
        section, seed = self.recipe.model, self.recipe.train.seed
        self.model = PretrainingModel(section, self.workload.vocab_size).train()
        initialize(self.model, section, torch.Generator().manual_seed(make_key(seed, "weights")))
        self.model.to(self.device)
        if self.recipe.train.compile:
            compile_blocks(self.model, self.device, self.recipe.train.precision)
        self.optimizer = make_optimizer(self.model, self.recipe.optimizer)
        self.inputs = [StepInput.of([batch], self.device) for batch in self.workload.batches]

    def step(self, number):
        batch, world = self.inputs[number], World(self.device)
        take_step(self.model, self.optimizer, batch, self.recipe, number, world)
