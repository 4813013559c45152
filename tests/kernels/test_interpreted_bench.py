"""The GPU's benchmarks run through, with interpreted kernels and a clock that only calls: no figure means anything."""

import json
import os
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from dattn.apps import benchmark_gpu, benchmark_selection, benchmark_sweep
from dattn.apps.cli import main
from dattn.kernels.config import TABLE, Config

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="the interpreter is chosen before import: TRITON_INTERPRET=1"
)
OPTIONS = SimpleNamespace(shapes=None, head_dims=[16], blocks=[64], repeats=1, patterns=None)


def called(call, repeats, warm_up=2, may_fail=False):
    try:
        call()
    except RuntimeError:
        if not may_fail:
            raise
        return None
    return 2.0


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    shapes = (benchmark_gpu.Shape("wan-720p", (3, 6, 10), 1),)
    for module in (benchmark_gpu, benchmark_selection, benchmark_sweep):
        monkeypatch.setattr(module, "DEVICE", "cpu")
        monkeypatch.setattr(module, "milliseconds", called)
        monkeypatch.setattr(module, "gpu_needed", lambda what: None)
    for module in (benchmark_gpu, benchmark_selection):
        monkeypatch.setattr(module, "SHAPES", shapes)


def test_attention(monkeypatch):
    patterns = ("Radial(tail=True)", "Neighborhood((1, 3, 3), tile=(1, 2, 5))")
    monkeypatch.setattr(benchmark_gpu, "VIDEO_PATTERNS", patterns)
    saved = []
    rows = benchmark_gpu.gpu(OPTIONS, saved.append)["attention"]
    assert [(r["pattern"], r["passes"]) for r in rows] == [
        (pattern, passes) for passes in ("forward", "forward + backward") for pattern in patterns
    ]
    assert len(saved) == 4 and all(r["ms"] == 2.0 and r["cudnn_ms"] is None for r in rows)
    assert rows[0]["order_ms"] == 0 and rows[1]["order_ms"] == 2.0
    assert rows[1]["rate"] == pytest.approx(4 * 180**2 * 16 * rows[1]["density"] / 2.0 / 1e9)


def test_a_failure_of_our_own_is_recorded_and_the_run_goes_on(monkeypatch, tmp_path, capsys):
    def broken(mask, head_dim):
        def call(*inputs):
            raise RuntimeError("broken")

        return call

    monkeypatch.setattr(benchmark_gpu, "_sparse", broken)
    output = tmp_path / "gpu.json"
    asked = ["--head-dims", "16", "--patterns", "Radial()", "Dense()", "--output", str(output)]
    assert main(["bench", "gpu", *asked]) == 1
    failed = json.loads(output.read_text())["failed"]
    assert len(failed) == 4 and {row["error"] for row in failed} == {"RuntimeError: broken"}
    assert "Dense() 16 forward RuntimeError: broken" in capsys.readouterr().out


def test_selection():
    rows = benchmark_selection.selection(OPTIONS, lambda record: None)["selection"]
    assert all(row["ms"] == 2.0 for row in rows)
    assert {*benchmark_selection.PATTERNS} < {row["selection"] for row in rows} and len(rows) == 6


def test_a_row_of_the_table_that_fails_is_noted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    row = TABLE[90, 64, 64]
    monkeypatch.setattr(benchmark_sweep, "_timers", lambda *given: {"grad_key": lambda tried: None, "forward": fast})
    fast = lambda tried: None if tried.forward == row.forward else 1.0 + tried.forward.lazy
    record = benchmark_sweep.sweep(OPTIONS, lambda record: None)
    assert [trial["kernel"] for trial in record["failed"]] == ["grad_key", "forward"]
    (found,) = record["rows"]
    assert found["configs"].grad_key == row.grad_key and found["configs"].forward != row.forward


def test_sweep_tries_rows_of_the_table_and_leaves_it_as_it_was(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (9, 0))
    monkeypatch.setattr(benchmark_sweep, "GRID", (2, 8, 9))
    monkeypatch.setattr(
        benchmark_sweep, "PATTERNS", (benchmark_sweep.PATTERNS[0], "Neighborhood((1, 3, 3), tile=(1, 8, 8))")
    )
    monkeypatch.setattr(benchmark_sweep, "HEADS", 1)
    tried = Config(32, 32, 4, 2)
    monkeypatch.setattr(benchmark_sweep, "candidates", lambda block, head_dim: [tried])
    before = dict(TABLE)
    record = benchmark_sweep.sweep(OPTIONS, lambda record: None)
    assert before == TABLE and all(trial["ms"] == 2.0 for trial in record["sweep"])
    plain = TABLE[90, 64, 64].forward  # none is faster: it stays, and its switches are tried
    switched = {plain._replace(lazy=a, descriptors=b) for a, b in product((False, True), repeat=2)}
    assert {tuple(t["config"]) for t in record["sweep"]} == {tried, *TABLE[90, 64, 64], *switched}
    assert record["table"][0].startswith("(90, 64, 64): Row(") and "(90, 64, 64)" in capsys.readouterr().out
