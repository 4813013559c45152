import json

import numpy as np
import pytest
from PIL import Image

from dattn.apps import running
from dattn.apps.loading import Native, load
from dattn.apps.media import read_video
from dattn.apps.publish import slug
from dattn.apps.running import Request, run

SPARSE = "Radial(block_size=16, decay=0.2)"


@pytest.fixture(scope="module")
def loaded(shapes_folder):
    return load(str(shapes_folder))


@pytest.fixture(scope="module")
def request_(loaded):
    return Request("a red circle moving right").filled(loaded)


def test_generate_writes_clips_sheet_and_report(dattn_command, shapes_folder, tmp_path):
    out = tmp_path / "new" / "out"
    outcome = dattn_command("generate", "--model", shapes_folder, "--pattern", SPARSE, "--output", out, "--seed", "3")
    assert outcome.code == 0, outcome.err
    names = {path.name for path in out.iterdir()}
    sparse = "radial-block-size-16-decay-0.2.mp4"
    assert names == {"stock.mp4", sparse, "sheet.png", "report.json"}
    for name in ("stock.mp4", sparse):
        assert read_video(out / name).shape == (17, 32, 32, 3), "4x the native 5 frames"
    report = json.loads((out / "report.json").read_text())
    assert report["request"]["seed"] == 3
    assert report["command"].startswith("dattn generate") and report["versions"]["torch"]
    stock, radial = report["results"]
    assert (stock["name"], radial["name"]) == ("stock", SPARSE)
    assert 0 < radial["density"] < 1 and 0 < radial["work"] < 1
    assert radial["psnr"] > 0 and -1 <= radial["ssim"] < 1
    assert radial["seconds"] >= radial["denoiser_seconds"] > 0
    assert stock["judged"] is False and radial["verdict"].startswith("not ok")
    assert len(radial["report"]["layers"]) == 2
    assert "judge" in outcome.out and "PSNR" in outcome.out


def test_the_same_seed_gives_the_same_clip(loaded, request_):
    one, two = run(loaded, request_, SPARSE), run(loaded, request_, SPARSE)
    assert np.array_equal(one.clip, two.clip)


def test_stock_is_stock_after_a_pattern_ran(loaded, request_):
    before = run(loaded, request_, "stock")
    sparse = run(loaded, request_, SPARSE)
    after = run(loaded, request_, "dense")
    assert np.array_equal(before.clip, after.clip)
    assert not np.array_equal(before.clip, sparse.clip)


def test_dense_steps_count_as_work(loaded, request_):
    free, half = run(loaded, request_, SPARSE), run(loaded, request_, SPARSE, {"dense_steps": 0.5})
    assert half.density == free.density
    assert half.work == pytest.approx(0.5 + 0.5 * free.work)


def test_a_left_out_layer_counts_as_dense(loaded, request_):
    free, half = run(loaded, request_, SPARSE), run(loaded, request_, SPARSE, {"dense_layers": 1})
    assert half.density == pytest.approx(0.5 + 0.5 * free.density)


def test_no_stock(dattn_command, shapes_folder, tmp_path):
    words = ("generate", "--model", shapes_folder, "--no-stock", "--frames", "9", "--output", tmp_path)
    outcome = dattn_command(*words)
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "stock.mp4").exists()
    assert len(json.loads((tmp_path / "report.json").read_text())["results"]) == 1


def test_stock_alone(dattn_command, shapes_folder, tmp_path):
    words = (
        "generate",
        "--model",
        shapes_folder,
        "--pattern",
        "stock",
        "--frames",
        "9",
        "--output",
        tmp_path,
    )
    assert dattn_command(*words).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"stock.mp4", "sheet.png", "report.json"}


def test_any_folder_runs_without_a_judge(dattn_command, plain_folder, tmp_path):
    size = ("--frames", "9", "--height", "32", "--width", "32", "--steps", "2")
    words = (
        "generate",
        "--model",
        plain_folder,
        "--prompt",
        "a fox",
        "--pattern",
        SPARSE,
        *size,
        "--output",
        tmp_path,
    )
    outcome = dattn_command(*words)
    assert outcome.code == 0, outcome.err
    assert all(r["verdict"] is None for r in json.loads((tmp_path / "report.json").read_text())["results"])


def test_a_recipe_runs(dattn_command, loaded, shapes_folder, tmp_path):
    import dattn

    with dattn.apply(loaded.pipe, dattn.Radial(block_size=16), dense_layers=1) as handle:
        run(loaded, Request("a red circle", frames=9, height=32, width=32, steps=1), "stock")
        handle.save_recipe(tmp_path / "mine.json")
    words = ("generate", "--model", shapes_folder, "--pattern", tmp_path / "mine.json", "--frames", "9")
    outcome = dattn_command(*words, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "out" / "mine.mp4").exists()
    layers = json.loads((tmp_path / "out" / "report.json").read_text())["results"][1]["report"]["layers"]
    assert [layer["pattern"] is None for layer in layers] == [True, False]


def test_a_picture_pipeline_writes_pictures(dattn_command, sd_folder, tmp_path):
    words = ("generate", "--model", sd_folder, "--prompt", "a fox", "--pattern", "Neighborhood(window=3)")
    outcome = dattn_command(*words, "--steps", "2", "--height", "32", "--width", "32", "--output", tmp_path)
    assert outcome.code == 0, outcome.err
    assert Image.open(tmp_path / "stock.png").size == (32, 32)
    assert (tmp_path / "neighborhood-window-3.png").exists()
    refused = dattn_command(*words, "--frames", "9", "--output", tmp_path / "again")
    assert refused.code == 2 and "num_frames" in refused.err


def test_compare_has_a_row_for_each_pattern(dattn_command, shapes_folder, tmp_path):
    patterns = (SPARSE, "Radial(block_size=16, decay=0.2, tail=True)", "Neighborhood(window=(3, None, None))")
    words = (
        "compare",
        "--model",
        shapes_folder,
        "--output",
        tmp_path,
        "--frames",
        "17",
        "--patterns",
        *patterns,
    )
    outcome = dattn_command(*words)
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [r["name"] for r in results] == ["stock", *patterns]
    assert results[2]["pooled_share"] > 0 == results[1]["pooled_share"]
    assert len({r["file"] for r in results}) == 4


def test_nothing_is_written_when_the_last_run_fails(dattn_command, shapes_folder, tmp_path, monkeypatch):
    real = running._timed
    monkeypatch.setattr(running, "_timed", lambda *a: real(*a) if a[2] == "stock" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dattn_command("generate", "--model", shapes_folder, "--frames", "9", "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_names_of_files():
    assert slug("Radial(decay=0.2)") == "radial-decay-0.2"
    assert slug("recipes/mine.json") == "mine"
    assert slug("Neighborhood(window=(11, None, None))") == "neighborhood-window-11-none-none"
    assert slug("../../etc") == "etc"


def test_lengths_of_the_native_clip():
    assert [Native().frames_at(n) for n in (1, 2, 4, 8)] == [33, 65, 129, 257]


def test_a_lora_is_put_on_the_model(dattn_command, shapes_folder, shapes_lora, tmp_path):
    import torch

    from dattn.apps.loading import load

    weights, given = shapes_lora
    loaded = load(str(shapes_folder), lora=weights).pipe.transformer, load(str(shapes_folder)).pipe.transformer
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 3, 4, 4, generator=generator), torch.randn(1, 5, 16, generator=generator)
    with torch.no_grad():
        outputs = [model.eval()(latents, torch.tensor([1]), text).sample for model in (given, *loaded)]
    torch.testing.assert_close(outputs[1], outputs[0])
    assert (outputs[2] - outputs[0]).abs().max() > 1e-3
    clip = "--model", shapes_folder, "--frames", "5", "--steps", "1", "--no-stock", "--output", tmp_path / "out"
    assert dattn_command("generate", *clip, "--lora", weights.parent).code == 0
    outcome = dattn_command("generate", *clip, "--lora", tmp_path / "nowhere")
    assert outcome.code == 2 and "nowhere: no such folder" in outcome.err
    (tmp_path / "other").mkdir()
    outcome = dattn_command("generate", *clip, "--lora", tmp_path / "other")
    assert outcome.code == 2 and "cannot be loaded on WanPipeline" in outcome.err
    outcome = dattn_command("generate", *clip, "--lora", other_lora(tmp_path))
    assert outcome.code == 2 and "nothing in it is for WanPipeline" in outcome.err


def other_lora(tmp_path):
    """A LoRA of a UNet."""
    import torch
    from safetensors.torch import save_file

    (tmp_path / "unet").mkdir()
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    save_file(tensors, tmp_path / "unet" / "pytorch_lora_weights.safetensors")
    return tmp_path / "unet"
