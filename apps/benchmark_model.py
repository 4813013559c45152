"""``dattn bench model``: a denoising step and a training step of Wan 2.1 14B, stock attention beside radial.

The weights are random: only the time is looked at. Radial has its published settings; its dense layer counts only in
a model of all 40 layers, with fewer it would weigh too much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from dattn.apps.table import table
from dattn.apps.timing import DEVICE, gpu_needed, milliseconds

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel
    from torch import Tensor

WAN_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "text_dim": 4096}
LAYERS = 40
CLIPS = {
    "480p": (21, 60, 104),
    "720p": (21, 90, 160),
    "480p-4x": (84, 60, 104),
    "720p-4x": (84, 90, 160),
}
TEXT = 512
PASSES = ("denoising step", "training step")
CUDNN = "_native_cudnn"


@dataclass(frozen=True)
class Step:
    """One row: the same inputs, stock and sparse; memory is the highest that PyTorch held."""

    clip: str
    tokens: int
    layers: int
    passes: str
    pattern: str
    density: float
    stock_ms: float | None
    sparse_ms: float | None
    speedup: float | None
    stock_gib: float | None
    sparse_gib: float | None


def model(options: Any, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Time the steps of a clip at a time.

    Raises:
        ValueError: there is no CUDA device.
    """
    gpu_needed("model")
    transformer = build(options.layers, WAN_14B, DEVICE)
    transformer.set_attention_backend(CUDNN)
    rows: list[dict[str, Any]] = []
    for clip, passes in product(options.clips or list(CLIPS), options.passes or list(PASSES)):
        rows.append(asdict(step_that_fits(transformer, clip, CLIPS[clip], passes, options.repeats)))
        print(table(list(rows[-1]), [tuple(rows[-1].values())]), flush=True)
        save({"model": rows})
    return {"model": rows}


def build(layers: int, config: dict[str, int], device: str) -> WanTransformer3DModel:
    """A Wan transformer with random weights in bfloat16."""
    import torch
    from diffusers import WanTransformer3DModel

    standard = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return WanTransformer3DModel(**config, num_layers=layers)
    finally:
        torch.set_default_dtype(standard)


def step_that_fits(
    transformer: WanTransformer3DModel, clip: str, latent: tuple[int, int, int], passes: str, repeats: int
) -> Step:
    """``step`` of as many of the layers as fit into memory, by halves; the row says how many."""
    blocks = transformer.blocks
    layers = len(blocks)
    try:
        row = step(transformer, clip, latent, passes, repeats)
        while row.sparse_ms is None and layers > 1:
            layers //= 2
            transformer.blocks = blocks[:layers]
            row = step(transformer, clip, latent, passes, repeats)
    finally:
        transformer.blocks = blocks
    return row


def step(
    transformer: WanTransformer3DModel, clip: str, latent: tuple[int, int, int], passes: str, repeats: int
) -> Step:
    """Time one step of one clip, stock and under radial attention."""
    import dattn
    from dattn.presets import PRESETS

    preset = PRESETS["radial"]["wan"]
    inputs, layers = random_inputs(transformer, latent), len(transformer.blocks)
    call = (_training if passes == "training step" else denoising)(transformer, inputs)
    stock_ms, stock_gib = _measured(call, repeats, may_fail=True)
    with dattn.apply(transformer, preset.attention, dense_layers=int(layers >= LAYERS)) as handle:
        sparse_ms, sparse_gib = _measured(call, repeats)
        density = handle.report().to_dict()["layers"][-1]["density"]
    return Step(
        clip=clip,
        tokens=latent[0] * (latent[1] // 2) * (latent[2] // 2),
        layers=layers,
        passes=passes,
        pattern=str(preset.attention),
        density=density,
        stock_ms=stock_ms,
        sparse_ms=sparse_ms,
        speedup=stock_ms / sparse_ms if stock_ms and sparse_ms else None,
        stock_gib=stock_gib,
        sparse_gib=sparse_gib,
    )


def random_inputs(transformer: WanTransformer3DModel, latent: tuple[int, int, int]) -> dict[str, Tensor]:
    """Latents [1, channels, frames, height, width], text and a time, for a call of the model."""
    import torch

    make = lambda *shape: torch.randn(shape, device=transformer.device, dtype=transformer.dtype)
    return {
        "hidden_states": make(1, transformer.config.in_channels, *latent),
        "encoder_hidden_states": make(1, TEXT, transformer.config.text_dim),
        "timestep": torch.full((1,), 500, device=transformer.device),
    }


def denoising(transformer: WanTransformer3DModel, inputs: dict[str, Tensor]) -> Callable[[], object]:
    """A forward pass without gradients."""
    import torch

    transformer.eval()

    def call() -> None:
        with torch.no_grad():
            transformer(**inputs, return_dict=False)

    return call


def _training(transformer: WanTransformer3DModel, inputs: dict[str, Tensor]) -> Callable[[], object]:
    """Forward and backward with gradient checkpointing, for all weights."""
    transformer.train()
    transformer.enable_gradient_checkpointing()

    def call() -> None:
        try:
            transformer(**inputs, return_dict=False)[0].float().square().mean().backward()
        finally:
            transformer.zero_grad(set_to_none=True)

    return call


def _measured(call: Callable[[], object], repeats: int, may_fail: bool = False) -> tuple[float | None, float | None]:
    """Milliseconds, and GiB at the highest; None where it does not fit, or fails and may."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    ms = milliseconds(call, repeats, warm_up=1, may_fail=may_fail)
    return ms, None if ms is None else torch.cuda.max_memory_allocated() / 2**30
