"""A model whose parameters processes hold in parts: FSDP2, PyTorch's ``fully_shard``, by accelerate.

A forward pass of such a model, and gathering a tensor, take all processes. What PyTorch and accelerate have for it is
imported where it is used: it loads for a while, and pages of the demo that train nothing import this file too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def prepare(accelerator: Any, options: Any) -> None:
    """Raise ``ValueError`` where accelerate's FSDP is set up as it cannot be used; else keep each parameter's type.

    accelerate would gather what learns, and hand times to the model, in half precision; autocast does what is needed.
    """
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    refused = {
        f"fsdp_version: {plugin.fsdp_version}": (
            plugin.fsdp_version != 2,
            "what is frozen and what learns are not sharded together; set fsdp_version: 2",
        ),
        "fsdp_cpu_ram_efficient_loading: true": (
            plugin.cpu_ram_efficient_loading,
            "text encoders would be empty in all processes but one; set it to false",
        ),
        "fsdp_activation_checkpointing: true": (
            plugin.activation_checkpointing,
            "it renames layers; set it to false and give --gradient_checkpointing",
        ),
        f"--placeholder_token {' '.join(options.placeholder_token)}": (
            options.placeholder_token,
            "new words are no part of the model that FSDP shards; train them without FSDP",
        ),
        "--use_8bit_adam": (options.use_8bit_adam, "its states cannot be sharded; leave it out, or train without FSDP"),
    }
    for what, (so, why) in refused.items():
        if so:
            raise ValueError(f"{what}: not with FSDP, {why}")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be in parts, gathered."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor, the same in all processes, in parts where another of its shape is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def reshard(model: nn.Module) -> None:
    """Let go of what forward passes gathered and left so; nothing on a model that is not sharded.

    Until then changes of parameters, or of what learns, would pass it by.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def anywhere(accelerator: Any, so: bool) -> bool:
    """Whether something is so in any process, where these must go on together; else whether it is so here."""
    if not accelerator.is_fsdp2:
        return so
    return bool(accelerator.reduce(torch.tensor(float(so), device=accelerator.device), "sum"))
