"""From raw text to an encoder: pretrain on the sample corpus, look at a word in two contexts."""

import sys

import numpy as np

import bertmill

run = bertmill.pretrain("sample:sotu", recipe="quick", budget="150s")
scores = run.outcome.held_out
if scores is None or not run.outcome.finished:
    sys.exit(f"stopped early; go on with: bertmill pretrain --resume {run.folder}")
print(
    f"\nMLM loss {run.outcome.mlm_loss:.3f}, NSP loss {run.outcome.nsp_loss:.3f}"
    f"\n{run.outcome.pairs_per_second:.1f} sentence pairs/s on {run.outcome.device}"
    f"\nheld-out: MLM loss {scores.mlm_loss:.3f} where a model without context has "
    f"{scores.no_context_nats:.3f}, {scores.mlm_accuracy:.1%} of masks right"
    f"\nheld-out: NSP loss {scores.nsp_loss:.3f} where the labels' frequencies have "
    f"{scores.nsp_chance_nats:.3f}, {scores.nsp_accuracy:.1%} of pairs right"
    f"\ncurves: {run.folder / 'loss.png'}\n"
)

model = bertmill.load(run.folder)
flying = model.encode(["a", "crane", "is", "flying"])
driver = model.encode(["a", "crane", "driver", "came"], ["he", "just", "left"])
print(f"{flying.vectors.shape}  {' '.join(flying.tokens)}")
print(f"{driver.vectors.shape}  {' '.join(driver.tokens)}")
one, two = flying.word_vector(1), driver.word_vector(1)
cosine = float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))
print(f"cosine of the two vectors of 'crane': {cosine:.4f}")

text = "the congress of the united [MASK] ."
best = model.fill_mask(text)[0]
print(f"{text}  {', '.join(f'{f.token} {f.probability:.0%}' for f in best)}")

if scores.mlm_loss > scores.no_context_nats - 0.2:
    sys.exit("the encoder has learned no context in this time: give a slower machine more budget")
