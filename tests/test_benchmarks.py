"""The benchmarks: their arithmetic, and that every program they time computes our loss."""

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from bertmill.config import apply_settings, recipe_from_dict
from bertmill.train.run_folder import RunFolder

FOLDER = Path(__file__).parents[1] / "benchmarks"
NETWORKS = {
    "as published": [],
    "as the reference": ["model.tie_word_embeddings=false", "model.hidden_act=relu"],
}
IN_TENSORFLOW = """
import pickle, sys
from peers.reference import ReferenceProgram
program = ReferenceProgram(pickle.load(sys.stdin.buffer), as_graph=True)
print("losses", *program.losses())
program.start()
for _ in range(3):
    program.step(0)
    print("step", *program.shown)
"""


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture(params=NETWORKS)
def workload(request, small_run, small_store, tmp_path):
    from peers.workload import Workload, draw_weights, save_file

    values = RunFolder(small_run.folder).read()[0].model_dump()
    apply_settings(values, NETWORKS[request.param])
    recipe = recipe_from_dict(values, "test")
    weights = tmp_path / "weights"
    save_file(draw_weights(recipe, small_store.tokenizer.size), weights)
    return Workload(recipe, small_store.folder, weights, num_batches=2)


def make(workload, name):
    module, kind, options = import_module("throughput").PROGRAMS[name]
    return getattr(import_module(module), kind)(workload, **options)


@pytest.mark.parametrize("name", ["plain PyTorch, padded", "transformers BertForPreTraining"])
def test_peers_compute_our_losses(workload, name):
    ours, theirs = make(workload, "bertmill").losses(), make(workload, name).losses()
    assert theirs == pytest.approx(ours, rel=1e-5)
    import_module("throughput").check_losses({"bertmill": ours, name: theirs})


@pytest.mark.slow
def test_the_reference_program_computes_our_losses_and_learns(workload):
    if not find_spec("tensorflow"):
        pytest.skip("needs TensorFlow: pip install -c constraints.txt -e '.[bench]'")
    import pickle

    done = subprocess.run(
        [sys.executable, "-c", IN_TENSORFLOW],
        input=pickle.dumps(workload), cwd=FOLDER, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    (_, *theirs), *steps = [line.split() for line in done.stdout.decode().splitlines()]
    assert [float(loss) for loss in theirs] == pytest.approx(
        make(workload, "bertmill").losses(), rel=1e-5
    )
    assert len(steps) == 3 and float(steps[2][1]) < float(steps[0][1])


def test_every_weight_counts_in_the_comparison(workload):
    from peers.workload import save_file

    program = make(workload, "bertmill")
    whole, weights = program.losses(), workload.weights()
    for name in weights:
        save_file(weights | {name: 0.5 * weights[name]}, workload.weights_file)
        changes = [abs(a / b - 1) for a, b in zip(program.losses(), whole, strict=True)]
        assert max(changes) > 1e-4, name


def test_another_loss_is_refused():
    throughput = import_module("throughput")
    ours = (9.0, 0.7)
    throughput.check_losses({"bertmill": ours, "same": (9.0005, 0.70005), "other": None})
    for wrong in [(9.002, 0.7), (9.0, 0.7002)]:
        with pytest.raises(AssertionError):
            throughput.check_losses({"bertmill": ours, "wrong": wrong})


@pytest.mark.parametrize(
    "name",
    [
        "bertmill",
        "bertmill, no dropout",
        "plain PyTorch, padded",
        "transformers BertForPreTraining",
        "transformers BertForMaskedLM (no NSP)",
    ],
)
def test_a_step_moves_every_weight(workload, name):
    program = make(workload, name)
    program.start()
    before = {key: value.clone() for key, value in program.model.named_parameters()}
    program.step(1)
    after = dict(program.model.named_parameters())
    unmoved = {key for key in before if before[key].equal(after[key])}
    # transformers has a second bias, which it uses only where the decoder is tied.
    assert unmoved <= {"cls.predictions.bias"}


@pytest.mark.slow
def test_rounds_of_several_processes(workload):
    throughput = import_module("throughput")
    others = [throughput.FLOOR, throughput.PEAK, throughput.OURS_WITHOUT_DROPOUT]
    figures = throughput.measure(workload, [throughput.OURS, *others], 1)
    assert list(figures["programs"]) == [throughput.OURS, others[0], others[2]]
    ours, floor, other = figures["programs"].values()
    assert ours["times_ours"].median == 1.0
    [seconds], [floor_seconds] = ours["seconds_of_each_round"], floor["seconds_of_each_round"]
    assert ours["pairs_per_second"].median == pytest.approx(8 / seconds)
    assert ours["tokens_per_second"].median == pytest.approx(
        len(workload.batches[1].token_ids) / seconds
    )
    assert figures["share_of_floor"][throughput.OURS].median == floor_seconds / seconds
    assert other["times_ours"].median == other["seconds_of_each_round"][0] / seconds
    assert other["peak_memory_bytes"] > 2**26
    losses = figures["losses"]
    assert losses[throughput.OURS] == losses[throughput.OURS_WITHOUT_DROPOUT]


def test_the_programs_for_a_gpu_have_the_same_losses_and_turns_on_a_cpu(workload):
    gpu = import_module("gpu")
    figures = gpu.measure(workload, gpu.open_device("cpu"), 1e12, 2)
    assert len(figures) == 4  # nothing is compiled on a CPU
    assert {name.partition(", ")[0] for name in figures} == {gpu.OURS, gpu.PEER}
    for each in figures.values():
        assert each["steps_of_a_round"] == 2
        assert each["mfu"].median == pytest.approx(each["flops_per_second"].median / 1e12)
        assert 0 < each["tokens_per_second"].min <= each["tokens_per_second"].max
    assert gpu.table({**figures, "other": None}).count("\n") == 6


@pytest.mark.slow
def test_a_dry_run_of_the_gpus_benchmark_writes_nothing(corpus_file, tmp_path):
    before = sorted((FOLDER / "results").iterdir())
    command = [sys.executable, FOLDER / "gpu.py", "--dry-run", "--corpus", corpus_file]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("transformers BertForPreTraining") == 2 * 3
    assert sorted((FOLDER / "results").iterdir()) == before


def test_without_a_gpu_its_benchmark_says_so_in_a_line(monkeypatch, capsys):
    gpu = import_module("gpu")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert capsys.readouterr() == ("", "no CUDA device here: nothing was tested or measured\n")


def test_the_floor_makes_every_product_of_the_step_and_no_other(workload, monkeypatch):
    module = import_module("peers.floor")
    # All ways alike, so that the first is chosen: torch's counter does not know oneDNN's products.
    monkeypatch.setattr(module, "best_seconds", lambda way: 0.0)
    floor = module.Floor(workload)
    floor.start()
    with FlopCounterMode(display=False) as counted:
        floor.step(1)
    throughput = import_module("throughput")
    flops = throughput.count_flops(workload, workload.batches[1])
    assert counted.get_total_flops() == flops


def test_spread_and_ratios_are_of_each_round():
    from measure import Spread, round_ratios

    assert Spread.of([3.0, 1.0, 9.0]) == Spread(median=3.0, min=1.0, max=9.0)
    # Not the ratio of the medians, which is 6 / 3.
    assert round_ratios([6.0, 4.0, 40.0], [3.0, 1.0, 8.0]) == Spread(4.0, 2.0, 5.0)
    assert Spread(1234.5, 0.25, 2e6).show(1) == "1,234.5 (0.2 to 2,000,000.0)"
    with pytest.raises(ValueError, match="longer"):
        round_ratios([1.0], [1.0, 2.0])


def test_programs_take_turns():
    from measure import interleave

    turns = []
    seconds = interleave({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 3)
    assert turns == ["a", "b"] * 3
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3}
    assert min(seconds["a"] + seconds["b"]) > 0


def test_results_say_where_they_are_from(monkeypatch, tmp_path):
    import measure

    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    path = measure.write_results("one", {"ratio": measure.Spread(2.0, 1.0, 3.0)}, ["numpy"], 1)
    written = json.loads(path.read_text())
    assert path.name == "one.json" and written["ratio"] == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert written["machine"]["threads"] == 1 and written["machine"]["memory_bytes"] > 2**28
    assert set(written["versions"]) == {"python", "numpy"}
    assert set(written) == {"ratio", "machine", "versions", "commit"}


def test_shares_are_of_what_the_first_number_reached_alone_in_the_round():
    module = import_module("neighbor")
    speeds = {(9, "alone"): [10.0, 20.0], (9, "beside"): [2.0, 5.0], (1, "alone"): [11.0, 18.0]}
    shares = module.shares_of(speeds, 9)
    assert shares[9, "alone"].max == 1.0
    assert (shares[9, "beside"].min, shares[9, "beside"].max) == (0.2, 0.25)
    assert (shares[1, "alone"].min, shares[1, "alone"].max) == (0.9, 1.1)


def test_a_neighbor_computes_while_it_is_wanted():
    with import_module("neighbor").neighbor() as process:
        states = set()
        while "R" not in states:
            states.add(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0])
        assert process.poll() is None
    assert process.returncode is not None


def test_tables_are_markdown():
    from measure import markdown_table

    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_store_without_content_deals_out_whole_batches(tmp_path, monkeypatch):
    scale, written, folder = import_module("scale"), tmp_path / "written", tmp_path / "store"
    monkeypatch.setattr(scale, "BATCH_SIZE", 64)
    scale.write_store(written, 50_000)
    scale.write_manifest(folder, written, 10**7)
    found = scale.measure(folder, written, 4)
    assert found["tokens"] == 10**7 and found["blocks"] == 200
    assert found["sequences"] == 16 and found["highest_position"] > 0.5e7
    assert 1 <= found["first_batch_blocks"] <= 16 and 0 <= found["spread"] < 0.05
    assert 0 < scale.count_examples_of_a_block(written) < 60
