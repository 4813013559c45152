"""Training with a model in parts (FSDP2), in two CPU processes: what comes out is what comes out of a whole model."""

import json
import os
import signal
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.utils import DistributedType
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dattn.apps.lora.checkpoints import checkpoints
from dattn.apps.lora.lessons import Lessons
from dattn.apps.lora.sharding import prepare
from tests.pipelines.tiny import MODELS

from .runs import WEIGHTS, launched, near, same, train

BLOCKS = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
ALL_AT_ONCE = BLOCKS | {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}
QUICK = ["--validation_steps", "0"]


def started(data, output, steps, *more, env=BLOCKS):
    return launched(2, data, output, steps, *more, module="tests.lora.on_cpus", env=env)


def sharded(data, output, steps, *more, env=BLOCKS):
    """A run in two processes that hold a part each; what it said."""
    process = started(data, output, steps, *more, env=env)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    newest = checkpoints(output)[-1] / "state.json"
    assert json.loads(newest.read_text())["sharded"]
    assert json.loads((output / "run.json").read_text())["loaded_back_error"] < 1e-3
    return said


def test_two_processes_with_a_part_each_and_one_that_sees_as_much(pictures, tmp_path):
    sharded(pictures, tmp_path / "parts", 2, *QUICK)
    assert train(pictures, tmp_path / "whole", 2, *QUICK, "--gradient_accumulation_steps", "2") == 0
    assert near(tmp_path / "parts", tmp_path / "whole", 1e-3)
    pipe = DiffusionPipeline.from_pretrained(f"{MODELS}/shapes-flux")
    pipe.load_lora_weights(str(tmp_path / "parts"), adapter_name="own")
    there = {name: tensor for name, tensor in pipe.transformer.named_parameters() if "lora_B" in name}
    assert there and all(tensor.norm() > 0 for tensor in there.values())


@pytest.mark.slow
def test_parts_and_copies(pictures, tmp_path):
    """FSDP and DDP."""
    options = [*QUICK, "--gradient_accumulation_steps", "2", "--attention", "Neighborhood(3)"]
    options += ["--max_grad_norm", "0.05"]  # less than they have, and not as much less in every step
    sharded(pictures, tmp_path / "parts", 3, *options)
    copies = launched(2, pictures, tmp_path / "copies", 3, *options)
    said, _ = copies.communicate(timeout=300)
    assert copies.returncode == 0, said
    assert near(tmp_path / "parts", tmp_path / "copies", 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("env", [BLOCKS, ALL_AT_ONCE], ids=["blocks", "all at once"])
def test_a_teacher_in_parts(pictures, tmp_path, env):
    """It has neither LoRA nor what the normalisation learned; and is asked in all processes where one asks.

    Of five batches the first comes again in the third step, in one process.
    """
    options = ["--distill", "--teach_epochs", "1", "--attention", "Neighborhood(3)", "--train_norms"]
    options += ["--validation_steps", "1", "--norm_learning_rate", "1e-3"]
    said = sharded(pictures, tmp_path / "parts", 4, *options, "--validation_prompts", "a circle", env=env)
    assert "none on the way" in said
    assert train(pictures, tmp_path / "whole", 4, *options, "--gradient_accumulation_steps", "2") == 0
    assert near(tmp_path / "parts", tmp_path / "whole", 1e-3)
    logs = [(tmp_path / name / "training.jsonl").read_text().splitlines() for name in ("parts", "whole")]
    for ours, its in zip(*logs, strict=True):
        assert json.loads(ours)["validation_loss"] == pytest.approx(json.loads(its)["validation_loss"], rel=1e-3)
    assert Image.open(tmp_path / "parts" / "validation.png").width > 60


@pytest.mark.slow
def test_in_half_precision(pictures, tmp_path):
    options = [*QUICK, "--mixed_precision", "bf16", "--gradient_checkpointing"]
    sharded(pictures, tmp_path / "parts", 2, *options)
    assert train(pictures, tmp_path / "whole", 2, *options, "--gradient_accumulation_steps", "2") == 0
    assert near(tmp_path / "parts", tmp_path / "whole", 0.01)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(pictures, tmp_path):
    options = [*QUICK, "--checkpointing_steps", "2", "--train_norms", "--caption_dropout", "0.3"]
    run = started(pictures, tmp_path / "killed", 500, *options)
    _wait_for(tmp_path / "killed" / "checkpoint-4")
    for process in [*psutil.Process(run.pid).children(recursive=True), run]:
        process.kill()
    run.communicate(timeout=60)
    assert not (tmp_path / "killed" / WEIGHTS).exists()
    _goes_on(pictures, tmp_path / "killed", tmp_path / "whole", options)


@pytest.mark.slow
def test_ctrl_c_in_one_process_stops_all_after_a_step(pictures, tmp_path):
    options = [*QUICK, "--checkpointing_steps", "3"]
    run = started(pictures, tmp_path / "broken", 500, *options)
    _wait_for(tmp_path / "broken" / "checkpoint-3")
    last = max(psutil.Process(run.pid).children(), key=lambda process: process.pid)
    os.kill(last.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode != 0 and len(checkpoints(tmp_path / "broken")) > 1, said
    _goes_on(pictures, tmp_path / "broken", tmp_path / "whole", options)


def _wait_for(folder):
    until = time.monotonic() + 200
    while not folder.is_dir() and time.monotonic() < until:
        time.sleep(0.05)
    assert folder.is_dir()


def _goes_on(pictures, broken, whole, options):
    """To the bit what comes out of a run that nobody stopped."""
    steps = int(checkpoints(broken)[-1].name.partition("-")[2]) + 1
    sharded(pictures, broken, steps, *options, "--resume_from_checkpoint", "latest")
    sharded(pictures, whole, steps, *options)
    assert same(broken, whole)
    first, second = (load_file(checkpoints(folder)[-1] / "optimizer.safetensors") for folder in (broken, whole))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("plugin", "options", "says"),
    [
        ({"fsdp_version": 1}, {}, "set fsdp_version: 2"),
        ({"cpu_ram_efficient_loading": True}, {}, "set it to false"),
        ({"activation_checkpointing": True}, {}, "give --gradient_checkpointing"),
        ({}, {"placeholder_token": ["<new1>"]}, "--placeholder_token <new1>: not with FSDP"),
        ({}, {"use_8bit_adam": True}, "--use_8bit_adam: not with FSDP"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value), "-"),
)
def test_what_cannot_be_is_said_before_it_begins(plugin, options, says):
    usual = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "activation_checkpointing": False}
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(**usual | plugin))
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, state=state)
    asked = SimpleNamespace(**{"placeholder_token": [], "use_8bit_adam": False} | options)
    with pytest.raises(ValueError, match=says):
        prepare(accelerator, asked)
    accelerator.distributed_type = DistributedType.MULTI_GPU
    prepare(accelerator, asked)


def test_a_teacher_speaks_where_another_process_asks(tmp_path):
    """What is on disk is read all the same."""
    asked = []
    teach = lambda: asked.append(1) or torch.full((1,), float(len(asked)))
    alone, together = (Lessons(tmp_path / "one", 2, anywhere) for anywhere in (bool, lambda missing: True))
    assert [float(alone.target(0, teach)) for _ in range(2)] == [1, 1] and len(asked) == 1
    assert float(together.target(0, teach)) == 1 and len(asked) == 2
