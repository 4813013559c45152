"""New words, concepts that are kept apart, and the masks that a model's own attention draws."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import dattn
from dattn.apps.cli import main
from dattn.apps.lora.asking import listen, told, told_with_graph
from dattn.apps.lora.concept_masks import POWER, SIDE, Spread, alike, assigned
from dattn.apps.lora.concepts import Concept, ConceptMaps, binding, blurred, jensen_shannon, masking, overlap, to_unit
from dattn.apps.lora.tokens import NewTokens
from dattn.apps.shapes.pictures import draw_pictures, sample_picture
from dattn.control import HeatMaps
from tests.pipelines.tiny import MODELS

SD = f"{MODELS}/shapes-sd"
WORDS = ["--placeholder_token", "<new1>", "<new2>", "--initializer_token", "red", "blue"]
CONCEPTS = ["--concept", "<new1> circle", "<new2> square"]


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stock():
    pipe = StableDiffusionPipeline.from_pretrained(SD, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One picture, with a caption that has two new words."""
    folder = tmp_path_factory.mktemp("pair")
    Image.fromarray(draw_pictures([sample_picture([5, 2], 2)], 64)[0]).save(folder / "0.png")
    (folder / "0.txt").write_text("a <new1> circle above a <new2> square")
    return folder


def test_overlap_is_that_of_the_formula():
    a, b = random(5, 4), random(5, 4, seed=1)
    common = sum(float(x * y) for x, y in zip(a.flatten(), b.flatten(), strict=True))
    expected = (common + 1) / (float(a.sum()) + float(b.sum()) - common + 1)
    assert overlap(a, b).item() == pytest.approx(expected)
    assert overlap(torch.ones(3, 3), torch.ones(3, 3)) == 1


def test_binding_sums_over_concepts_and_pairs():
    maps, present = random(2, 3, 2, 6, 6), torch.tensor([[True, True, True], [True, False, False]])
    clear = blurred(to_unit(maps))
    expected = 0.0
    for s in range(2):
        for i in range(3):
            if present[s, i]:
                expected += 1 - float(overlap(clear[s, i, 1] ** 2, clear[s, i, 0]))
            for j in range(i + 1, 3):
                if present[s, i] and present[s, j]:
                    expected += float(overlap(clear[s, i, 1] ** 2, clear[s, j, 1] ** 2))
    assert binding(maps, present).item() == pytest.approx(expected / 2)


def test_binding_pulls_at_new_words_and_not_at_classes():
    maps, present = random(1, 1, 2, 6, 6).requires_grad_(), torch.ones(1, 1, dtype=torch.bool)
    binding(maps, present).backward()
    assert maps.grad[:, :, 0].abs().max() > 0 and maps.grad[:, :, 1].abs().max() == 0


def test_jensen_shannon_is_that_of_the_formula():
    p, q = (random(4, 7, seed=s).softmax(-1) for s in (0, 1))
    kl = lambda one, other: sum(a * math.log(a / b) for a, b in zip(one.tolist(), other.tolist(), strict=True))
    for row in range(4):
        middle = (p[row] + q[row]) / 2
        assert jensen_shannon(p, q)[row].item() == pytest.approx((kl(p[row], middle) + kl(q[row], middle)) / 2)
    apart = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert jensen_shannon(*apart).item() == pytest.approx(math.log(2)) and jensen_shannon(apart[0], apart[0]) == 0


def test_masking_counts_what_is_there():
    maps, masks = random(1, 2, 2, 4, 4), (random(1, 2, 8, 8, seed=1) > 0.5).double()
    each = []
    for i in range(2):
        look = F.interpolate(maps[:, i].mean(1, keepdim=True), (8, 8), mode="bicubic", align_corners=False).flatten()
        look, mask = (look - look.min()) / (look.max() - look.min()), masks[0, i].flatten()
        each.append(float(jensen_shannon(look.exp() / look.exp().sum(), mask.exp() / mask.exp().sum())))
    both, one = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert masking(maps, masks, both).item() == pytest.approx(sum(each) / 2)
    assert masking(maps, masks, one).item() == pytest.approx(each[0])
    assert masking(maps, torch.zeros_like(masks), both) == 0


def test_places_belong_to_the_concept_that_is_clearly_ahead():
    values = torch.tensor([[[0.9, 0.5, 0.58, 0.1, 0.8]], [[0.2, 0.3, 0.55, 0.1, 0.75]]])[None]
    assert assigned(values)[0, 0, 0].tolist() == [1, 0, 0, 0, 0]
    assert assigned(values)[0, 1].sum() == 0
    assert assigned(torch.tensor([[[[0.6, 0.54]]]])).flatten().tolist() == [1, 0]


def test_maps_are_carried_along_self_attention():
    """Against matrices: the mean of every layer's A⁴ c², A being the mean of softmax(q kᵀ) over heads."""
    unet = stock().unet.eval()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, 16, unet.config.cross_attention_dim, generator=generator)
    maps, spread, seen = torch.rand(2, 3, 16, 16, generator=generator), Spread(), []

    class Listener(dattn.control.Control):
        keeps_sums = True

        def acts(self, place):
            return place.kind == "self" and place.grid.visual == 256

        def edit(self, call):
            seen.append(((call.query @ call.key.mT) * call.scale).softmax(-1).mean(1))
            return call.attend()

    with torch.no_grad(), dattn.apply(unet, None, control=[Listener(), spread]):
        spread.watch(maps)
        unet(latents, torch.tensor([100, 100]), text)
    columns = maps.square().flatten(2).mT
    carried = torch.stack([torch.linalg.matrix_power(a, POWER) @ columns for a in seen]).mT.unflatten(-1, (16, 16))
    large = [F.interpolate(one, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(min=0) for one in carried]
    torch.testing.assert_close(spread._store.mean[:, :, 0], torch.stack(large).mean(0), atol=1e-5, rtol=1e-4)
    assert spread.masks().shape == (2, 3, SIDE, SIDE)


def test_masks_replace_those_that_they_are_like():
    masks = torch.zeros(2, SIDE, SIDE)
    masks[0, 4:16, 4:16], masks[1, 20:28, 6:20] = 1, 1
    moved, small, lost, none = masks.clone(), masks.clone(), masks.clone(), masks.clone()
    small[0, 4, 4] = 0
    moved[0] = masks[0].roll(9, 1)
    lost[1], none[1] = 0, 0
    assert alike(masks, masks) and alike(small, masks)
    assert not alike(moved, masks) and not alike(lost, masks)
    assert alike(masks, none)  # one that had no place gets one


def test_maps_of_concepts_are_heat_maps():
    pipe = stock()
    tokens = NewTokens(pipe, ["<new1>", "<new2>"], ["red", "blue"])
    concepts = [Concept("<new1>", "circle"), Concept("<new2>", "square")]
    caption, size = "a <new1> circle above a <new2> square", (1, 64, 64)
    heat = HeatMaps(["<new1>", "circle", "<new2>", "square"], size=(16, 16), layers=lambda name: True)
    asked = {}

    def note(module, args, kwargs):
        asked.update(kwargs, sample=args[0], timestep=args[1])

    hook = pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
    call = {"num_inference_steps": 1, "height": 64, "width": 64, "guidance_scale": 1.0, "output_type": "latent"}
    grid = lambda name: "down_blocks.1" in name or "up_blocks.1" in name  # 16 x 16
    heat.layers = grid
    with heat.on(pipe):
        pipe(caption, generator=torch.Generator().manual_seed(0), **call)
    hook.remove()
    manner = listen(pipe, pipe.unet, size, {})
    maps = ConceptMaps(tokens, concepts)
    with torch.no_grad(), dattn.apply(pipe.unet, None, control=maps):
        maps.watch([caption, "a red circle"])
        given = told_with_graph(pipe, pipe.unet, manner, [caption, "a red circle"], {})
        pipe.unet(**manner.arguments(asked["sample"].expand(2, -1, -1, -1), asked["timestep"].expand(2), given))
    assert maps.present.tolist() == [[True, True], [False, False]]
    found = maps.maps()[0]
    for (i, j), word in {(0, 0): "<new1>", (0, 1): "circle", (1, 0): "<new2>", (1, 1): "square"}.items():
        torch.testing.assert_close(found[i, j], heat[word][0, 0], atol=1e-5, rtol=1e-3)


def test_told_with_graph_is_what_is_told():
    pipe = stock()
    tokens = NewTokens(pipe, ["<new1>"], ["red"])
    manner = listen(pipe, pipe.unet, (1, 64, 64), {})
    captions = ["a <new1> circle", ""]
    found = told_with_graph(pipe, pipe.unet, manner, captions, {})
    for row, caption in enumerate(captions):
        plain = told(pipe, pipe.unet, manner, caption, (1, 64, 64), {})
        for name, tensor in plain.items():
            torch.testing.assert_close(found[name][row : row + 1].detach(), tensor)
    next(iter(found.values()))[0].square().sum().backward()
    assert tokens.vectors.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in pipe.text_encoder.parameters())
    red = told(pipe, pipe.unet, manner, "a red circle", (1, 64, 64), {})
    torch.testing.assert_close(red, told(pipe, pipe.unet, manner, "a <new1> circle", (1, 64, 64), {}))


def train(data, output, steps, *more):
    AcceleratorState._reset_state(reset_partial_state=True)
    words = ["train-lora", "--model", SD, "--buckets", "64x64", "--rank", "2", "--data", str(data)]
    words += ["--output", str(output), "--max_train_steps", str(steps), "--validation_steps", "0", *WORDS]
    return main([*words, "--learning_rate", "1e-3", "--cache_dir", str(data / "cache"), *more])


def test_new_words_are_learned_and_loaded_by_stock_diffusers(pair, tmp_path):
    options = [*CONCEPTS, "--masking_weight", "1", "--token_learning_rate", "1e-2", "--checkpointing_steps", "2"]
    options += ["--concept_sampling", "reweighted", "--mask_steps", "3"]  # at 3, after what is gone on from
    assert train(pair, tmp_path / "whole", 4, *options) == 0
    pipe = stock()
    files = sorted((tmp_path / "whole").glob("learned_embeds-*.safetensors"))
    assert [path.name for path in files] == [f"learned_embeds-new{i}.safetensors" for i in (1, 2)]
    vectors = {name: vector for path in files for name, vector in load_file(path).items()}
    start = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("red")]
    assert list(vectors) == ["<new1>", "<new2>"] and (vectors["<new1>"] - start).abs().max() > 1e-3
    pipe.load_textual_inversion([str(path) for path in files])
    pipe.load_lora_weights(str(tmp_path / "whole"))
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    make = lambda prompt: pipe(prompt, generator=torch.Generator().manual_seed(0), **call).images
    assert np.abs(make("a <new1> circle") - make("a red circle")).max() > 1e-3
    assert train(pair, tmp_path / "broken", 2, *options) == 0
    assert train(pair, tmp_path / "broken", 4, *options, "--resume_from_checkpoint", "latest") == 0
    for path in files:
        again = load_file(tmp_path / "broken" / path.name)
        assert all(torch.equal(again[name], vector) for name, vector in load_file(path).items())


def test_going_on_with_other_new_words_is_refused(pair, tmp_path, capsys):
    assert train(pair, tmp_path, 1) == 0
    other = ["--placeholder_token", "<new1>", "<new3>", "--initializer_token", "red", "blue"]
    assert train(pair, tmp_path, 2, *other, "--resume_from_checkpoint", "latest") == 2
    assert "placeholder_token was ['<new1>', '<new2>']" in capsys.readouterr().err


def test_a_class_that_is_not_named_leaves_the_concept_out():
    tokens = NewTokens(stock(), ["<new1>"], ["red"])
    maps = ConceptMaps(tokens, [Concept("<new1>", "circle")])
    named = [
        bool(word and kind)
        for text in ("a <new1> circle", "a <new1> square", "a circle")
        for word, kind in maps._found(text)
    ]
    assert named == [True, False, False]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--placeholder_token", "<a-1>", "<a1>"], "their letters and digits name their files"),
        (["--placeholder_token", "red", "<new2>"], "red: known already"),
        (["--initializer_token", "red"], "give one for each of <new1> <new2>"),
        (["--initializer_token", "red", "zebra"], "--initializer_token zebra"),
        (["--concept", "<new3> circle"], "write a placeholder (<new1>, <new2>) and its class"),
        (["--concept_sampling", "uniform"], "--concept_sampling uniform: name what to choose from with --concept"),
        (["--concept", "<new1>"], "write a placeholder (<new1>, <new2>) and its class"),
    ],
)
def test_what_is_wrong_is_said(pair, tmp_path, capsys, words, says):
    assert train(pair, tmp_path, 1, *words) == 2
    assert says in capsys.readouterr().err


def test_pipelines_without_one_clip_encoder_are_refused():
    pipe = DiffusionPipeline.from_pretrained(f"{MODELS}/shapes-flux")
    with pytest.raises(ValueError, match="FluxPipeline has no single text encoder"):
        NewTokens(pipe, ["<new1>"], ["red"])


def test_the_record_has_no_new_words_where_none_are_asked_for(pair, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    words = ["train-lora", "--model", SD, "--buckets", "64x64", "--data", str(pair), "--output", str(tmp_path)]
    assert main([*words, "--max_train_steps", "1", "--concept", "<new1> circle"]) == 2
    assert main([*words, "--max_train_steps", "1", "--validation_steps", "0", "--rank", "2"]) == 0
    assert not list(tmp_path.glob("learned_embeds*"))
    assert json.loads((tmp_path / "run.json").read_text())["options"]["placeholder_token"] == []
