"""Weights of normalisation layers that learn beside a LoRA: saved, loaded, left out of the teacher, gone on with."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import dattn
from dattn.apps.cli import main
from dattn.apps.lora.adapting import add_lora, targets
from dattn.apps.lora.asking import listen, told
from dattn.apps.lora.norms import Norms
from dattn.norms import NORMS
from tests.pipelines.tiny import MODELS

from .runs import WEIGHTS, same, train

QUICK = ["--train_norms", "--validation_steps", "0"]


def pipeline(name):
    pipe = DiffusionPipeline.from_pretrained(f"{MODELS}/shapes-{name}")
    pipe.set_progress_bar_config(disable=True)
    return pipe, getattr(pipe, "unet", None) or pipe.transformer


def forward(pipe, model):
    """The model's output for a prompt, as the pipeline asks."""
    call = {"max_sequence_length": 16} if "Flux" in type(pipe).__name__ else {}
    manner = listen(pipe, model, (1, 32, 32), call)
    latents = torch.randn(1, *manner.shape, generator=torch.Generator().manual_seed(0))
    heard = told(pipe, model, manner, "a red circle", (1, 32, 32), call)
    half = torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16)
    with torch.no_grad(), half:  # as training is
        return model(**manner.arguments(latents, torch.tensor([500.0]), heard), return_dict=False)[0]


def test_stock_diffusers_loads_those_of_flux(pictures, tmp_path):
    assert train(pictures, tmp_path, 2, *QUICK, "--norm_learning_rate", "1e-3") == 0
    assert json.loads((tmp_path / "run.json").read_text())["loaded_back_error"] < 1e-5
    assert not (tmp_path / NORMS).exists()
    saved = {name: tensor for name, tensor in load_file(tmp_path / WEIGHTS).items() if "lora" not in name}
    pipe, model = pipeline("flux")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = [float((t - before[n.removeprefix("transformer.")]).abs().max()) for n, t in saved.items()]
    assert moved and 1e-4 < max(moved) <= 2.1e-3  # two steps of Adam, at a rate of their own
    pipe.load_lora_weights(str(tmp_path))
    after = model.state_dict()
    assert all(torch.equal(after[name.removeprefix("transformer.")], tensor) for name, tensor in saved.items())
    pipe.unload_lora_weights()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_file_of_their_own(pictures, tmp_path):
    words = ["train-lora", "--model", f"{MODELS}/shapes-sd", "--data", str(pictures), "--resolution", "32", *QUICK]
    words += ["--rank", "2", "--max_train_steps", "2", "--learning_rate", "1e-2", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["loaded_back_error"] < 1e-5
    pipe, model = pipeline("sd")
    stock = forward(pipe, model)
    pipe.load_lora_weights(str(tmp_path / "out"))
    half = forward(pipe, model)
    loaded = dattn.load_norms(pipe, tmp_path / "out")
    whole = forward(pipe, model)
    assert all((one - other).abs().max() > 1e-4 for one, other in ((stock, half), (half, whole)))
    assert len(loaded.names) == len(load_file(tmp_path / "out" / NORMS)) > 4
    loaded.remove()
    assert torch.equal(forward(pipe, model), half)
    pipe.unload_lora_weights()
    assert torch.equal(forward(pipe, model), stock)
    with pytest.raises(ValueError, match="FluxPipeline has no unet"):
        dattn.load_norms(pipeline("flux")[0], tmp_path / "out")
    with pytest.raises(ValueError, match="no such file"):
        dattn.load_norms(pipe, tmp_path)


def test_commands_load_them_with_the_lora(pictures, tmp_path):
    from dattn.apps.loading import put_on
    from dattn.apps.lora.adapting import save

    pipe, model = pipeline("sd")
    stock = forward(pipe, model)
    add_lora(model, targets(model), 2, 2, 0)
    name, parameter = next((n, p) for n, p in model.named_parameters() if "norm" in n)
    tmp_path.joinpath(NORMS).write_bytes(b"of an earlier run")
    save(pipe, "unet", model, tmp_path, {name: parameter.detach() + 1})
    other, its = pipeline("sd")
    put_on(other, tmp_path)
    assert torch.equal(dict(its.named_parameters())[name], parameter + 1)
    assert not torch.allclose(forward(other, its), stock)
    save(pipe, "unet", model, tmp_path)
    assert not (tmp_path / NORMS).exists()


def test_going_on_is_never_having_stopped(pictures, tmp_path, capsys):
    options = [*QUICK, "--checkpointing_steps", "2", "--distill", "--attention", "Neighborhood(3)"]
    assert train(pictures, tmp_path / "whole", 4, *options) == 0
    assert train(pictures, tmp_path / "broken", 2, *options) == 0
    more = "--resume_from_checkpoint", "latest"
    assert train(pictures, tmp_path / "broken", 4, *options[1:], *more) == 2
    assert "train_norms was True, now it is None" in capsys.readouterr().err
    assert train(pictures, tmp_path / "broken", 4, *options, *more) == 0
    assert same(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_untrained_model_is_still_there(kind):
    """What a teacher says: to the bit what the model said before; and the values end in the model's own type."""
    pipe, model = pipeline("flux")
    pipe.to(kind)
    stock = forward(pipe, model)
    norms = Norms(model)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in norms.parameters.values())
    with torch.no_grad():
        for parameter in norms.parameters.values():
            parameter += 0.1
    trained = forward(pipe, model)
    with norms.untrained():
        close = (forward(pipe, model) - stock).abs().max() / stock.abs().max()
    assert close == 0 if kind == torch.float32 else close < 0.02
    assert trained.dtype == kind and (trained - stock).abs().max() > 1e-3
    assert torch.equal(forward(pipe, model), trained)
    norms.settle()
    assert all(p.dtype == kind for p in norms.parameters.values())
    assert not any("forward" in vars(module) for module in model.modules())


def test_in_half_precision(pictures, tmp_path):
    options = [*QUICK[:1], "--mixed_precision", "bf16", "--gradient_checkpointing", "--validation_steps", "1"]
    assert train(pictures, tmp_path, 2, *options, "--validation_prompts", "a circle") == 0
    assert json.loads((tmp_path / "run.json").read_text())["loaded_back_error"] < 1e-3


def test_a_model_without():
    with pytest.raises(ValueError, match="--train_norms: Linear has no weights"):
        Norms(torch.nn.Linear(2, 2))
