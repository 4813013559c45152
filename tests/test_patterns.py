import json

import pytest
import torch

from dattn import PATTERNS, Dense, Neighborhood, Radial, TokenGrid, pattern_from_dict, pattern_from_string
from dattn.block_mask import MaskCache, pack_bits

EXAMPLES = [Dense(), Radial(0.2, False, 64, 32), Neighborhood((3, None, 5), 2, causal=(True, False, False), tail=True)]


@pytest.mark.parametrize("pattern", EXAMPLES, ids=lambda p: p.name)
def test_dict_round_trip_through_json(pattern):
    data = json.loads(json.dumps(pattern.to_dict()))
    assert data["name"] == type(pattern).__name__
    assert pattern_from_dict(data) == pattern
    assert hash(pattern_from_dict(data)) == hash(pattern)


@pytest.mark.parametrize("pattern", EXAMPLES, ids=lambda p: p.name)
def test_text_round_trip(pattern):
    assert pattern_from_string(repr(pattern)) == pattern


def test_every_pattern_in_the_table_is_public():
    import dattn

    assert all(getattr(dattn, name) is cls for name, cls in PATTERNS.items())


def test_names_without_arguments_in_any_case():
    assert pattern_from_string("radial") == Radial()
    assert pattern_from_string(" Neighborhood( 3, stride=1 ) ") == Neighborhood(3)


@pytest.mark.parametrize(
    "text",
    [
        "nope",
        "Radial(",
        "Radial(decay=__import__('os'))",
        "Radial(speed=1)",
        "a.b()",
        "Radial(**{})",
        "",
        "Neighborhood",
    ],
)
def test_bad_text(text):
    with pytest.raises(ValueError):
        pattern_from_string(text)


@pytest.mark.parametrize("data", [{}, {"name": "nope"}, {"name": "Radial", "speed": 1}, "Radial", {"name": ["x"]}])
def test_bad_dict(data):
    with pytest.raises(ValueError):
        pattern_from_dict(data)


def test_at_and_fit_are_the_pattern_itself_by_default():
    pattern = Radial()
    assert pattern.at(0, 4, 1, 10) is pattern
    assert pattern.fit(TokenGrid(1, 2, 3)) == (pattern, None)


def test_mask_cache_is_bounded_and_reuses():
    cache, grid = MaskCache(2), TokenGrid(2, 3, 4)
    first = cache.get(Dense(), grid, "cpu")
    assert cache.get(Dense(), grid, "cpu") is first
    cache.get(Radial(), grid, "cpu")
    cache.get(Neighborhood(2), grid, "cpu")
    assert cache.get(Dense(), grid, "cpu") is not first


def test_packed_tiles_round_trip():
    tiles = torch.rand(5, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    packed = pack_bits(tiles)
    assert packed.dtype == torch.int32
    assert packed.shape == (5, 64, 2)
    assert (packed[3, 7, 1] >> 4 & 1).item() == tiles[3, 7, 36].item()
    mask = Neighborhood(3, tile=(1, 4, 4)).mask(TokenGrid(1, 8, 8))
    assert torch.equal(pack_bits(mask.unpacked_tiles()), mask.tiles)


def test_plot_writes_a_picture(tmp_path):
    from PIL import Image

    figure = Radial(block_size=16).mask(TokenGrid(12, 4, 4)).plot(str(tmp_path / "mask.png"))
    assert figure.axes[0].get_images()[0].get_array().shape == (12, 12)
    assert len(Image.open(tmp_path / "mask.png").convert("RGB").getcolors(1 << 20)) > 2


def test_large_masks_are_drawn_in_cells():
    from dattn.plot import LARGEST, block_picture

    mask = Neighborhood(3, tile=(1, 1, 1)).mask(TokenGrid(1, 30, 30))
    picture = block_picture(mask)
    assert max(picture.shape) <= LARGEST
    assert set(picture.flatten().tolist()) >= {0, 2}


def test_density_of_a_neighborhood_counts_block_pairs():
    mask = Neighborhood((1, 4, 4), stride=(1, 4, 4), tile=(1, 4, 4)).mask(TokenGrid(3, 8, 8))
    assert mask.num_blocks == (12, 12)
    assert mask.density == 1 / 12
