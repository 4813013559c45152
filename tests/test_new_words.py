"""Stripes drawn and read, and how pictures of new words are judged."""

import json
from itertools import product

import numpy as np
import pytest
from PIL import Image

from dattn.apps.lora.options import parser
from dattn.apps.shapes.captions import COLORS, SHAPES
from dattn.apps.shapes.new_words import METHODS, WORDS, Asked, judged, questions, rows, the_picture, write_folder
from dattn.apps.shapes.pictures import draw_pictures, is_whole, sample_picture
from dattn.apps.shapes.stripes import DIRECTIONS, Striped, draw, read


@pytest.mark.parametrize(("shape", "direction"), product(SHAPES, DIRECTIONS))
def test_what_is_drawn_is_read(shape, direction):
    for number, color in enumerate(COLORS):
        at = 0.3 + 0.07 * number, 0.6 - 0.05 * number
        seen = read(draw({at: Striped(color, shape, direction)}, 11 / 64), color)
        assert (seen.shape, seen.direction) == (shape, direction)
        assert seen.center == pytest.approx(at, abs=0.04)


def test_plain_objects_have_no_stripes():
    scenes = [scene for scene in (sample_picture(seed, 1) for seed in range(40)) if is_whole(scene)]
    assert len(scenes) > 10
    for scene in scenes:
        seen = read(draw_pictures([scene])[0], scene.objects[0].color)
        assert (seen.shape, seen.direction) == (scene.objects[0].shape, None)


def test_nothing_is_seen_of_a_colour_that_is_not_there():
    assert read(np.zeros((64, 64, 3)), "red") is None
    picture, _ = the_picture()
    assert read(picture, "green") is None and read(picture / 255, "red") == read(picture, "red")


def test_the_picture_is_what_it_is_to_teach():
    picture, caption = the_picture()
    assert caption == "a <new1> circle left of a <new2> square"
    asked = Asked("together", (("<new1>", "circle"), ("<new2>", "square")), "left of")
    assert str(asked) == caption and asked.untrained() == "a red circle left of a blue square"
    assert judged(picture, asked) == {"stripes": 1, "shapes": 1, "all": 1, "places": 1}
    turned = judged(picture, Asked("together", asked.objects, "right of"))
    assert turned == {"stripes": 1, "shapes": 1, "all": 1, "places": 0}


def test_stripes_on_the_wrong_object_are_wrong():
    swapped = draw(
        {(0.3, 0.5): Striped("red", "circle", "lying"), (0.7, 0.5): Striped("green", "triangle", "upright")}, 0.17
    )
    told = judged(swapped, Asked("beside green", (("<new1>", "circle"), ("green", "triangle")), "left of"))
    assert told == {"stripes": 0, "shapes": 1, "all": 0, "places": 1}
    right = draw({(0.3, 0.5): Striped("red", "circle", "upright")}, 0.17)
    told = judged(right, Asked("beside green", (("<new1>", "circle"), ("green", "triangle")), "left of"))
    assert told == {"stripes": 0.5, "shapes": 0.5, "all": 0, "places": 0}


def test_questions_are_of_five_kinds():
    asked = questions()
    kinds = [one.kind for one in asked]
    assert sorted({kind: kinds.count(kind) for kind in kinds}.items()) == [
        (kind, 8) for kind in ("alone", "alone, other shape", "beside green", "together", "together, other shapes")
    ]
    own = {word: shape for word, (_, shape, _) in WORDS.items()}
    for one in asked:
        new = [(word, shape) for word, shape in one.objects if word in WORDS]
        assert all((own[word] == shape) != ("other" in one.kind) for word, shape in new)
        assert len(new) == (2 if "together" in one.kind else 1)


def test_rows_are_means_by_kind():
    picture, _ = the_picture()
    asked = [
        Asked("a", (("<new1>", "circle"),)),
        Asked("b", (("<new2>", "circle"),)),
        Asked("a", (("<new1>", "square"),)),
    ]
    assert rows("m", [picture] * 3, asked) == [
        {"method": "m", "asked": "a", "pictures": 2, "stripes": 1, "shapes": 0.5, "all": 0.5},
        {"method": "m", "asked": "b", "pictures": 1, "stripes": 1, "shapes": 0, "all": 0},
    ]


def test_the_folder_and_the_options_are_what_training_takes(tmp_path):
    write_folder(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert sum("<new1>" in line["text"] for line in lines) == len(lines) / 2
    assert all(Image.open(tmp_path / line["file_name"]).size == (64, 64) for line in lines)
    for options in METHODS.values():
        parser().parse_args(options)
