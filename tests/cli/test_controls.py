"""``dattn controls`` judges edits of the demo models, before and after."""

import json
from pathlib import Path

import numpy as np
import pytest

from dattn.apps.shapes.edits import centers, inside, kept_place, largest_change, present, sharpness, speed, switched_at
from dattn.apps.shapes.world import Object, Scene

MODELS = Path(__file__).parents[2] / "assets" / "models"


def scene(color="red", x=0.3, y=0.4, motion="moving right"):
    return Scene((Object(color, "circle", motion, x, y, 0.15, 0.02),)).render(9, 64) / 255


def test_places_are_compared_on_the_torus():
    assert np.allclose(centers(scene(), "red")[0], (0.3, 0.4), atol=0.02)
    assert kept_place(scene(), "red", scene("blue"), "blue")
    assert kept_place(scene(x=0.98), "red", scene("blue", x=0.01), "blue")
    assert not kept_place(scene(), "red", scene("blue", y=0.55), "blue")
    assert not kept_place(scene(), "red", scene("blue", motion="moving left"), "blue")


def test_what_is_missing_has_kept_no_place():
    empty = Scene(()).render(9, 64) / 255
    assert present(scene(), "red") and not present(scene(), "green") and not present(empty, "red")
    assert not kept_place(empty, "red", empty, "blue") and not kept_place(scene(), "red", empty, "red")
    half = np.concatenate([scene()[:4], empty[:5]])
    assert not present(half, "red")


def test_a_box_holds_what_is_in_it_all_the_time():
    assert inside(scene(motion="moving down"), "red", (0, 0, 0.5, 1))
    assert not inside(scene(), "red", (0, 0, 0.35, 1)) and not inside(scene(), "blue", (0, 0, 1, 1))


def test_sharpness_and_changes():
    assert sharpness(scene()) > sharpness(scene() * 0.5) > sharpness(np.zeros((5, 8, 8, 3))) == 0
    cut = np.concatenate([scene(), scene(y=0.8)])
    assert (
        largest_change(cut)
        > 3 * largest_change(scene())
        > 0
        == largest_change(scene(motion="standing still")[:1].repeat(5, 0))
    )


def test_speed_and_the_frame_of_a_switch():
    moving = scene()
    assert speed(moving, "red") == pytest.approx(0.02, abs=0.004)
    assert speed(scene(motion="standing still"), "red") < 0.002
    x, y = centers(moving, "red")[-1]
    turned = np.concatenate([moving, scene(x=x, y=y, motion="moving down")[1:]])
    assert switched_at(turned, "red", (1, 0), (0, 1)) == pytest.approx(0.5, abs=0.1)
    assert switched_at(moving, "red", (1, 0), (0, 1)) == 1 and switched_at(moving, "red", (-1, 0), (1, 0)) == 0


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("shapes-sd", ["Regions", "Perturb", "real picture, colour", "real picture, shape"]),
        ("shapes-wan", ["two prompts", "Emphasize"]),
    ],
)
def test_every_kind_of_case_runs(dattn_command, tmp_path, model, names):
    words = ["--model", MODELS / model, "--cases", "1", "--steps", "2", "--output", tmp_path]
    outcome = dattn_command(
        "controls", "--only", *names, *words, *(["--frames", "17"] if model == "shapes-wan" else [])
    )
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / f"{model}-stock.json").read_text())["rows"]
    assert {row["control"] for row in rows} == set(names) and all(row["after"] >= 0 for row in rows)


def test_a_study_writes_rates_and_a_sheet(dattn_command, tmp_path):
    words = ["--model", MODELS / "shapes-flux", "--cases", "1", "--steps", "2", "--output", tmp_path]
    outcome = dattn_command("controls", "--only", "Replace, colour", "Reweight x 0", *words)
    assert outcome.code == 0, outcome.err
    record = json.loads((tmp_path / "shapes-flux-stock.json").read_text())
    assert [row["wanted"] for row in record["rows"]] == ["as edited", "place kept", "both", "no such colour"]
    assert all(0 <= row["after"] <= 1 and row["cases"] == 1 for row in record["rows"])
    assert record["command"].startswith("dattn controls") and record["versions"]["torch"]
    assert (tmp_path / "shapes-flux-stock-replace-colour.png").stat().st_size > 1000
    assert "Replace, colour" in outcome.out
    assert dattn_command("controls", "--only", "Reweight x -1", *words).code == 0
    later = json.loads((tmp_path / "shapes-flux-stock.json").read_text())
    assert later["rows"][:4] == record["rows"] and later["rows"][4]["control"] == "Reweight x -1"
    assert all(row["plain s"] > 0 and row["control s"] > 0 for row in later["rows"])


def test_rows_of_other_weights_are_dropped_and_dense_steps_are_named(dattn_command, tmp_path):
    words = ["--model", MODELS / "shapes-flux", "--cases", "1", "--steps", "2", "--output", tmp_path]
    words += ["--pattern", "Neighborhood(13)", "--dense-steps", "0.5"]
    path = tmp_path / "shapes-flux-neighborhood-13-dense-steps-0-5.json"
    path.write_text(json.dumps({"weights": "of another model", "rows": [{"control": "AStar"}]}))
    assert dattn_command("controls", "--only", "Reweight x 0", *words).code == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["under"] == "Neighborhood(13), dense steps 0.5"


def test_another_guidance_is_named_and_used(dattn_command, tmp_path):
    words = ["--model", MODELS / "shapes-sd", "--only", "Perturb", "--cases", "1", "--steps", "2", "--output", tmp_path]
    found = []
    for name, more in (("shapes-sd-stock", []), ("shapes-sd-stock-guidance-1", ["--guidance", "1"])):
        assert dattn_command("controls", *words, *more).code == 0
        found.append(json.loads((tmp_path / f"{name}.json").read_text())["rows"])
    assert [rows[0]["under"] for rows in found] == ["stock", "stock, guidance 1"]
    assert found[0][1]["after"] != found[1][1]["after"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "Replace"], "choose from"),
        (["--only", "real picture, shape"], "on shapes-wan choose from"),
        (["--pattern", "Radal()"], "Radal"),
        (["--cases", "0"], "at least 1"),
    ],
)
def test_wrong_words(dattn_command, words, message):
    outcome = dattn_command("controls", *words)
    assert outcome.code == 2 and message in outcome.err
