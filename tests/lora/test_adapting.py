"""Where a LoRA goes, and that stock Diffusers loads what was saved of it."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from dattn.apps.lora.adapting import PROJECTIONS, add_lora, loaded_back, save, targets, weights
from dattn.apps.lora.asking import listen, told
from tests.pipelines.tiny import MODELS

from .test_asking import CALLS, size_of, subject


@pytest.mark.parametrize("name", ["wan", "sd", "flux", "sdxl", "sd3", "cogvideox"])
def test_what_was_saved_is_compared(name, tmp_path):
    """In every family stock Diffusers loads what was trained, alpha and all; a file that says less is noticed."""
    pipe, model = subject(name)
    size, call = size_of(name), CALLS.get(name, {})
    manner = listen(pipe, model, size, call)
    heard = told(pipe, model, manner, "a red circle", size, call)
    arguments = manner.arguments(torch.randn(1, *manner.shape), torch.tensor([500.0]), heard)
    for parameter in add_lora(model, targets(model), 2, 6, 0):
        torch.nn.init.normal_(parameter, std=0.1)
    component = "unet" if getattr(pipe, "unet", None) is model else "transformer"
    try:
        path = save(pipe, component, model, tmp_path)
        assert loaded_back(pipe, component, model, tmp_path, arguments) < 1e-5
        save_file(load_file(path), path)  # without its metadata alpha is taken for the rank
        assert loaded_back(pipe, component, model, tmp_path, arguments) > 1e-3
    finally:
        model.delete_adapters("default")


@pytest.mark.parametrize("name", ["shapes-wan", "shapes-sd", "shapes-flux"])
def test_layers_are_those_of_attention(name):
    pipe = DiffusionPipeline.from_pretrained(f"{MODELS}/{name}")
    model = getattr(pipe, "unet", None) or pipe.transformer
    names = targets(model)
    assert names and all(name.endswith(PROJECTIONS) for name in names)
    assert targets(model, ["to_q"]) == sorted(name for name in names if name.endswith(".to_q"))
    learning = add_lora(model, names, 2, 4, 0)
    assert len(learning) == 2 * len(names) and all(p.dtype == torch.float32 for p in learning)
    first = {name: tensor.clone() for name, tensor in weights(model).items()}
    model.delete_adapters("default")
    add_lora(model, names, 2, 4, 0)
    assert all(torch.equal(tensor, weights(model)[name]) for name, tensor in first.items())
    assert np.isfinite([float(tensor.abs().sum()) for tensor in first.values()]).all()
