"""Options under the names that people know: read in any spelling, refused where they would not act, and acting."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from dattn.apps.cli import main
from dattn.apps.lora import checkpoints, run, sharing
from dattn.apps.lora.adapting import add_lora
from dattn.apps.lora.asking import listen
from dattn.apps.lora.items import Item, chosen, find_items
from dattn.apps.lora.objective import Noise, objective_of
from dattn.apps.lora.optimizing import Optimizing, optimizing_of
from dattn.apps.lora.options import parser
from dattn.apps.lora.reading import read_options
from tests.pipelines.tiny import MODELS

from .runs import FLUX, WEIGHTS, train

ASKED = ["--model", "m", "--data", "d", "--buckets", "32x32"]
EVERY = {
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "allow_tf32": True,
    "dataset_config_name": "one",
    "guidance_scale": 3.5,
    "hub_model_id": "me/mine",
    "id_token": "sks",
    "instance_prompt": "a photo",
    "logging_dir": "logs",
    "logit_mean": -0.5,
    "logit_std": 0.7,
    "lora_dropout": 0.1,
    "lr_scheduler": "polynomial",
    "lr_power": 2.0,
    "max_sequence_length": 64,
    "max_train_samples": 3,
    "mode_scale": 1.1,
    "num_train_epochs": 2,
    "push_to_hub": True,
    "revision": "main",
    "scale_lr": True,
    "snr_gamma": 5.0,
    "use_8bit_adam": True,
    "variant": "fp16",
    "weighting_scheme": "cosmap",
}


@pytest.mark.parametrize("kind", ["toml", "json", "_", "-"])
def test_every_option_in_every_way(kind, tmp_path):
    if kind in ("toml", "json"):
        path = tmp_path / f"run.{kind}"
        lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in EVERY.items())
        path.write_text(lines if kind == "toml" else json.dumps(EVERY))
        words = ["--config", str(path)]
    else:
        spelled = {f"--{name.replace('_', kind)}": value for name, value in EVERY.items()}
        words = [name if value is True else f"{name}={value}" for name, value in spelled.items()]
    found = vars(read_options([*ASKED, *words]))
    assert {name: str(found[name]) for name in EVERY} == {name: str(value) for name, value in EVERY.items()}


def test_a_window_in_a_file(tmp_path):
    (tmp_path / "run.toml").write_text("train_window = [0.25, 1]")
    found = [read_options([*ASKED, "--config", str(tmp_path / "run.toml")])]
    found.append(read_options([*ASKED, "--train-window", "0.25", "1"]))
    assert [one.train_window for one in found] == [[0.25, 1.0]] * 2


def test_names_of_the_same():
    words = ["--pretrained_model_name_or_path", "m", "--train_data_dir", "d", "--lora_layers", "to_q, to_k"]
    found = read_options([*words, "--resolution", "64", "--validation_prompt", "a fox:::an owl"])
    assert (found.model, str(found.data), found.target_modules) == ("m", "d", ["to_q", "to_k"])
    assert found.validation_prompts == ["a fox", "an owl"]


@pytest.mark.parametrize(
    ("words", "bucket"),
    [
        (["--resolution", "512"], "1x512x512"),
        (["--resolution", "480x832", "--num_frames", "49"], "49x480x832"),
        (["--height", "480", "--width", "832", "--max_num_frames", "49"], "49x480x832"),
    ],
)
def test_one_size(words, bucket):
    assert read_options([*ASKED[:4], *words]).buckets == [bucket]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--resolution", "512"], "--resolution: give one size"),
        (["--num_frames", "9"], "or --buckets"),
        (["--lr_power", "2"], "--lr_power 2.0: acts with --lr_scheduler polynomial, this is constant_with_warmup"),
        (["--lr_num_cycles", "2", "--lr_scheduler", "cosine"], "acts with --lr_scheduler cosine_with_restarts"),
        (["--lr_scheduler", "steep"], "invalid choice"),
        (["--teach_epochs", "2"], "--teach_epochs 2: acts with --distill True, this is False"),
        (["--teach_epochs", "2", "--distill", "--placeholder_token", "<a>"], "captions with new words change"),
        (["--distill_guidance", "4"], "--distill_guidance 4.0: acts with --distill True, this is False"),
        (["--distill_guidance", "1", "--distill"], "--distill_guidance 1: a guidance scale above 1"),
        (["--distill_guidance", "4", "--distill", "--caption_dropout", "0.1"], "leave out --caption_dropout 0.1"),
        (["--distill_guidance", "4", "--distill", "--placeholder_token", "<a>"], "new words have no teacher"),
        (["--lora_dropout", "1"], "give a number from 0 on and below 1"),
        (["--adam_beta1", "much"], "much: give a number"),
        (["--snr_gamma", "-1"], "give a number above 0"),
    ],
)
def test_what_would_not_act(words, says):
    with pytest.raises(ValueError, match=says):
        read_options([*ASKED, *words])


def test_half_a_size():
    with pytest.raises(ValueError, match="--height: a size needs"):
        read_options([*ASKED[:4], "--height", "512"])


def test_one_caption_for_all(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.txt").write_text("a fox")
    assert find_items(tmp_path) == [Item(tmp_path / "a.png", "a fox")]
    assert find_items(tmp_path, "a photo") == [Item(tmp_path / "a.png", "a fox"), Item(tmp_path / "b.png", "a photo")]


def test_some_of_the_data():
    items = [Item(None, str(i)) for i in range(20)]
    some = chosen(items, 5, 0)
    assert len(some) == 5 and some == sorted(some, key=items.index) == chosen(items, 5, 0) != chosen(items, 5, 1)
    assert chosen(items, None, 0) == chosen(items, 20, 0) == items


def options(*words):
    return parser().parse_args([*ASKED, *words])


def test_the_optimiser_is_as_told():
    told = options("--learning_rate", "0.01", "--scale_lr", "--train_batch_size", "3", "--adam_beta2", "0.9")
    told.gradient_accumulation_steps, told.adam_epsilon = 2, 1e-6
    (group,) = optimizing_of(told, 4).optimizer([{"params": [torch.nn.Parameter(torch.ones(1))]}]).param_groups
    assert group["lr"] == pytest.approx(0.01 * 3 * 2 * 4)
    assert (group["betas"], group["eps"]) == ((0.9, 0.9), 1e-6)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({"schedule": "polynomial", "power": 2.0}, [(1 - i / 8) ** 2 for i in range(8)]),
        ({"schedule": "cosine_with_restarts", "cycles": 2}, [1.0, None, 0.5, None, 1.0]),
    ],
)
def test_rates_over_the_steps(words, wanted):
    told = Optimizing(rate=1.0, **words)
    optimizer = told.optimizer([{"params": [torch.nn.Parameter(torch.ones(1))]}])
    schedule, rates = told.scheduler(optimizer, 8), []
    for _ in wanted:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(w is None or r == pytest.approx(w, abs=1e-6) for r, w in zip(rates, wanted, strict=True))


class Narrow(torch.optim.AdamW):
    """What bitsandbytes' counts like: whole numbers of Python."""

    def step(self, closure=None):
        for state in self.state.values():
            assert isinstance(state["count"], int), "a tensor is no argument of its kernels"
            state["count"] += 1
        super().step(closure)
        for state in self.state.values():
            state.setdefault("count", 1)


def test_optimiser_states_of_8_bits(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dattn.apps.lora.optimizing.find_spec", lambda name: None)
    assert train(pictures, tmp_path, 1, "--use_8bit_adam") == 2
    assert "bitsandbytes is not installed" in capsys.readouterr().err
    monkeypatch.setattr("dattn.apps.lora.optimizing._narrow", lambda: Narrow)
    monkeypatch.setattr("dattn.apps.lora.optimizing.find_spec", lambda name: name)
    assert train(pictures, tmp_path, 1, "--use_8bit_adam", "--validation_steps", "0") == 0
    more = ["--validation_steps", "0", "--resume_from_checkpoint", "latest"]
    assert train(pictures, tmp_path, 2, *more) == 2
    assert "use_8bit_adam was True" in capsys.readouterr().err
    assert train(pictures, tmp_path, 2, *more, "--use_8bit_adam") == 0
    numbers = checkpoints.read(tmp_path, "latest").optimizer
    assert {int(tensor) for name, tensor in numbers.items() if name.endswith(".count")} == {2}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_weights_of_low_noise_are_clipped(kind):
    """By hand, of Min-SNR: in terms of the clean sample each level weighs min(ratio, gamma)."""
    objective = objective_of(DDIMScheduler(prediction_type=kind))
    levels = torch.tensor([0.03125, 0.5, 0.953125])
    found = objective.weights(levels, Noise(gamma=5.0)).tolist()
    for level, weight in zip(levels.tolist(), found, strict=True):
        a = float(DDIMScheduler().alphas_cumprod[int(level * 1000)])
        ratio = a / (1 - a)
        in_clean = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": 1.0}[kind]
        assert weight * in_clean == pytest.approx(min(ratio, 5.0), rel=1e-4)
    assert objective.weights(levels, Noise()).tolist() == [1, 1, 1]


def test_weights_of_flow():
    objective, levels = objective_of(FlowMatchEulerDiscreteScheduler()), torch.tensor([0.25, 0.5])
    assert objective.weights(levels, Noise("sigma_sqrt")).tolist() == [16, 4]
    wanted = [2 / (torch.pi * (s**2 + (1 - s) ** 2)) for s in (0.25, 0.5)]
    assert objective.weights(levels, Noise("cosmap")).tolist() == pytest.approx(wanted)
    draw = lambda noise: objective.levels(4000, noise, torch.Generator().manual_seed(0))
    assert torch.equal(draw(Noise("cosmap")), draw(Noise()))
    assert draw(Noise("logit_normal", mean=1.0)).mean() < 0.4 < draw(Noise("logit_normal")).mean()
    assert draw(Noise("logit_normal", deviation=0.1)).std() < 0.1 < draw(Noise("logit_normal")).std()
    assert not torch.equal(draw(Noise("mode", scale=0.5)), draw(Noise("mode")))


@pytest.mark.parametrize(
    ("scheduler", "window", "bounds"),
    [
        (DDIMScheduler(), (0.25, 1.0), (0.0, 0.75)),
        (FlowMatchEulerDiscreteScheduler(), (0.0, 0.4), (0.6, 1.0)),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), (0.25, 1.0), (0.0, 0.9)),  # 3 x 0.75 / (1 + 2 x 0.75)
    ],
)
def test_noise_of_some_of_the_steps(scheduler, window, bounds):
    whole = objective_of(scheduler)
    part = replace(whole, window=window)
    draw = lambda objective: objective.levels(2000, Noise(), torch.Generator().manual_seed(0))
    drawn, low, high = draw(part), *bounds
    assert low <= drawn.min() < low + 0.05 and high - 0.05 < drawn.max() <= high + 1e-6
    assert draw(whole).min() < 0.05 and draw(whole).max() > 0.95
    assert window[0] - 1e-6 <= part.done(drawn.min()[None]) <= window[1] + 1e-6
    assert part.fixed(0.5).item() == pytest.approx((low + high) / 2)


def test_noise_of_no_step():
    with pytest.raises(ValueError, match="--train_window 0 0.1: .* from 0 to 0.875"):
        replace(objective_of(FlowMatchEulerDiscreteScheduler(), (0.0, 0.875)), window=(0.0, 0.1)).check(Noise())


def test_weights_that_do_not_fit():
    with pytest.raises(ValueError, match="--snr_gamma 5: .* learns flow"):
        objective_of(FlowMatchEulerDiscreteScheduler()).check(Noise(gamma=5.0))
    for scheduler in (DDIMScheduler(), EulerDiscreteScheduler()):
        with pytest.raises(ValueError, match="--weighting_scheme cosmap: .* predicts epsilon"):
            objective_of(scheduler).check(Noise("cosmap"))
        objective_of(scheduler).check(Noise(gamma=5.0))


@pytest.mark.parametrize(
    "words",
    [
        ("--lora_dropout", "0.5"),
        ("--weighting_scheme", "cosmap"),
        ("--logit_mean", "1"),
        ("--train_window", "0.5", "1"),
        ("--adam_beta1", "0.5"),
        ("--scale_lr", "--gradient_accumulation_steps", "2"),
    ],
    ids=lambda words: words[0],
)
def test_it_acts(pictures, tmp_path, words, plain_run):
    options = ["--validation_steps", "0", *(words[1:] if words[0] == "--scale_lr" else ())]
    plain = plain_run(*options)
    assert train(pictures, tmp_path, 2, *options, *words) == 0
    assert (tmp_path / WEIGHTS).read_bytes() != plain


@pytest.fixture
def plain_run(pictures, tmp_path_factory):
    def made(*options):
        folder = tmp_path_factory.mktemp("plain")
        assert train(pictures, folder, 2, *options) == 0
        return (folder / WEIGHTS).read_bytes()

    return made


def test_times_through_the_data(pictures, tmp_path):
    """Three batches of at most two of five pictures, two for each step: two steps."""
    words = ["train-lora", *FLUX, "--data", str(pictures), "--cache_dir", str(pictures / "cache")]
    words += ["--train_batch_size", "2", "--gradient_accumulation_steps", "2", "--num_train_epochs", "2"]
    words += ["--validation_steps", "0"]
    assert main([*words, "--output", str(tmp_path / "four")]) == 0
    assert json.loads((tmp_path / "four" / "run.json").read_text())["options"]["max_train_steps"] == 4
    assert main([*words, "--output", str(tmp_path / "one"), "--max_train_steps", "1"]) == 0
    assert json.loads((tmp_path / "one" / "run.json").read_text())["options"]["max_train_steps"] == 1


def test_logs_have_a_place(tmp_path):
    for words, place in (([], tmp_path), (["--logging_dir", "logs"], tmp_path / "logs")):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert run._accelerator(options("--output", str(tmp_path), *words)).logging_dir == str(place)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--snr_gamma", "5"], "--snr_gamma 5: "),
        (["--guidance_scale", "3.5"], "--guidance_scale 3.5: no input of FluxTransformer2DModel"),
        (["--revision", "main"], "is a folder here"),
        (["--variant", "fp16"], "cannot be loaded"),
    ],
)
def test_what_does_not_fit_the_model(pictures, tmp_path, capsys, words, says):
    assert train(pictures, tmp_path / "out", 1, *words) == 2
    assert says in capsys.readouterr().err


def test_arguments_of_the_pipeline(pictures, tmp_path, capsys):
    assert train(pictures, tmp_path, 1, "--max_sequence_length", "8", "--validation_steps", "0") == 0
    words = ["train-lora", "--model", f"{MODELS}/shapes-sd", "--data", str(pictures), "--resolution", "32"]
    assert main([*words, "--output", str(tmp_path / "sd"), "--max_sequence_length", "8"]) == 2
    assert "StableDiffusionPipeline takes none" in capsys.readouterr().err


def test_guidance_is_told_to_models_that_have_it_as_an_input():
    from diffusers import FluxPipeline, FluxTransformer2DModel

    pipe = FluxPipeline.from_pretrained(f"{MODELS}/shapes-flux")
    config = dict(pipe.transformer.config) | {"guidance_embeds": True}
    guided = FluxTransformer2DModel.from_config(config)
    pipe.register_modules(transformer=guided)
    pipe.set_progress_bar_config(disable=True)
    call = {"max_sequence_length": 16}
    for told, wanted in ({}, 1.0), ({"guidance_scale": 3.5}, 3.5):
        assert float(listen(pipe, guided, (1, 32, 32), call | told).sample["guidance"].flatten()[0]) == wanted


def test_dropout_of_a_lora():
    from diffusers.loaders.peft import PeftAdapterMixin

    kind = type("Model", (torch.nn.ModuleDict, PeftAdapterMixin), {})
    model = kind({"to_q": torch.nn.Linear(4, 4)})
    add_lora(model, ["to_q"], 2, 2, 0, 0.25)
    assert model.peft_config["default"].lora_dropout == 0.25


def test_what_is_uploaded(pictures, tmp_path, monkeypatch, capsys):
    told = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, name, **more: told.append(name))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **more: told.append(more) or "there")
    options = ["--push_to_hub", "--hub_model_id", "me/mine", "--validation_steps", "0"]
    assert train(pictures, tmp_path / "out", 1, *options) == 0
    assert "uploaded to there" in capsys.readouterr().out
    assert told == [
        "me/mine",
        {"folder_path": tmp_path / "out", "repo_id": "me/mine", "ignore_patterns": sharing.PRIVATE},
    ]

    def refused(self, name, **more):
        raise OSError("no login")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refused)
    assert train(pictures, tmp_path / "other", 1, *options) == 2
    assert "log in with hf auth login" in capsys.readouterr().err
