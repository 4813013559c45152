"""Tiny random Z-Image: plain, and the omni model."""

from __future__ import annotations

import torch
from diffusers import ZImageTransformer2DModel
from torch import nn

from dattn.grid import TokenGrid
from tests.families.base import Family, Inputs, random, ready


def model(**changes: object) -> nn.Module:
    """Two layers and one of each refiner, 2 heads x 16."""
    config = dict(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=10,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 32, 32],
    )
    return ready(ZImageTransformer2DModel(**(config | changes)))


def inputs(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """The second sample has a picture of another size and a longer caption."""
    height, width = latent
    shapes = [(4, 1, 2 * height, 2 * width), (4, 1, 2 * width, 2 * height)][:batch]
    return {
        "x": random(seed, *shapes),
        "t": torch.full((batch,), 0.5),
        "cap_feats": random(seed + 1, *[(5, 10), (37, 10)][:batch]),
    }


def omni(**changes: object) -> nn.Module:
    return model(siglip_feat_dim=7, **changes)


def edited(batch: int = 1, seed: int = 0, latent: tuple[int, int] = (7, 9)) -> Inputs:
    """A given picture of 20 tokens with 12 features; captions for both, the second sample's longer."""
    height, width = latent
    captions = [[(5, 10), (9, 10)], [(5, 10), (37, 10)]][:batch]
    return {
        "x": [random(seed + i, (4, 1, 8, 10), (4, 1, 2 * height, 2 * width)) for i in range(batch)],
        "t": torch.full((batch,), 0.5),
        "cap_feats": [random(seed + 2 + i, *shapes) for i, shapes in enumerate(captions)],
        "siglip_feats": [[*random(seed + 4 + i, (3, 4, 7)), None] for i in range(batch)],
        "image_noise_mask": [[0, 1]] * batch,
    }


GRIDS = (TokenGrid(1, 7, 9, 1), TokenGrid(1, 7, 9, 33))
OMNI_GRIDS = (TokenGrid(1, 7, 9, (32, 1)), TokenGrid(1, 7, 9, (96, 65)))
ALONE = {"context_refiner": "text alone", "siglip_refiner": "features of given pictures alone"}
CANNOT = {
    "fused": "the class has no fused projections",
    "first_block_cache": "the class has no cache",
}
FAMILIES = (
    Family("z_image", model, inputs, GRIDS, (5, 11), joint=True, stock=ALONE, cannot=CANNOT),
    Family("z_image-omni", omni, edited, OMNI_GRIDS, (5, 11), joint=True, stock=ALONE, cannot=CANNOT),
)
