"""Training as a user starts it: the LoRA that comes out, going on after a break, and what is refused."""

import json
import math
import os
import shutil
import signal
import time

import numpy as np
import psutil
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import dattn
from dattn.apps.cli import main
from dattn.apps.sheet import sheet
from tests.pipelines.tiny import MODELS

from .runs import FLUX, WEIGHTS, launched, near, same, train
from .test_asking import MAKERS


def test_a_run_from_data_to_a_lora_that_stock_diffusers_loads(pictures, tmp_path, capsys):
    options = ["--attention", "Neighborhood(3)", "--train_batch_size", "2", "--validation_steps", "2"]
    assert train(pictures, tmp_path, 4, *options, "--validation_prompts", "a red circle") == 0
    said = capsys.readouterr().out
    assert "skipped: " in said and "broken.png: cannot be read" in said and "5 examples" in said
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["loaded_back_error"] < 1e-5 and run["examples"] == 5 and run["versions"]["peft"]
    log = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4] and all("validation_loss" in line for line in log[::2])
    assert Image.open(tmp_path / "validation.png").width > 60
    pipe = DiffusionPipeline.from_pretrained(f"{MODELS}/shapes-flux")
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 16, "output_type": "pt"}
    make = lambda: pipe("a red circle", generator=torch.Generator().manual_seed(0), **call).images
    plain = make()
    pipe.load_lora_weights(str(tmp_path))
    adapted = make()
    assert (adapted - plain).abs().max() > 1e-3
    with dattn.apply(pipe, str(tmp_path / "recipe.json")) as handle:
        assert not torch.equal(make(), adapted) and "Neighborhood" in str(handle.report())
    pipe.unload_lora_weights()
    assert torch.equal(make(), plain)
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.pkl"))


def test_going_on_is_never_having_stopped(pictures, tmp_path):
    options = ["--checkpointing_steps", "2", "--gradient_accumulation_steps", "2", "--caption_dropout", "0.3"]
    options += ["--lr_scheduler", "cosine", "--attention", "Neighborhood(3)"]
    assert train(pictures, tmp_path / "whole", 5, *options) == 0
    assert train(pictures, tmp_path / "broken", 5, *options) == 0
    for gone in ("checkpoint-4", "checkpoint-5"):
        (tmp_path / "broken" / gone / "state.json").unlink()
        for file in (tmp_path / "broken" / gone).iterdir():
            file.unlink()
        (tmp_path / "broken" / gone).rmdir()
    (tmp_path / "broken" / WEIGHTS).unlink()
    assert train(pictures, tmp_path / "broken", 5, *options) == 2  # an earlier run's checkpoints are in the way
    assert train(pictures, tmp_path / "broken", 5, *options, "--rank", "3", "--resume_from_checkpoint", "latest") == 2
    assert train(pictures, tmp_path / "broken", 5, *options, "--resume_from_checkpoint", "latest") == 0
    assert same(tmp_path / "whole", tmp_path / "broken")
    assert train(pictures, tmp_path / "other", 5, *options, "--seed", "1") == 0
    assert not same(tmp_path / "whole", tmp_path / "other")


def test_samples_on_the_way_change_nothing_and_are_seen_in_the_picture(pictures, tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(
        "dattn.apps.lora.validation.sheet", lambda rows, *a, **k: labels.append([*rows]) or sheet(rows, *a, **k)
    )
    options = ["--attention", "Neighborhood(3)", "--validation_steps", "2"]
    assert train(pictures, tmp_path / "plain", 5, *options) == 0
    assert train(pictures, tmp_path / "seen", 5, *options, "--validation_prompts", "a circle", "a square") == 0
    assert same(tmp_path / "plain", tmp_path / "seen")
    moments = ["before", "step 2", "step 4", "after"]
    assert labels[-1] == [f"{prompt}, {when}" for prompt in ("a circle", "a square") for when in moments]
    assert [len(rows) for rows in labels] == [2, 4, 6, 8]  # the picture is there from the start, and grows
    assert not (tmp_path / "seen" / "validation.part.png").exists()


@pytest.mark.slow
def test_the_picture_goes_on_where_the_run_does(pictures, tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(
        "dattn.apps.lora.validation.sheet", lambda rows, *a, **k: labels.append([*rows]) or sheet(rows, *a, **k)
    )
    options = ["--validation_steps", "1", "--checkpointing_steps", "2", "--validation_prompts", "a circle"]
    assert train(pictures, tmp_path, 4, *options) == 0
    whole = (tmp_path / "validation.png").read_bytes()
    shutil.rmtree(tmp_path / "checkpoint-4")
    labels.clear()
    assert train(pictures, tmp_path, 4, *options, "--resume_from_checkpoint", "latest") == 0
    assert [len(rows) for rows in labels] == [4, 5]  # what was made up to step 2 is not made again, what came later is
    assert (tmp_path / "validation.png").read_bytes() == whole


def test_fp16_is_not_for_cpus(pictures, tmp_path, capsys):
    assert train(pictures, tmp_path, 1, "--mixed_precision", "fp16") == 2
    assert "--mixed_precision fp16: not on a CPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_fp16_goes_on_as_well(pictures, tmp_path, monkeypatch):
    """With the scale of its loss."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    options = ["--mixed_precision", "fp16", "--checkpointing_steps", "2", "--attention", "Neighborhood(3)"]
    assert train(pictures, tmp_path / "whole", 4, *options) == 0
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["loaded_back_error"] < 1e-3
    log = [json.loads(line) for line in (tmp_path / "whole" / "training.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in log[1:])
    assert train(pictures, tmp_path / "broken", 2, *options) == 0
    state = json.loads((tmp_path / "broken" / "checkpoint-2" / "state.json").read_text())
    assert state["scaler"]["scale"] > 1
    assert train(pictures, tmp_path / "broken", 4, *options, "--resume_from_checkpoint", "latest") == 0
    assert near(tmp_path / "whole", tmp_path / "broken", 0.05)  # a GPU adds up in no fixed order


def test_in_half_precision(pictures, tmp_path):
    options = ["--mixed_precision", "bf16", "--gradient_checkpointing", "--validation_prompts", "a red circle"]
    options += ["--validation_steps", "1"]
    assert train(pictures, tmp_path, 2, *options, "--attention", "Neighborhood(3)") == 0
    assert json.loads((tmp_path / "run.json").read_text())["loaded_back_error"] < 1e-2
    assert Image.open(tmp_path / "validation.png").width > 60


def test_what_was_made_by_other_parts_is_made_anew(tmp_path):
    """Names of files tell a scaling factor, a word and a single weight."""
    from dattn.apps.lora.cache import Cache

    def name():
        return Cache(tmp_path, pipe, model, {})._kept(["told"], lambda: {"one": torch.zeros(1)}).name

    pipe = MAKERS["sd"]()
    model = pipe.unet
    names = [name(), name()]
    with torch.no_grad():
        next(pipe.text_encoder.parameters())[3, 1] += 1
    names.append(name())
    pipe.vae.register_to_config(scaling_factor=3.0)
    names.append(name())
    pipe.tokenizer.add_tokens(["dattn"])
    names.append(name())
    assert names[0] == names[1] and len(set(names)) == 4


def test_checkpoints_are_limited(pictures, tmp_path):
    assert train(pictures, tmp_path, 4, "--checkpointing_steps", "1", "--checkpoints_total_limit", "2") == 0
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_a_teacher_that_is_the_student_leaves_nothing_to_learn(pictures, tmp_path):
    assert train(pictures, tmp_path / "same", 1, "--distill") == 0
    assert train(pictures, tmp_path / "sparse", 1, "--distill", "--attention", "Neighborhood(3)") == 0
    logs = [(tmp_path / name / "training.jsonl").read_text().splitlines() for name in ("same", "sparse")]
    first, second = ([json.loads(line) for line in log] for log in logs)
    assert first[0]["validation_loss"] == 0 < second[0]["validation_loss"]
    assert first[1]["loss"] == 0 < second[1]["loss"]


def test_under_a_guidance_what_guidance_makes_of_both_predictions_is_matched(pictures, tmp_path, monkeypatch):
    from dattn.apps.lora.loop import Batch

    real, seen = Batch.loss, []

    def noting(self, prediction, target):
        loss = real(self, prediction, target)
        seen.append((self.arguments, prediction.detach(), target, loss.item()))
        return loss

    monkeypatch.setattr(Batch, "loss", noting)
    words = ["--distill", "--attention", "Neighborhood(3)", "--validation_steps", "1", "--teach_epochs", "1"]
    assert train(pictures, tmp_path, 2, *words, "--distill_guidance", "4", "--train_batch_size", "2") == 0
    for arguments, prediction, target, loss in seen:
        latents, text = arguments["hidden_states"], arguments["encoder_hidden_states"]
        assert len(latents) == 4 and torch.equal(latents[:2], latents[2:]) and not torch.equal(text[:2], text[2:])
        told, untold = (prediction - target)[:2], (prediction - target)[2:]
        assert loss == pytest.approx(((untold + 4 * (told - untold)) / 4).square().mean().item(), rel=1e-5) and loss > 0
    validation = json.loads((tmp_path / "training.jsonl").read_text().splitlines()[0])["validation_loss"]
    assert validation > 0


def test_a_teacher_is_asked_once_for_what_comes_again(pictures, tmp_path, monkeypatch):
    """Five examples are five batches: the sixth is the first again, with its noise, also where a run goes on."""
    from dattn.apps.lora.loop import Batch, Trainer

    real, teacher, seen, asked = Batch.__init__, Trainer._teacher, [], []

    def noting(self, *args):
        real(self, *args)
        seen.append((self.captions, self.arguments["hidden_states"].clone()))

    monkeypatch.setattr(Batch, "__init__", noting)
    monkeypatch.setattr(Trainer, "_teacher", lambda self, batch: asked.append(len(seen)) or teacher(self, batch))
    words = ["--distill", "--attention", "Neighborhood(3)", "--validation_steps", "0", "--checkpointing_steps", "6"]
    assert train(pictures, tmp_path / "always", 8, *words) == 0
    always, told = seen[:8], len(asked)
    assert told == 8
    seen.clear(), asked.clear()
    again = [*words, "--teach_epochs", "1"]
    assert train(pictures, tmp_path / "once", 8, *again) == 0
    assert asked == [1, 2, 3, 4, 5]
    for number in range(8):
        captions, latents = seen[number]
        assert captions == always[number % 5][0] and torch.equal(latents, always[number % 5][1])
    assert not (tmp_path / "once" / "taught").exists()
    assert train(pictures, tmp_path / "parts", 6, *again) == 0  # its files are gone by then, and made again
    assert train(pictures, tmp_path / "parts", 8, *again, "--resume_from_checkpoint", "latest") == 0
    assert same(tmp_path / "parts", tmp_path / "once")


def test_an_interrupted_run_leaves_a_checkpoint(pictures, tmp_path, monkeypatch):
    from dattn.apps.lora.loop import Trainer

    one_step = Trainer._one_step

    def interrupted(self):
        if self.step == 2:
            raise KeyboardInterrupt
        return one_step(self)

    monkeypatch.setattr(Trainer, "_one_step", interrupted)
    assert train(pictures, tmp_path, 4) == 130
    assert (tmp_path / "checkpoint-2" / "state.json").is_file()


def test_ctrl_c_waits_for_a_step_to_be_whole(pictures, tmp_path, monkeypatch):
    from torch.optim import AdamW

    step, steps = AdamW.step, []

    def interrupting(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    options = ["--checkpointing_steps", "9", "--validation_steps", "0"]
    monkeypatch.setattr(AdamW, "step", interrupting)
    assert train(pictures, tmp_path / "broken", 4, *options) == 130
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "broken").glob("checkpoint-*")] == ["checkpoint-2"]
    assert train(pictures, tmp_path / "broken", 4, *options, "--resume_from_checkpoint", "latest") == 0
    assert train(pictures, tmp_path / "whole", 4, *options) == 0
    assert same(tmp_path / "broken", tmp_path / "whole")


def test_noise_is_that_of_the_size(pictures, tmp_path, monkeypatch, capsys):
    """A pipeline that shifts by size: training draws the same levels, shifted as much; and says so to who goes on."""
    from dattn.apps.lora.objective import Objective

    noisy, levels = Objective.noisy, []
    monkeypatch.setattr(
        Objective, "noisy", lambda self, clean, noise, at: levels.append(at) or noisy(self, clean, noise, at)
    )
    of_size = {"base_image_seq_len": 64, "max_image_seq_len": 512, "base_shift": 0.4, "max_shift": 1.2}
    pipe = DiffusionPipeline.from_pretrained(f"{MODELS}/shapes-flux")
    for name, dynamic in (("plain", False), ("by-size", True)):
        pipe.scheduler.register_to_config(shift=1.0, use_dynamic_shifting=dynamic, **of_size)
        pipe.save_pretrained(tmp_path / name)
        words = ["--model", str(tmp_path / name), "--validation_steps", "0", "--max_sequence_length", "16"]
        assert train(pictures, tmp_path / f"{name}-lora", 2, *words) == 0
    plain, shifted = levels[0], levels[len(levels) // 2]
    shift = math.exp(0.4)  # 32 x 32 pixels are 64 tokens
    assert torch.allclose(shifted, shift * plain / (1 + (shift - 1) * plain)) and not torch.allclose(plain, shifted)
    again = ["--validation_steps", "0", "--max_sequence_length", "16", "--resume_from_checkpoint", "latest"]
    pipe.scheduler.register_to_config(max_shift=2.0, base_shift=0.7)
    pipe.save_pretrained(tmp_path / "by-size")
    assert train(pictures, tmp_path / "by-size-lora", 3, "--model", str(tmp_path / "by-size"), *again) == 2
    assert "shifts was" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changed",
    [
        ("--gradient_accumulation_steps", "2"),
        ("--attention", "Neighborhood(3)"),
        ("--distill",),
        ("--caption_dropout", "0.5"),
        ("--weighting_scheme", "none"),
    ],
    ids=lambda words: words[0],
)
def test_other_options_are_another_run(pictures, tmp_path, capsys, changed):
    assert train(pictures, tmp_path, 1, "--validation_steps", "0") == 0
    again = "--validation_steps", "0", "--resume_from_checkpoint", "latest"
    assert train(pictures, tmp_path, 2, *again, *changed) == 2
    assert f"{changed[0].removeprefix('--')} was" in capsys.readouterr().err
    assert train(pictures, tmp_path, 2, *again) == 0


def test_what_a_killed_run_left_is_no_obstacle(pictures, tmp_path):
    options = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "1", "--validation_steps", "0"]
    assert train(pictures, tmp_path, 2, *options) == 0
    log = tmp_path / "training.jsonl"
    log.write_text(log.read_text() + '{"step": 3, "lo')
    for name in (".checkpoint-3.part", ".checkpoint-1.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lora.safetensors").write_bytes(b"half")
    assert train(pictures, tmp_path, 3, *options, "--resume_from_checkpoint", "latest") == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == ["checkpoint-3"]


def test_two_processes_and_one_that_sees_as_much(pictures, tmp_path):
    """Two processes with a batch each are one that accumulates two, up to the order of sums."""
    two = launched(2, pictures, tmp_path / "two", 2, "--validation_steps", "0")
    said, _ = two.communicate(timeout=300)
    assert two.returncode == 0, said
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert train(pictures, tmp_path / "one", 2, "--validation_steps", "0", "--gradient_accumulation_steps", "2") == 0
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("two", "one"))
    moved = {name: tensor for name, tensor in second.items() if "lora_B" in name}
    apart, whole = (
        sum(float(x.square().sum()) for x in xs) for xs in ([first[n] - moved[n] for n in moved], moved.values())
    )
    assert apart < 1e-3 * whole, (apart, whole)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on(processes, pictures, tmp_path):
    """However many processes there are: what comes out is to the bit what comes out of a run that nobody killed."""

    def train(*args):
        run = launched(processes, *args)
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0, said
        return run.returncode

    options = ["--checkpointing_steps", "2", "--validation_steps", "0"]
    run = launched(processes, pictures, tmp_path / "killed", 500, *options)
    until = time.monotonic() + 200
    while not (tmp_path / "killed" / "checkpoint-4").is_dir() and time.monotonic() < until:
        time.sleep(0.05)
    for process in [*psutil.Process(run.pid).children(recursive=True), run]:  # torchrun's have sessions of their own
        process.kill()
    run.communicate(timeout=60)
    assert run.returncode != 0 and not (tmp_path / "killed" / WEIGHTS).exists()
    done = max(int(path.name.partition("-")[2]) for path in (tmp_path / "killed").glob("checkpoint-*"))
    steps = done + 1
    train(pictures, tmp_path / "killed", steps, *options, "--resume_from_checkpoint", "latest")
    train(pictures, tmp_path / "whole", steps, *options)
    assert same(tmp_path / "killed", tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["processes"] == processes


def test_options_may_come_from_a_file(pictures, tmp_path):
    (tmp_path / "run.toml").write_text(
        f'model = "{MODELS}/shapes-flux"\ndata = "{pictures}"\nbuckets = ["32x32"]\nmax_train_steps = 1\nrank = 3\n'
        f'output = "{tmp_path}/out"\ncache-dir = "{pictures}/cache"\nvalidation_steps = 0\n'
    )
    assert main(["train-lora", "--config", str(tmp_path / "run.toml"), "--rank=2", "--learning-rate=1e-3"]) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"]["learning_rate"] == 1e-3
    (tmp_path / "wrong.toml").write_text('weighting_scheme = "cosinus"')
    assert main(["train-lora", "--config", str(tmp_path / "wrong.toml")]) == 2
    lora = load_file(tmp_path / "out" / WEIGHTS)
    assert {tensor.shape[0] for name, tensor in lora.items() if "lora_A" in name} == {2}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--buckets", "32x32"], "--model is missing"),
        ([*FLUX, "--data", "nowhere"], "no such folder"),
        ([*FLUX, "--data", "{data}", "--target_modules", "to_z"], "'to_z': no linear layer"),
        ([*FLUX, "--data", "{data}", "--target_modules", "("], "no regular expression"),
        ([*FLUX, "--data", "{data}", "--component", "unet"], "the pipeline has transformer"),
        ([*FLUX, "--data", "{data}", "--attention", "Radal()"], "Radal"),
        ([*FLUX, "--data", "{data}", "--attention", "auto"], "auto: chooses for each clip"),
        ([*FLUX, "--data", "{data}", "--report_to", "wandb"], "pip install wandb"),
        ([*FLUX, "--data", "{data}", "--buckets", "big"], "write FRAMESxHEIGHTxWIDTH"),
        ([*FLUX, "--data", "{data}", "--buckets", "9x32x32"], "none of 6 files can be used"),
        ([*FLUX, "--data", "{data}", "--resume_from_checkpoint", "checkpoint-9"], "no checkpoint there"),
        (["--config", "{out}/none.toml"], "none.toml"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(pictures, tmp_path, capsys, words, says):
    filled = [word.format(data=pictures, out=tmp_path) for word in words]
    assert main(["train-lora", *filled, "--output", str(tmp_path / "out"), "--cache_dir", str(pictures / "cache")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dattn train-lora:") and says in error


def test_an_estimate_trains_nothing(pictures, tmp_path, capsys):
    words = ["train-lora", "--model", "shapes-wan", "--data", str(pictures), "--buckets", "129x64x64", "--estimate"]
    assert main([*words, "--attention", "Radial(block_size=64)", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "4,160 tokens" in said and "under Radial" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [(), ("--distill",)], ids=["", "distilled"])
def test_patterns_of_steps_are_trained_at_their_noise_levels(pictures, tmp_path, monkeypatch, more):
    """The early steps' pattern at high noise, the late ones' at low noise; the teacher sees neither."""
    from dattn.apps.lora.loop import Batch
    from dattn.processors.layer import Layer

    place, real, at, seen = Layer.place, Batch.__init__, [], []

    def noting(self, *args):
        real(self, *args)
        at.append(self.done)

    def placed(self, step, steps, *more):
        place(self, step, steps, *more)
        if steps == 40:
            seen.append((at[-1], self._placed.name, self._dense_step))

    monkeypatch.setattr("dattn.apps.lora.subject.STEPS", 40)
    monkeypatch.setattr(Batch, "__init__", noting)
    monkeypatch.setattr(Layer, "place", placed)
    pattern = "PerStep({0: Neighborhood(3), 0.5: Grouped(2)})"
    assert train(pictures, tmp_path, 4, "--attention", pattern, "--validation_steps", "4", *more) == 0
    student = {done: name for done, name, dense in seen if not dense}  # the last: going back begins a call, at step 0
    assert set(student.values()) == {"Neighborhood", "Grouped"}
    assert not [done for done, name in student.items() if (name == "Grouped") != (done >= 0.5)]
    assert any(dense for *_, dense in seen) == bool(more)
