"""Regions equals a map for each text, mixed by the regions' shares; through tiny models of every family it serves."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import dattn
from dattn.control import base
from dattn.control.region import Region
from dattn.control.regions import Regions
from dattn.control.reweight import Reweight
from tests.families import FAMILIES
from tests.tiny_models import sample

from .stages import grid_for, maps, qkv, stage, through

LEFT, RIGHT, MIDDLE = (0, 0, 0.4, 1), (0.4, 0, 1, 1), (0.2, 0, 0.6, 0.5)
SOFT = torch.linspace(0, 1, 20, dtype=torch.float64).reshape(4, 5)
PLACES = {
    "hard": (Region("a", box=LEFT), Region("b", box=RIGHT)),
    "gap": (Region("a", box=(0, 0, 0.2, 1)), Region("b", box=(0.8, 0.5, 1, 1))),
    "overlap": (Region("a", box=LEFT), Region("b", box=MIDDLE)),
    "soft": (Region("a", mask=SOFT), Region("b", mask=0.5 * SOFT.flip(0))),
    "edges": (Region("a", box=(0, 0, 0.5, 0.6)), Region("b", box=(0.5, 0.3, 0.9, 1))),
}
PATTERNS = [None, dattn.Neighborhood((None, 3, 3)), dattn.SlidingTile((1, 2, 2), (1, 1, 3))]
BASE = 4


class Placed(Regions):
    """Regions in whose sequences the first 4 of 12 text tokens are the base prompt's."""

    def start(self):
        super().start()
        self._base = BASE


def shares_of(covers, ratio, acting):
    """Of every token: the base prompt's share, then each region's."""
    total = covers.sum(0)
    m = torch.stack([torch.where(total > 1, cover / total.clamp(min=1), cover) for cover in covers])
    own = [(1 - ratio) * m[r] if r in acting else torch.zeros_like(m[r]) for r in range(len(covers))]
    return [1 - sum(own), *own]


def texts_of(first):
    """Positions of the base prompt's tokens and of each region's."""
    return [list(range(first + 4 * i, first + 4 * i + 4)) for i in range(3)]


def apart(covers):
    """Whether two tokens may see each other: they share a region, or one is in none."""
    members = (covers > 0).T
    free = ~members.any(1)
    return free[:, None] | free | (members[:, None] & members).any(-1)


def naive(query, key, value, kind, covers, ratio, acting=(0, 1), isolate=False, pattern=None, grid=None):
    """The maps of every text, mixed; materialised."""
    grid = grid or grid_for(kind)
    seen = torch.ones(grid.visual, grid.visual, dtype=torch.bool)
    first = grid.text_before if kind == "joint" else 0
    picture = torch.arange(first, first + grid.visual) if kind != "cross" else torch.arange(0)
    if pattern is not None:
        seen = pattern.fit(grid)[0].allowed(grid)[..., picture[:, None], picture]
    if isolate:
        seen = seen & apart(covers[list(acting)])
    if kind == "self":
        return maps(query, key, seen) @ value
    texts = texts_of(0 if grid.text_before or kind == "cross" else grid.visual)
    output = torch.zeros_like(query)
    rows = picture if kind == "joint" else torch.arange(query.shape[2])
    near = [torch.ones(grid.visual, dtype=covers.dtype), *covers]
    for number, (text, share) in enumerate(zip(texts, shares_of(covers, ratio, acting), strict=True)):
        allowed = torch.zeros(query.shape[2], key.shape[2], dtype=torch.bool)
        allowed[rows[:, None], torch.tensor(text)] = True
        if kind == "joint":
            allowed[rows[:, None], picture] = seen
        output[:, :, rows] += share[:, None] * (maps(query, key, allowed) @ value)[:, :, rows]
        if kind == "joint" and (number == 0 or number - 1 in acting):
            keys = torch.cat([torch.tensor(text), picture])
            bias = torch.cat([torch.zeros(4, dtype=covers.dtype), near[number].log()])
            logits = query[:, :, text] @ key[:, :, keys].mT * query.shape[-1] ** -0.5 + bias
            output[:, :, text] = logits.softmax(-1) @ value[:, :, keys]
    return output


def covers_of(regions, grid):
    return torch.stack([region.cover(grid) for region in regions])


@pytest.mark.parametrize("ratio", [0, 0.3, 1])
@pytest.mark.parametrize("places", PLACES)
def test_cross_attention(places, ratio):
    query, key, value = qkv(1, 2, 20, 12)
    regions = PLACES[places]
    output = through([Placed(regions, ratio)], stage("base"), "cross", query, key, value)
    wanted = naive(query, key, value, "cross", covers_of(regions, grid_for("cross")), ratio)
    assert (output - wanted).abs().max() < 1e-12
    stock = maps(query, key[:, :, :BASE]) @ value[:, :, :BASE]
    assert ((output - stock).abs().max() < 1e-12) == (ratio == 1)


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=["dense", "neighborhood", "tiles"])
@pytest.mark.parametrize(
    ("places", "ratio"), [("hard", 0), ("gap", 0.3), ("overlap", 0.3), ("soft", 0.3), ("edges", 1)]
)
def test_joint_attention(places, ratio, pattern, isolate):
    grid, regions = grid_for("joint"), PLACES[places]
    assert pattern is None or not pattern.fit(grid)[0].allowed(grid).all()
    query, key, value = qkv(1, 2, grid.tokens, grid.tokens)
    output = through([Placed(regions, ratio, isolate)], stage("base"), "joint", query, key, value, pattern)
    wanted = naive(query, key, value, "joint", covers_of(regions, grid), ratio, isolate=isolate, pattern=pattern)
    assert (output - wanted).abs().max() < 1e-12


def test_joint_attention_with_text_behind_and_frames():
    grid = dattn.TokenGrid(3, 4, 5, text=12)
    track = Region("a", box={0: (0, 0, 0.4, 1), 2: (0.6, 0, 1, 1)})
    regions = (track, Region("b", box=(0, 0.5, 1, 1)))
    query, key, value = qkv(1, 2, grid.tokens, grid.tokens)
    pattern = dattn.Neighborhood((3, 3, 3))
    output = through([Placed(regions, 0.2)], stage("base"), "joint", query, key, value, pattern, grid)
    wanted = naive(query, key, value, "joint", covers_of(regions, grid), 0.2, pattern=pattern, grid=grid)
    assert (output - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("pattern", PATTERNS, ids=["dense", "neighborhood", "tiles"])
@pytest.mark.parametrize("places", ["hard", "gap", "overlap", "edges"])
def test_isolated_self_attention(places, pattern):
    query, key, value = qkv(1, 2, 20, 20)
    covers = covers_of(PLACES[places], grid_for("self"))
    output = through([Placed(PLACES[places], isolate=True)], stage("base"), "self", query, key, value, pattern)
    wanted = naive(query, key, value, "self", covers, 0, isolate=True, pattern=pattern)
    assert (output - wanted).abs().max() < 1e-12
    stock = through([Placed(PLACES[places])], stage("base"), "self", query, key, value, pattern)
    reach = places == "gap" and isinstance(pattern, dattn.Neighborhood)  # not from one region to the other
    assert ((output - stock).abs().max() > 1e-3) != reach


@pytest.mark.parametrize("kind", ["cross", "joint"])
def test_prompts_and_negative_prompts_in_one_batch(kind):
    grid = grid_for(kind)
    query, key, value = qkv(4, 2, grid.tokens, 12 if kind == "cross" else grid.tokens)
    regions = (Region("a", box=LEFT), Region("b", box=MIDDLE, negative="c"))
    own, covers = stage("one", "two", halves=True), covers_of(regions, grid)
    output = through([Placed(regions, 0.3)], own, kind, query, key, value)
    for rows, acting in ((slice(2, 4), (0, 1)), (slice(0, 2), (1,))):
        wanted = naive(query[rows], key[rows], value[rows], kind, covers, 0.3, acting)
        assert (output[rows] - wanted).abs().max() < 1e-12


def test_samples_without_regions_follow_the_base_prompt():
    query, key, value = qkv(2, 2, 20, 12)
    output = through([Placed(PLACES["hard"])], stage("one", halves=True), "cross", query, key, value)
    torch.testing.assert_close(output[:1], maps(query, key[:, :, :4])[:1] @ value[:1, :, :4])


def test_other_layers_follow_the_base_prompt():
    query, key, value = qkv(1, 2, 20, 12)
    stock = maps(query, key[:, :, :4]) @ value[:, :, :4]
    for index, other in ((0, True), (1, False)):
        control = Placed(PLACES["hard"], layers=[1])
        output = through([control], stage("one"), "cross", query, key, value, index=index, count=2)
        assert ((output - stock).abs().max() < 1e-12) == other


@pytest.mark.parametrize("added", [False, True])
def test_padding_stays_hidden(added):
    query, key, value = qkv(1, 2, 20, 12)
    seen = torch.tensor([1, 1, 0, 0] * 3).bool()[None, None, None]
    mask = torch.zeros(1, 1, 1, 12, dtype=torch.float64).masked_fill(~seen, -1e4) if added else seen
    output = through([Placed(PLACES["hard"], 0.3)], stage("one"), "cross", query, key, value, mask=mask)
    value = value.clone()
    value[:, :, [2, 3, 6, 7, 10, 11]] = 9
    again = through([Placed(PLACES["hard"], 0.3)], stage("one"), "cross", query, key, value, mask=mask)
    assert (output - again).abs().max() < 1e-12


def test_a_control_inside_edits_the_base_prompt():
    query, key, value = qkv(1, 2, 20, 12)
    controls = [Reweight({(1, 2): 0.0}), Placed(PLACES["hard"], 0.3)]
    output = through(controls, stage("one two three"), "cross", query, key, value)
    less = value.clone()
    less[:, :, [1, 2]] = 0
    wanted = naive(query, key, less, "cross", covers_of(PLACES["hard"], grid_for("cross")), 0.3)
    assert (output - wanted).abs().max() < 1e-12


def test_a_control_inside_joint_attention_is_refused():
    grid = grid_for("joint")
    query, key, value = qkv(1, 2, grid.tokens, grid.tokens)
    with pytest.raises(ValueError, match="give it first"):
        through([Reweight({1: 0.0}), Placed(PLACES["hard"])], stage("one"), "joint", query, key, value)


@pytest.mark.parametrize(("kind", "isolate"), [("cross", False), ("joint", False), ("joint", True), ("self", True)])
def test_hard_masks_cost_what_they_cover(kind, isolate, monkeypatch):
    grid = dattn.TokenGrid(1, 10, 10, text=12 if kind == "joint" else 0, text_first=True)
    query, key, value = qkv(1, 1, grid.tokens, 12 if kind == "cross" else grid.tokens)
    halves = Region("a", box=(0, 0, 0.5, 1)), Region("b", box=(0.5, 0, 1, 1))
    pairs = []
    for module, name in ((torch.nn.functional, "scaled_dot_product_attention"), (base, "dense_lse")):
        run = getattr(module, name)

        def counted(query, key, *rest, run=run, **options):
            pairs.append(query.shape[2] * key.shape[2])
            return run(query, key, *rest, **options)

        monkeypatch.setattr(module, name, counted)
    through([Placed(halves, 0, isolate)], stage("one"), kind, query, key, value, grid=grid)
    asked = 0 if kind == "self" else 2 * 50 * 4
    told = 4 * 104 + 2 * 4 * 54 if kind == "joint" else 0
    picture = 0 if kind == "cross" else 2 * 50 * 50 if isolate else 100 * 100
    assert sum(pairs) == asked + told + picture


def test_gradients_flow():
    query, key, value = (t.requires_grad_() for t in qkv(1, 1, 32, 32))
    through([Placed(PLACES["soft"])], stage("one"), "joint", query, key, value).square().sum().backward()
    assert all(t.grad.abs().sum() > 0 for t in (query, key, value))


def test_covers_are_shares_of_area():
    fine = torch.zeros(60, 60, dtype=torch.float64)
    fine[15:42, 6:33] = 1
    box = Region("a", box=(6 / 60, 15 / 60, 33 / 60, 42 / 60))
    for grid in (dattn.TokenGrid(1, 4, 5), dattn.TokenGrid(1, 3, 20), dattn.TokenGrid(2, 60, 12)):
        wanted = fine.reshape(grid.height, -1, grid.width, 60 // grid.width).mean((1, 3))
        for region in (box, Region("a", mask=fine)):
            cover = region.cover(grid).reshape(grid.shape)
            torch.testing.assert_close(cover, wanted.expand_as(cover), rtol=0, atol=1e-6)


def test_masks_of_any_size_are_averaged():
    mask = torch.rand(6, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = dattn.TokenGrid(4, 3, 5)
    fine = mask.repeat_interleave(2, 0).repeat_interleave(3, 1).repeat_interleave(5, 2)
    wanted = fine.reshape(4, 3, 3, 7, 5, 9).mean((1, 3, 5))
    torch.testing.assert_close(Region("a", mask=mask).cover(grid).reshape(4, 3, 5), wanted)


def test_tracks_are_interpolated_and_stretched():
    first, last = (0, 0, 0.25, 1), (0.5, 0, 1, 0.5)
    given = Region("a", box={1: first, 5: last})
    part = [max(0, frame - 1) / 4 for frame in range(6)]
    listed = [[a + (b - a) * p for a, b in zip(first, last, strict=True)] for p in part]
    grid = dattn.TokenGrid(6, 8, 8)
    cover = Region("a", box=listed).cover(grid)
    torch.testing.assert_close(given.cover(grid), cover)
    halves = Region("a", box=listed).cover(dattn.TokenGrid(3, 8, 8)).reshape(3, 64)
    torch.testing.assert_close(halves, cover.reshape(3, 2, 64).mean(1))


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({}, "a box or a mask"),
        ({"box": LEFT, "mask": SOFT}, "a box or a mask"),
        ({"box": (0, 0, 1)}, "fractions of the picture"),
        ({"box": (0.5, 0, 0.5, 1)}, "fractions of the picture"),
        ({"box": [(0, 0, 64, 64)]}, "fractions of the picture"),
        ({"box": {-1: LEFT}}, "counted from 0"),
        ({"box": {}}, "counted from 0"),
        ({"mask": torch.zeros(4, 4)}, "empty mask"),
        ({"mask": torch.full((4, 4), 255)}, "shares in"),
        ({"mask": torch.full((4, 4), torch.nan)}, "shares in"),
        ({"mask": torch.ones(4)}, "give a tensor"),
        ({"mask": [[1, 0]]}, "give a tensor"),
    ],
)
def test_wrong_regions(region, message):
    with pytest.raises(ValueError, match=message):
        Region("a red circle", **region)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "give one or more"),
        (("a red circle",), "give one or more"),
        ((PLACES["hard"], 1.5), "base_ratio=1.5"),
        ((PLACES["hard"], "much"), "base_ratio='much'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Regions(*arguments)


def test_a_track_where_one_picture_is_seen():
    with pytest.raises(ValueError, match="one box or one mask"):
        Region("a", box=[LEFT, RIGHT]).cover(dattn.TokenGrid(1, 4, 4))


class Pipeline:
    """A pipeline around a tiny model: it encodes prompts, and calls the model once, unconditional samples first."""

    def __init__(self, family):
        self.model, self.inputs = family.model(), family.inputs(batch=2)
        setattr(self, "unet" if family.name == "unet" else "transformer", self.model)
        self.scheduler, self.asked = FlowMatchEulerDiscreteScheduler(), []
        self.do_classifier_free_guidance = True

    def check_inputs(self, prompt):
        pass

    def encode_prompt(self, prompt, num_images_per_prompt, do_classifier_free_guidance=True, prompt_embeds=None):
        """Of each prompt noise of its own; "padded" fills half of the room."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        self.asked.append((prompts, num_images_per_prompt, do_classifier_free_guidance, prompt_embeds))
        _, count, width = self.inputs["encoder_hidden_states"].shape
        seeds = [torch.Generator().manual_seed(sum(map(ord, text))) for text in prompts]
        found = torch.stack([torch.randn(count, width, generator=seed) for seed in seeds])
        room = [count // 2 if text == "padded" else count for text in prompts]
        return found, torch.tensor([[i < n for i in range(count)] for n in room]).long()

    def __call__(self, prompt, negative="none", sequential=False):
        self.check_inputs(prompt)
        text, mask = zip(*(self.encode_prompt(one, 1, True, None) for one in (prompt, negative)), strict=True)
        inputs = self.inputs | {"encoder_hidden_states": torch.cat(text[::-1])}
        if "encoder_attention_mask" in inputs:
            inputs["encoder_attention_mask"] = torch.cat(mask[::-1])
        self.scheduler.set_timesteps(2)
        with torch.no_grad():
            return self.branches(inputs) if sequential else self.model(**inputs, return_dict=False)[0]

    def branches(self, inputs):
        """One after the other, under their names."""
        found = []
        for row, name in ((1, "cond"), (0, "uncond")):
            with self.model.cache_context(name):
                found.append(self.model(**sample(inputs, row), return_dict=False)[0])
        return torch.cat(found[::-1])


SERVED = ("unet", "wan", "pixart", "ltx", "flux", "sd3", "cogvideox")


@pytest.fixture(scope="module", params=SERVED)
def pipeline(request):
    return Pipeline(FAMILIES[request.param])


EVERYWHERE = (0, 0, 1, 1)


@pytest.mark.parametrize("attention", [None, dattn.Neighborhood((None, 3, 3))], ids=["dense", "sparse"])
def test_one_region_everywhere_is_its_prompt(pipeline, attention):
    """Prompt and negative prompt of a region that is all there is take the place of the pipeline's."""
    with dattn.apply(pipeline, attention):
        wanted, other = pipeline("padded", negative="dark"), pipeline("b")
    region = Region("padded", box=EVERYWHERE, negative="dark")
    with dattn.apply(pipeline, attention, control=Regions([region], base_ratio=0)):
        output = pipeline("b")
    torch.testing.assert_close(output, wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - other).abs().max() > 1e-3


def test_the_base_prompt_alone_is_stock_and_removal_too(pipeline):
    stock = pipeline("a")
    with Regions([Region("b", box=LEFT), Region("c", box=RIGHT)], base_ratio=1).on(pipeline):
        torch.testing.assert_close(pipeline("a"), stock, atol=1e-4, rtol=1e-4)
    with Regions([Region("b", box=LEFT)], isolate=True).on(pipeline):
        output = pipeline("a")
    assert (output - stock)[1:].abs().max() > 1e-3
    torch.testing.assert_close(output[:1], stock[:1], atol=1e-4, rtol=1e-4)  # no negative prompt
    assert torch.equal(pipeline("a"), stock)


@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox"])
def test_guidance_in_one_batch_or_one_after_the_other(name):
    pipeline = Pipeline(FAMILIES[name])
    for negative in (None, "dark"):
        regions = [Region("b", box=LEFT), Region("c", box=MIDDLE, negative=negative)]
        with Regions(regions, isolate=True).on(pipeline):
            batched, one_by_one = pipeline("a"), pipeline("a", sequential=True)
        torch.testing.assert_close(one_by_one, batched, atol=1e-4, rtol=1e-4)


def test_prompts_are_encoded_once_in_a_call_and_as_the_pipelines_own(pipeline):
    with Regions([Region("b", box=LEFT), Region("c", box=RIGHT, negative="d")]).on(pipeline):
        for _ in range(2):
            pipeline.asked.clear()
            pipeline("a")
            assert pipeline.asked[2:] == [(["b", "c", "b", "d"], 1, False, None)]


def test_the_next_call_may_have_another_mask(pipeline):
    """Nothing of a mask is kept: a control whose region is another one is as one that was made with it."""
    control = Regions([Region("b", box=LEFT)])
    with control.on(pipeline):
        first = pipeline("a")
        control.regions = (Region("b", box=RIGHT),)
        second = pipeline("a")
    with Regions([Region("b", box=RIGHT)]).on(pipeline):
        assert torch.equal(pipeline("a"), second)
    assert (second - first).abs().max() > 1e-4


def test_outside_of_its_window_the_model_is_stock(pipeline):
    stock = pipeline("a")
    with Regions([Region("b", box=LEFT)], window=(0.5, 1)).on(pipeline):
        assert torch.equal(pipeline("a"), stock)  # the first of two steps
        assert len(pipeline.asked) and pipeline.asked[-1][0] == ["none"]


def refusing(name, **changes):
    """The message with which a tiny pipeline refuses regions."""
    pipeline = Pipeline(FAMILIES[name])
    for where, value in changes.items():
        setattr(pipeline, where, value)
    with Regions([Region("b", box=LEFT)]).on(pipeline), pytest.raises(ValueError) as caught:
        pipeline("a")
    return str(caught.value)


def test_models_that_it_does_not_serve():
    assert "have positions of their own" in refusing("hunyuan_dit")
    assert "encoder_hidden_states_image=" in refusing("wan-image")
    assert "reference pictures" in refusing("flux-kontext")


def test_text_of_fixed_length_is_refused():
    family = FAMILIES["cogvideox"]
    model = family.model(use_rotary_positional_embeddings=False)
    assert "a fixed number of text tokens" in refusing("cogvideox", transformer=model, model=model)


def test_a_bare_model_is_refused():
    family = FAMILIES["wan"]
    model = family.model()
    with Regions([Region("b", box=LEFT)]).on(model), pytest.raises(ValueError, match="not to a bare model"):
        family.run(model)


def test_a_pipeline_that_gives_no_embedding_for_each_prompt():
    encoded = torch.zeros(1, 6, 10), None
    assert "no embedding for each prompt" in refusing(
        "wan", encode_prompt=lambda prompt, number, guided, embeds: encoded
    )
