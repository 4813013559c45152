import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from dattn.apps import study
from dattn.apps.cells import Cell, Clip, Store, summary
from dattn.apps.evaluate import all_captions, picture_captions
from dattn.apps.loading import shipped_folder
from dattn.apps.shapes import parse_caption
from dattn.apps.shapes.captions import COLORS, SHAPES
from dattn.recipe import Recipe
from dattn.registry import pattern_from_string

PATTERN = "Radial(block_size=16)"
LOCAL = "Neighborhood((1, 2, None))"


@pytest.fixture
def evaluate(dattn_command, shapes_folder, tmp_path):
    def call(*words):
        return dattn_command(
            "evaluate",
            "--model",
            shapes_folder,
            "--output",
            tmp_path,
            "--patterns",
            PATTERN,
            "--steps",
            "1",
            *words,
        )

    return call


@pytest.fixture
def made(monkeypatch):
    """What was really generated: (pattern, caption, seed, frames)."""
    real, calls = study.run, []

    def spy(loaded, request, attention, options=None):
        calls.append((attention, request.prompt, request.seed, request.frames))
        return real(loaded, request, attention, options)

    monkeypatch.setattr(study, "run", spy)
    return calls


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_table_of_all_cells(evaluate, made, tmp_path):
    outcome = evaluate("--lengths", "1", "2", "--captions", "2")
    assert outcome.code == 0, outcome.err
    assert len(made) == 2 * 2 * 2
    assert {frames for *_, frames in made} == {5, 9}
    rows = results(tmp_path)["rows"]
    assert [(r["pattern"], r["length"], r["clips"]) for r in rows] == [
        ("stock", 1, 2),
        (PATTERN, 1, 2),
        ("stock", 2, 2),
        (PATTERN, 2, 2),
    ]
    assert rows[2]["psnr"] is None and rows[3]["psnr"] > 0
    assert rows[3]["density"] < 1 and rows[3]["accuracy"] == 0
    assert results(tmp_path)["versions"]["torch"] and results(tmp_path)["command"]
    assert Image.open(tmp_path / "results.png").width > 400
    assert "judged right" in outcome.out


def test_what_is_done_is_not_made_again(evaluate, made, tmp_path):
    evaluate("--lengths", "1", "--captions", "2")
    first = results(tmp_path)["rows"]
    made.clear()
    evaluate("--lengths", "1", "--captions", "2")
    assert made == []
    assert results(tmp_path)["rows"] == first


def test_what_layers_say_of_patterns_is_asked_once(evaluate, tmp_path, monkeypatch):
    real, asked = study.probe, []

    def spy(loaded, specs, requests, every):
        asked.append((list(specs), requests[0].frames))
        return real(loaded, specs, requests, every)

    monkeypatch.setattr(study, "probe", spy)
    words = "--captions", "1", "--probe", "--lengths"
    assert evaluate(*words, "1").code == 0
    assert asked == [([PATTERN], 5)]
    outcome = evaluate(*words, "1", "2")
    assert outcome.code == 0 and " kept " in outcome.out
    assert asked == [([PATTERN], 5), ([PATTERN], 9)]
    stock, row = results(tmp_path)["rows"][2:]
    assert 0 < row["kept"] < 1 and row["call"] > 0 and row["choosing"] is None
    assert stock["kept"] is None and stock["call"] is None


def test_it_goes_on_after_an_interruption(evaluate, made, tmp_path, monkeypatch):
    add = Store.add

    def interrupted(self, cell, clip, result):
        if len(made) == 3:
            raise KeyboardInterrupt
        add(self, cell, clip, result)

    monkeypatch.setattr(Store, "add", interrupted)
    assert evaluate("--lengths", "1", "--captions", "2").code == 130
    assert len(made) == 3
    monkeypatch.setattr(Store, "add", add)
    made.clear()
    assert evaluate("--lengths", "1", "--captions", "2").code == 0
    assert [attention for attention, *_ in made] == ["stock", PATTERN]
    assert [r["clips"] for r in results(tmp_path)["rows"]] == [2, 2]


def test_a_line_cut_short_is_made_again(evaluate, made, tmp_path):
    evaluate("--lengths", "1", "--captions", "1")
    path = tmp_path / "cells" / Cell(PATTERN, 1).file
    path.write_text(path.read_text()[:40])
    made.clear()
    assert evaluate("--lengths", "1", "--captions", "1").code == 0
    assert [attention for attention, *_ in made] == [PATTERN]
    assert results(tmp_path)["rows"][1]["clips"] == 1


def test_more_captions_and_seeds_add_to_what_is_there(evaluate, made, tmp_path):
    evaluate("--lengths", "1", "--captions", "1")
    made.clear()
    evaluate("--lengths", "1", "--captions", "1", "--seeds", "0", "5")
    assert [(attention, seed) for attention, _, seed, _ in made] == [("stock", 5), (PATTERN, 5)]
    evaluate("--lengths", "1", "--captions", "1")
    assert results(tmp_path)["rows"][0]["clips"] == 1, "only what was asked for counts"


def test_other_settings_need_another_place(evaluate, tmp_path):
    evaluate("--lengths", "1", "--captions", "1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = evaluate("--lengths", "1", "--captions", "1", "--guidance", "7")
    assert outcome.code == 2
    assert "guidance" in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_rows_with_a_lora_of_their_own(evaluate, made, shapes_lora, tmp_path):
    place = tmp_path / "mine"
    shutil.copytree(shapes_lora[0].parent, place)
    one = "--lengths", "1", "--captions", "1", "--patterns", LOCAL
    names = [LOCAL, f"stock + {place}", f"{LOCAL} + {place}", f"{LOCAL} + {place} from 0.9"]
    assert evaluate(*one, *names[1:]).code == 0
    rows = {row["pattern"]: row for row in results(tmp_path)["rows"]}
    assert list(rows) == ["stock", *names]
    assert rows[names[1]]["psnr"] is not None, "compared with stock attention and no LoRA"
    assert len({row["psnr"] for row in rows.values()}) == 4
    assert rows[names[3]]["psnr"] == rows[LOCAL]["psnr"], "of one step, it acts in none"
    assert rows[names[2]]["density"] == rows[LOCAL]["density"] < 1
    made.clear()
    tensors = load_file(place / shapes_lora[0].name)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, place / shapes_lora[0].name)
    assert evaluate(*one, *names[1:]).code == 0
    assert [attention for attention, *_ in made] == names[1:], "other weights, other clips"


def test_another_recipe_in_the_same_file_is_another_row(evaluate, made, tmp_path):
    place = tmp_path / "mine.json"
    for attention in (PATTERN, "SparseFrames(1, 2)"):
        Recipe("WanTransformer3DModel", None, pattern_from_string(attention)).save(place)
        made.clear()
        evaluate("--lengths", "1", "--captions", "1", "--patterns", str(place))
        assert str(place) in [attention for attention, *_ in made]


def test_a_lora_of_a_row_that_cannot_be(evaluate, shapes_lora, tmp_path):
    one = "--lengths", "1", "--captions", "1", "--patterns"
    outcome = evaluate(*one, f"{PATTERN} + {tmp_path / 'nowhere'}")
    assert outcome.code == 2 and "nowhere: no such folder" in outcome.err
    outcome = evaluate(*one, f"stock + {shapes_lora[0]}", "--lora", shapes_lora[0])
    assert outcome.code == 2 and "has one already" in outcome.err
    outcome = evaluate(*one, f"{PATTERN} + {shapes_lora[0]} from 2")
    assert outcome.code == 2 and "below 1" in outcome.err
    outcome = evaluate(*one, f"Radail() + {shapes_lora[0]}")
    assert outcome.code == 2 and "Radail" in outcome.err


def test_captions_of_a_file(evaluate, made, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a red circle\n\na blue square\na red circle\n")
    assert evaluate("--lengths", "1", "--captions", path).code == 0
    assert {caption for _, caption, *_ in made} == {"a red circle", "a blue square"}


def test_our_captions_are_readable_distinct_and_even():
    every = all_captions()
    assert len(set(every)) == len(every) == 90
    wanted = [parse_caption(caption).objects[0] for caption in every[:24]]
    for kind in ("color", "shape", "motion"):
        values = [getattr(w, kind) for w in wanted]
        counts = [values.count(v) for v in set(values)]
        assert max(counts) - min(counts) <= 1, (kind, counts)


def test_a_summary_is_of_means_and_medians():
    row = {"density": 0.5, "pooled_share": None, "work": 0.5, "ssim": 0.5, "denoiser_seconds": 1.0}
    rows = [
        row | {"judged": True, "psnr": 10.0, "seconds": 1.0},
        row | {"judged": False, "psnr": None, "seconds": 2.0},
        row | {"judged": None, "psnr": 20.0, "seconds": 30.0},
    ]
    told = summary(Cell(PATTERN, 4), rows)
    assert (told["clips"], told["judged"], told["accuracy"]) == (3, 2, 0.5)
    assert (told["psnr"], told["seconds"], told["pooled_share"]) == (15.0, 2.0, None)


def test_clips_with_like_names_have_files_of_their_own():
    names = {Clip("a red circle", 1).key, Clip("a red, circle", 1).key, Clip("a red circle", 11).key}
    assert len(names) == 3


def test_pictures_are_measured_without_lengths(dattn_command, tmp_path):
    model = shipped_folder() / "shapes-flux"
    words = "evaluate", "--model", model, "--output", tmp_path, "--patterns", "Agent(0.75)", "--steps", "1"
    outcome = dattn_command(*words, "--captions", "2")
    assert outcome.code == 0, outcome.err
    rows = results(tmp_path)["rows"]
    assert [(r["pattern"], r["length"], r["clips"], r["judged"]) for r in rows] == [
        ("stock", 1, 2, 2),
        ("Agent(0.75)", 1, 2, 2),
    ]
    assert rows[1]["work"] == pytest.approx(2 * (16 + 64) / 272)
    assert (tmp_path / "results.png").is_file()
    refused = dattn_command(*words, "--lengths", "4")
    assert refused.code == 2 and "makes pictures, which have no length" in refused.err


def test_our_picture_captions_are_readable_and_even():
    captions = picture_captions()
    assert len(set(captions)) == len(captions) == 36
    parsed = [parse_caption(caption) for caption in captions]
    assert [len(p.objects) for p in parsed] == [1, 2] * 18
    assert {p.relation for p in parsed[1::2]} == {"above", "below", "left of", "right of"}
    assert {(o.color, o.shape) for p in parsed[::2] for o in p.objects} == {
        (color, shape) for color in COLORS for shape in SHAPES
    }
