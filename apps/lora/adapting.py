"""LoRA on a model: where it goes, how it is saved, and that stock Diffusers loads it."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dattn.adapters import adapter_for
from dattn.norms import NORMS, load_norms

from .sharding import divided, whole

NAME = "default"
WEIGHTS = "pytorch_lora_weights.safetensors"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv")


def targets(model: nn.Module, patterns: Sequence[str] = ()) -> list[str]:
    """Full names of the linear layers that get LoRA.

    Args:
        patterns: regular expressions, each for a whole name or its end after a dot; by default the projections of
            every attention layer that dattn knows in the model, and of no other module that has such names.

    Raises:
        ValueError: a pattern that is none, or that no linear layer has.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not patterns:
        adapter = adapter_for(model)
        sites = [*adapter.sites(model), *adapter.text_sites(model)]
        wanted = {f"{site.name}.{projection}" for site in sites for projection in PROJECTIONS}
        return [name for name in linear if name in wanted]
    found: list[str] = []
    for pattern in patterns:
        try:
            own = [name for name in linear if re.fullmatch(rf"(.*\.)?(?:{pattern})", name)]
        except re.error as error:
            raise ValueError(f"target_modules {pattern!r}: no regular expression ({error})") from None
        if not own:
            raise ValueError(f"target_modules {pattern!r}: no linear layer has that name; there are {linear[:4]} …")
        found += own
    return sorted(set(found))


def add_lora(
    model: Any, names: Sequence[str], rank: int, alpha: int, seed: int, dropout: float = 0.0
) -> list[nn.Parameter]:
    """Freeze a model and put LoRA on some of its layers, in float32; the parameters that learn."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(names)), NAME)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.data = parameter.data.float()
    return learning


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors by peft's names, whole, on the CPU."""
    return {name: whole(tensor.detach()).cpu() for name, tensor in _tensors(model).items()}


def restore(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Put tensors that ``weights`` gave back."""
    from peft import set_peft_model_state_dict

    there = _tensors(model)
    own = {name: divided(tensor, there[name]) for name, tensor in saved.items()}
    set_peft_model_state_dict(model, own, adapter_name=NAME)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    found: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=NAME)
    return found


def save(
    pipeline: Any, component: str, model: Any, folder: Path, norms: Mapping[str, Tensor] = MappingProxyType({})
) -> Path:
    """Write the LoRA as ``pipeline.load_lora_weights(folder)`` reads it, alpha included.

    Args:
        norms: weights of normalisation layers by name, which go with it where Diffusers loads them, and else into a
            file that ``dattn.load_norms`` reads.

    Raises:
        ValueError: a pipeline that loads no LoRA.
    """
    if not hasattr(pipeline, "save_lora_weights"):
        raise ValueError(f"{type(pipeline).__name__} loads no LoRA in Diffusers")
    takes = inspect.signature(pipeline.save_lora_weights).parameters
    prefix = component if f"{component}_lora_layers" in takes else "transformer"
    loads = getattr(pipeline, "_control_lora_supported_norm_keys", ())  # of Flux
    together = {name: tensor for name, tensor in norms.items() if any(key in name for key in loads)}
    apart = {f"{component}.{name}": tensor for name, tensor in norms.items() if name not in together}
    (folder / NORMS).unlink(missing_ok=True)  # an earlier run's
    if apart:
        save_file(apart, folder / NORMS)
    given: dict[str, Any] = {f"{prefix}_lora_layers": weights(model) | together}
    if f"{prefix}_lora_adapter_metadata" in takes:
        # Diffusers would load dropout as it is written, and leave it on
        given[f"{prefix}_lora_adapter_metadata"] = model.peft_config[NAME].to_dict() | {"lora_dropout": 0.0}
    pipeline.save_lora_weights(str(folder), **given, safe_serialization=True)
    return folder / WEIGHTS


@torch.no_grad()
def loaded_back(
    pipeline: Any,
    component: str,
    model: Any,
    folder: Path,
    arguments: dict[str, Any],
    untrained: AbstractContextManager[None] | None = None,
) -> float:
    """How far the model's output with the saved LoRA is from that with the trained one, as a share of the largest.

    Args:
        arguments: of a forward pass of the model.
        untrained: a context in which what learned beside the LoRA has not, to be loaded as well.
    """
    model.eval()
    options = {"load_into_transformer_2": True} if component == "transformer_2" else {}
    trained = model(**arguments, return_dict=False)[0]
    with warnings.catch_warnings(), untrained or nullcontext():
        warnings.simplefilter("ignore")  # peft wonders at a second adapter
        pipeline.load_lora_weights(str(folder), adapter_name="check", **options)
        if (folder / NORMS).is_file():
            load_norms(pipeline, folder)
        try:
            model.set_adapter("check")
            again = model(**arguments, return_dict=False)[0]
        finally:
            model.delete_adapters("check")
            model.set_adapter(NAME)
    return float((trained - again).abs().max() / trained.abs().max())
