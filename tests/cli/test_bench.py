"""``dattn bench``: small runs on the CPU, and what of the GPU's part can be tried without one."""

import json
from dataclasses import replace

import pytest
import torch

from dattn import Neighborhood, Radial, TokenGrid, attention
from dattn.apps import (
    benchmark,
    benchmark_choosing,
    benchmark_cost,
    benchmark_flex,
    benchmark_gpu,
    benchmark_model,
    benchmark_training,
    timing,
)
from dattn.apps.benchmark_chart import chart
from dattn.apps.benchmark_sweep import best_row, candidates, difference, line, use_rows, with_switches
from dattn.apps.cli import main
from dattn.kernels.config import CROWDED, TABLE, Config, Row, key_of, pick
from dattn.plugin import HANDLE
from dattn.tuning import watch

WANTED = Row(Config(128, 64, 4, 3), Config(64, 32, 4, 2), Config(64, 128, 8, 2))


def test_cpu_writes_figures_machine_and_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "GRIDS", {"tiny": (4, 8, 8)})
    monkeypatch.setattr(benchmark, "MASKS", ("Radial(block_size=16)",))
    output = tmp_path / "new" / "cpu.json"
    small = ["--tokens", "512", "--head-dims", "16", "--heads", "1", "--repeats", "1", "--dtypes", "float32"]
    assert main(["bench", "cpu", *small, "--patterns", "Radial(block_size=64)", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["command"].startswith("dattn bench cpu --tokens 512") and record["machine"]["cores"]
    row = record["attention"][0]
    assert row["tokens"] == 512 and row["efficiency"] == pytest.approx(row["speedup"] * row["density"])
    assert record["masks"][0]["tokens"] == 256 and "block_size=64" in capsys.readouterr().out


def test_a_training_step_is_timed_beside_dense_attention(tmp_path):
    output = tmp_path / "training.json"
    assert main(["bench", "training", "--lengths", "1", "--repeats", "1", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["training"]
    assert [row["pattern"] for row in rows] == list(benchmark_training.PATTERNS)
    for row in rows:
        assert row["tokens"] == 17 * 64 and 0 < row["density"] < 0.5
        assert row["speedup"] == pytest.approx(row["dense_s"] / row["sparse_s"])


def test_choosing_is_timed_beside_dense_attention(tmp_path, capsys):
    output = tmp_path / "choosing.json"
    small = ["--tokens", "512", "--head-dims", "16", "--heads", "2", "--repeats", "1"]
    assert main(["bench", "choosing", *small, "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    rows = content["choosing"]
    assert content["auto"][0]["a look"] > 0
    assert [row["pattern"] for row in rows] == list(benchmark_choosing.PATTERNS)
    for row in rows:
        assert row["choosing"] > 0 and row["whole call"] > 0 and 0 < row["density"] <= 1 and row["tokens"] == 512
    assert "Alike(0.2)" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("what", ["gpu", "selection", "model", "cost", "sweep"])
def test_what_needs_a_gpu_says_so_and_writes_nothing(what, tmp_path, capsys):
    assert main(["bench", what, "--output", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"bench {what}: needs a CUDA device" in error
    assert not list(tmp_path.iterdir())


def test_the_sweep_finds_the_fastest_configuration_of_each_kernel():
    old = TABLE[90, 128, 128]
    asked = []

    def timer(kernel):
        def time(row):
            asked.append(kernel)
            distance = sum(abs(a - b) for a, b in zip(getattr(row, kernel), getattr(WANTED, kernel), strict=True))
            return None if getattr(row, kernel).stages == 4 else float(distance)

        return time

    trials = []
    new = best_row(old, {kernel: timer(kernel) for kernel in Row._fields}, 128, 128, trials.append)
    assert new == WANTED and len(trials) == len(asked)
    assert {trial["kernel"] for trial in trials} == set(Row._fields)
    assert all((trial["ms"] is None) == (trial["config"][3] == 4) for trial in trials)


@pytest.mark.parametrize(("architecture", "sets"), [(80, 2), (90, 4), (100, 8)])
def test_the_sweep_tries_the_switches_that_an_architecture_has(architecture, sets, capsys):
    old, trials = TABLE[90, 128, 128], []
    wanted = old.forward._replace(lazy=True)
    time = lambda row: None if row.forward.specialized else 1.0 + sum(map(int.__ne__, row.forward, wanted))
    new = with_switches(old, time, architecture, trials.append)
    assert new == old._replace(forward=wanted) and len(trials) == sets
    assert "Config(128, 64, 8, 3, lazy=True): 1.0 ms" in capsys.readouterr().out
    written = line((90, 128, 128), new)
    assert eval("{" + written + "}", {"Row": Row, "Config": Config}) == {(90, 128, 128): new}


def test_a_kernel_that_never_runs_keeps_its_configuration():
    old = TABLE[80, 64, 64]
    assert best_row(old, {"forward": lambda row: None}, 64, 64, lambda trial: None) == old


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_candidates_fit_the_block_and_hold_each_other(block, head_dim):
    configs = list(candidates(block, head_dim))
    assert len(configs) == len(set(configs)) > 5
    assert all(block >= c.M and block >= c.N and c.warps in (4, 8) for c in configs)


def test_the_difference_shows_the_old_and_the_new_row():
    key, old = (90, 128, 128), TABLE[90, 128, 128]
    assert difference(key, old, old).endswith("# unchanged")
    minus, plus = difference(key, old, WANTED).splitlines()
    assert minus == "-" + line(key, old) and plus == "+" + line(key, WANTED)
    assert eval("{" + line(key, WANTED) + "}", {"Row": Row, "Config": Config}) == {key: WANTED}


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        ((90, 128, 128), (90, 128, 128)),
        ((87, 72, 16), (80, 96, 64)),
        ((103, 16, 32), (100, 16, 64)),
        ((103, 72, 64), (100, 96, 64)),
        ((86, 48, 128), (80, 64, 128)),
    ],
)
def test_every_gpu_head_dim_and_block_has_a_row(asked, row):
    assert key_of(*asked) == row
    assert all(max(c.M, c.N) <= asked[2] for c in pick(*asked))
    for float32 in ("ieee", "tf32"):
        assert all(max(c.M, c.N) <= asked[2] for c in pick(*asked, float32))


@pytest.mark.parametrize("key", CROWDED)
def test_crowded_masks_take_narrower_tiles(key):
    row, crowded = pick(*key), pick(*key, crowded=True)
    assert crowded == row._replace(**CROWDED[key])
    assert all(getattr(crowded, name).N < getattr(row, name).N for name in CROWDED[key])


@pytest.mark.parametrize("passes", benchmark_model.PASSES)
def test_a_step_of_a_tiny_wan_runs_stock_and_sparse(monkeypatch, passes):
    calls = []

    def measured(call, repeats, may_fail=False):
        call()
        calls.append(repeats)
        return 8.0 / len(calls), 1.0

    monkeypatch.setattr(benchmark_model, "_measured", measured)
    tiny = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "text_dim": 24}
    transformer = benchmark_model.build(2, tiny, "cpu")
    assert transformer.dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32
    row = benchmark_model.step(transformer, "tiny", (9, 16, 16), passes, 3)
    assert calls == [3, 3] and row.speedup == 2.0 and row.tokens == 9 * 64 and row.layers == 2
    assert 0 < row.density <= 1
    assert all(p.grad is None for p in transformer.parameters())


def test_times_that_tune_expects_are_beside_what_a_step_takes(monkeypatch):
    """Attention takes all of the time that passes here, so that expectations are exact."""
    spent = {"Dense": 4.0, "Radial": 1.0, "Neighborhood": 8.0}
    clock = [0.0]
    monkeypatch.setattr(benchmark_cost.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(watch, "_now", lambda tensor: clock[0])
    attend = watch.attend

    def timed(*args, **options):
        clock[0] += spent[type(args[3]).__name__]
        return attend(*args, **options)

    monkeypatch.setattr(watch, "attend", timed)
    tiny = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "text_dim": 24}
    transformer = benchmark_model.build(3, tiny, "cpu")
    monkeypatch.setattr(benchmark_cost, "_seconds_under", lambda model, call, spec, repeats: 2.0 * 3)
    texts = ["Radial(block_size=16)", "Neighborhood((3, None, None))"]
    rows = list(benchmark_cost.costs(transformer, "tiny", (9, 16, 16), 1, texts))
    assert [row.pattern for row in rows] == ["Radial(block_size=16)"]  # the other one is slower than dense attention
    assert rows[0].expected_s == pytest.approx(3 * 1.0) and rows[0].off == pytest.approx(-0.5)
    assert (rows[0].tokens, rows[0].layers) == (9 * 64, 3)


def test_a_step_under_a_candidate_is_timed(monkeypatch):
    monkeypatch.setattr(watch, "_seconds", lambda call, spec, limit=0.0: 0.1 if isinstance(spec, Radial) else 1.0)
    tiny = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "text_dim": 24}
    transformer = benchmark_model.build(1, tiny, "cpu")
    rows = list(benchmark_cost.costs(transformer, "tiny", (9, 16, 16), 1, ["Radial(block_size=16)"]))
    assert len(rows) == 1 and min(rows[0].dense_s, rows[0].expected_s, rows[0].measured_s) > 0
    assert HANDLE not in vars(transformer)


def test_the_chart_shows_rows_with_a_speed_up(tmp_path):
    from matplotlib.image import imread

    row = {"shape": "wan", "pattern": "Radial()", "passes": "forward", "head_dim": 64, "density": 0.2, "speedup": 3.0}
    chart([row, row | {"shape": "flux", "density": 0.1, "speedup": None}], tmp_path / "gpu.png")
    assert imread(tmp_path / "gpu.png")[..., :3].min() < 0.5
    chart([row | {"speedup": None}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


FLEX = {
    "radial": (Radial(decay=0.2), TokenGrid(7, 9, 12)),
    "image": (Neighborhood((1, 11, 11), tile=(1, 8, 16)), TokenGrid(1, 32, 32)),
    "stride is the tile": (Neighborhood((3, 5, 24), stride=(3, 5, 8), tile=(3, 5, 8)), TokenGrid(6, 10, 24)),
    "small and ragged": (Neighborhood((3, 5, 18), stride=(1, 5, 6), tile=(1, 5, 6)), TokenGrid(3, 10, 24)),
    "stride 1": (Neighborhood((3, 5, 9), tile=(3, 5, 8)), TokenGrid(5, 11, 13, text=(3, 20))),
    "smaller blocks": (Neighborhood((3, 5, 9), tile=(1, 5, 6)), TokenGrid(3, 11, 13, text=20)),
}


@pytest.mark.parametrize("case", FLEX)
def test_flex_attention_gets_the_very_same_mask(case):
    """Element by element, what its block mask and its rule say of every pair; and its output."""
    pattern, grid = FLEX[case]
    mask = pattern.mask(grid)
    assert mask.block_size == (32 if "small" in case else 128)
    flex = benchmark_flex.flex_attention(mask, compiled=False)
    there = flex.slots >= 0
    assert there.sum() == grid.tokens and bool(there.all()) == (case == "image")
    dense = flex.blocks.to_dense()[0, 0].bool().repeat_interleave(128, 0).repeat_interleave(128, 1)
    slots = torch.arange(len(flex.slots))
    seen = dense & flex.blocks.mask_mod(0, 0, slots[:, None], slots[None])
    allowed = pattern.allowed(grid)
    assert torch.equal(seen[there][:, there], allowed[flex.slots[there]][:, flex.slots[there]])
    assert not seen[there][:, ~there].any()
    inputs = torch.randn(3, 1, 2, grid.tokens, 16, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(3, 1, 2, len(there), 16).index_copy(3, slots[there], inputs[..., flex.slots[there], :])
    rules = {"stride 1": "in_tile", "smaller blocks": "in_tile", "image": "in_tile", "small and ragged": "listed"}
    assert flex.blocks.mask_mod.__name__ == rules.get(case, "within")  # the least that the mask needs
    squares = seen.unflatten(1, (-1, 128)).unflatten(0, (-1, 128)).transpose(1, 2).flatten(2)
    assert flex.partial == pytest.approx(1 - squares.all(-1).sum().item() / squares.any(-1).sum().item())
    rule = flex.blocks.mask_mod  # uncompiled, it looks at no list: the rule has to tell
    flex.blocks.mask_mod = lambda batch, head, query, key: rule(batch, head, query, key) & dense[query, key]
    output = flex(*padded)[:, :, there]
    expected = attention(*inputs, pattern, grid)[:, :, flex.slots[there]]
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_flex_attention_is_left_out_where_it_has_no_equal():
    assert benchmark_flex.flex_attention(Radial(tail=True).mask(TokenGrid(6, 12, 14))) is None


@pytest.mark.parametrize(
    ("ms", "repeats", "calls"), [(2.0, 5, 20), (2.0, 30, 30), (100.0, 5, 10), (1000.0, 5, 5), (20000.0, 5, 2)]
)
def test_short_calls_are_timed_more_often(monkeypatch, ms, repeats, calls):
    pytest.importorskip("triton")
    timed = []
    monkeypatch.setattr(timing, "_event_time", lambda call: timed.append(call) or ms + len(timed) / 1000)
    assert timing.milliseconds(lambda: None, repeats) == pytest.approx(ms + (calls + 1) / 2000, rel=1e-9)
    assert len(timed) == calls


def test_a_step_that_does_not_fit_is_timed_with_fewer_layers(monkeypatch):
    tried = []

    def measured(call, repeats, may_fail=False):
        tried.append(len(transformer.blocks))
        return (None, None) if tried[-1] > 2 else (2.0, 1.0)

    monkeypatch.setattr(benchmark_model, "_measured", measured)
    tiny = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "text_dim": 24}
    transformer = benchmark_model.build(4, tiny, "cpu")
    monkeypatch.setattr(benchmark_model, "_training", lambda transformer, inputs: lambda: transformer(**inputs))
    monkeypatch.setattr(benchmark_model, "denoising", lambda transformer, inputs: lambda: None)
    row = benchmark_model.step_that_fits(transformer, "tiny", (9, 16, 16), "denoising step", 1)
    assert tried == [4, 4, 2, 2] and (row.layers, row.sparse_ms) == (2, 2.0) and len(transformer.blocks) == 4


def test_rows_of_a_sweep_are_launched(monkeypatch, tmp_path):
    key = (90, 128, 128)
    monkeypatch.setitem(TABLE, key, TABLE[key])
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps({"rows": [{"row": key, "configs": WANTED}]}))
    use_rows(file)
    assert pick(90, 128, 128) == WANTED
    file.write_text(json.dumps({"sweep": []}))
    with pytest.raises(ValueError, match="no rows of a sweep"):
        use_rows(file)


def test_what_is_not_asked_for_is_as_the_benchmark_has_it():
    options = lambda *words: benchmark._options(words)
    assert (options("sweep").head_dims, options("sweep").blocks) == ([64, 128, 256], [64, 128])
    assert options("sweep", "--head-dims", "64").head_dims == [64] and options("compiled").blocks == [128]
    quick = options("gpu", "--quick", "--repeats", "7")
    assert (quick.head_dims, quick.shapes, len(quick.patterns)) == ([128], ["wan-720p", "wan-720p-4x"], 2)
    assert quick.repeats == 7 and (options("model", "--quick").layers, options("model").layers) == (2, 8)
    with pytest.raises(ValueError, match="--quick: gpu"):
        options("cpu", "--quick")


def test_choosing_on_a_gpu_is_of_a_clip(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = benchmark._options(["choosing"])
    assert (options.tokens, options.heads) == ([75_600], 40)


def timing_of(passes, ms, cudnn, flex=None):
    return benchmark_gpu.Timing(
        shape="wan", pattern="Radial()", head_dim=128, passes=passes, density=0.2, ms=ms, rate=1.0, order_ms=0.0,
        cudnn_ms=cudnn, flash_ms=None, flex_ms=flex, flex_partial=None, speedup=cudnn / ms, saved=cudnn / ms * 0.2,
        over_flex=flex / ms if flex else None,
    )  # fmt: skip


def test_the_backward_pass_is_what_both_take_more():
    forward, both = timing_of("forward", 2.0, 8.0), timing_of(benchmark_gpu.BOTH, 7.0, 28.0)
    row = benchmark_gpu.with_backward(both, forward)
    assert (row.backward_ms, row.backward_speedup) == (5.0, 4.0) and row.backward_saved == pytest.approx(0.8)
    assert benchmark_gpu.with_backward(forward, forward) == forward
    target = lambda timing: benchmark_gpu.against_targets(timing).target
    assert target(row) == "met" and target(both) is None
    assert target(forward) == "met" and target(timing_of("forward", 2.0, 8.0, 2.0)) == "over_flex 1.00 < 1.25"
    assert target(timing_of("forward", 4.0, 8.0, 5.0)) == "saved 0.40 < 0.75"
    assert target(replace(forward, head_dim=64)) is None


def test_a_failure_of_stock_attention_is_a_gap_and_one_of_ours_ends_the_run(monkeypatch):
    def broken(call):
        raise RuntimeError("no engine")

    pytest.importorskip("triton")
    for name in ("empty_cache", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(timing, "_event_time", broken)
    assert benchmark_model._measured(lambda: None, 1, may_fail=True) == (None, None)
    with pytest.raises(RuntimeError, match="no engine"):
        benchmark_model._measured(lambda: None, 1)
