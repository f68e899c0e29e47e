"""What leaves the no-context level within a given time, on the sample corpus.

    python benchmarks/plateau.py [--budget 150s] [--only NAME ...]

Each row is one `bertmill.pretrain` with the `quick` recipe and the settings shown; prints a
Markdown table. Run it on an otherwise idle machine: the budget is wall-clock time.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import bertmill

BERT = ["model.position_embedding=absolute", "model.norm=post", "model.init=normal"]
ROWS = {
    "quick": [],
    "quick, BERT's normal draw": ["model.init=normal"],
    "quick, learned positions": ["model.position_embedding=absolute"],
    "quick, LayerNorm after": ["model.norm=post"],
    "quick, pairs of sentences": ["pairs.kind=sentences"],
    "quick, two heads": ["model.num_attention_heads=2"],
    "published BERT, lr 1e-3": [*BERT, "optimizer.lr=1e-3"],
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", default="150s")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    arguments = parser.parse_args()
    table = [
        "| settings | steps | MLM, nats | no context | masks right | NSP, nats | pairs right |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            run = bertmill.pretrain(
                "sample:sotu",
                out=Path(folder) / "run",
                budget=arguments.budget,
                settings=ROWS[name],
                stream=sys.stderr,
            )
        if not run.outcome.finished:
            sys.exit("interrupted")
        s = run.outcome.held_out
        table.append(
            f"| {name} | {run.outcome.steps:,} | {s.mlm_loss:.2f} | {s.no_context_nats:.2f} | "
            f"{s.mlm_accuracy:.1%} | {s.nsp_loss:.3f} | {s.nsp_accuracy:.1%} |"
        )
    print("\n".join(table))


if __name__ == "__main__":
    main()
