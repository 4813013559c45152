"""``dattn bench training``: a training step of a LoRA on the demo video model, sparse beside dense, by length."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from dattn.apps.table import table

if TYPE_CHECKING:
    from torch import Tensor

    from dattn.apps.loading import Loaded

PATTERNS = ("Radial(block_size=64)", "Radial(block_size=64, tail=True)")
LENGTHS = (4, 8, 16)
RANK = 16


def training(options: Any, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Time steps of ``shapes-wan`` in float32 on a CPU, in bfloat16 on a GPU where there is one."""
    from tqdm import tqdm

    from dattn.apps.loading import DEFAULT, load

    loaded = load(DEFAULT)
    step = _step_of(loaded.pipe.transformer)
    rows: list[dict[str, Any]] = []
    for length in tqdm(options.lengths, desc="lengths", leave=False, disable=None):
        once = partial(step, _inputs(loaded, length))
        for text in PATTERNS:
            rows.append({"length": length, "pattern": text} | _row(loaded, text, once, options.repeats))
            save({"training": rows, "rank": RANK})
    print(table(list(rows[0]), [tuple(row.values()) for row in rows]))
    return {"training": rows, "rank": RANK}


def _step_of(model: Any) -> Callable[[dict[str, Tensor]], None]:
    """A step on a model that gets a LoRA: forward, loss, backward, AdamW."""
    import torch

    from dattn.apps.lora.adapting import add_lora, targets

    optimizer = torch.optim.AdamW(add_lora(model, targets(model), RANK, RANK, 0), lr=1e-5)

    def step(inputs: dict[str, Tensor]) -> None:
        predicted = model(**inputs, return_dict=False)[0]
        torch.nn.functional.mse_loss(predicted, inputs["hidden_states"]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _inputs(loaded: Loaded, length: int) -> dict[str, Tensor]:
    """Random latents, time and text of one clip."""
    import torch

    native, pipe = loaded.native, loaded.pipe
    assert native is not None  # a demo model
    config, like = pipe.transformer.config, {"dtype": pipe.dtype, "device": pipe.device}
    frames = 1 + (native.frames_at(length) - 1) // pipe.vae_scale_factor_temporal
    side = native.height // pipe.vae_scale_factor_spatial, native.width // pipe.vae_scale_factor_spatial
    torch.manual_seed(0)
    return {
        "hidden_states": torch.randn(1, config.in_channels, frames, *side, **like),
        "timestep": torch.tensor([500.0], device=pipe.device),
        "encoder_hidden_states": torch.randn(1, 512, config.text_dim, **like),
    }


def _row(loaded: Loaded, text: str, step: Callable[[], None], repeats: int) -> dict[str, Any]:
    """Dense and sparse steps take turns; the ratio is the median over the pairs, so drift of the machine cancels."""
    import dattn
    from dattn.registry import pattern_from_string

    model = loaded.pipe.transformer
    pairs = []
    for _ in range(repeats + 1):
        dense = _seconds(step, model)
        with dattn.apply(model, pattern_from_string(text), dense_steps=0) as handle:
            step()  # the mask is built, and what a backend keeps with it
            pairs.append((dense, _seconds(step, model)))
            layer = handle.report().to_dict()["layers"][0]
    pairs = pairs[1:]  # the first one warms up
    return {
        "tokens": math.prod(layer["grid"][:3]),
        "density": layer["density"],
        "dense_s": median(d for d, _ in pairs),
        "sparse_s": median(s for _, s in pairs),
        "speedup": median(d / s for d, s in pairs),
    }


def _seconds(step: Callable[[], None], model: Any) -> float:
    import torch

    wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start
