"""LoRA gradients through a real model: every backend against naive attention in float64."""

import copy
import os

import pytest
import torch
from diffusers import WanTransformer3DModel

import dattn
from dattn import Neighborhood, Radial
from dattn.apps.lora.adapting import add_lora, targets

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="the interpreter is chosen before import: TRITON_INTERPRET=1"
)
PATTERNS = [Radial(block_size=16, sink=False, decay=0.3), Radial(block_size=16, tail=True), Neighborhood((3, 3, None))]


def subject():
    """A tiny Wan with LoRA that is not zero, on 5 x 3 x 5 tokens."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16,
        ffn_dim=16, freq_dim=16, num_layers=2,
    )  # fmt: skip
    learning = add_lora(model, targets(model), 2, 2, 0)
    for parameter in learning:
        torch.nn.init.normal_(parameter, std=0.3)
    arguments = {
        "hidden_states": torch.randn(1, 4, 5, 3, 5),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
    }
    return model, arguments


def gradients(model, arguments, pattern, backend, dtype):
    """Of the sum of squares of the output, in all LoRA weights: one vector, float64."""
    model = copy.deepcopy(model).to(dtype)
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in arguments.items()}
    with dattn.apply(model, pattern, backend=backend) as handle:
        model(**given, return_dict=False)[0].square().sum().backward()
        assert {layer["backend"] for layer in handle.report().to_dict()["layers"]} == {backend}
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gradients_of_a_lora_inside_a_model(pattern):
    model, arguments = subject()
    truth = gradients(model, arguments, pattern, "reference", torch.float64)
    plain = (gradients(model, arguments, pattern, "reference", torch.float32) - truth).norm()
    assert truth.norm() > 1
    for backend in ("torch", "triton"):
        error = (gradients(model, arguments, pattern, backend, torch.float32) - truth).norm()
        assert error <= 2 * plain + 1e-6 * truth.norm(), backend
