"""dattn tune and dattn recipes, as typed."""

import json

import pytest
from PIL import Image

SOME = ["--candidates", "Radial(block_size=16)", "Neighborhood((3, None, None))", "--frames", "9", "--steps", "4"]

OWN = "settings.json", "seconds.json"  # written anew


@pytest.fixture(scope="module")
def made(shapes_folder, tmp_path_factory):
    from dattn.apps import cli

    output = tmp_path_factory.mktemp("tuned") / "mine.json"
    code = cli.main(["tune", "--model", str(shapes_folder), "--psnr", "8", "-o", str(output), *SOME])
    return code, output


def test_a_recipe_and_its_page(made, dattn_command):
    code, output = made
    assert code == 0
    held = json.loads(output.read_text())
    assert held["model"] == "WanTransformer3DModel" and held["grid"] == [5, 4, 4, [0, 0]]
    figures = held["figures"]
    assert figures["goal"] == {"kind": "psnr", "value": 8.0} and figures["met"]
    assert figures["command"].startswith("dattn tune") and figures["versions"]["dattn"] and figures["machine"]
    with Image.open(output.with_suffix(".png")) as page:
        assert min(page.size) > 300 and len(page.convert("L").getcolors()) > 20
    shown = dattn_command("recipes", output)
    assert shown.code == 0 and "goal 8.0 dB, reached" in shown.out and "times as fast" in shown.out
    assert figures["tuning_seconds"] > 0 and "Tuning took" in shown.out
    assert output.with_suffix(".txt").read_text() == shown.out
    assert json.loads(dattn_command("recipes", output, "--json").out) == held


def test_another_bound_takes_the_same_measurements(made, shapes_folder, dattn_command):
    _, output = made
    study = output.with_suffix(".study")
    before = {path.name: path.stat().st_mtime_ns for path in study.glob("*.json") if path.name not in OWN}
    again = output.with_name("again.json")
    words = ["--model", shapes_folder, "--speed-up", "900", "--study", study, "-o", again, *SOME]
    with pytest.warns(UserWarning, match="was not reached"):
        outcome = dattn_command("tune", *words)
    assert outcome.code == 1 and "NOT reached" in outcome.out
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in study.glob("*.json")}.items()


def test_it_is_a_pattern_for_other_commands(made, shapes_folder, tmp_path, dattn_command):
    _, output = made
    words = ["--model", shapes_folder, "--frames", "9", "--no-stock", "--pattern", output, "--output", tmp_path]
    assert dattn_command("generate", *words).code == 0


def test_auto_takes_it(made, shapes_folder, tmp_path, monkeypatch, dattn_command):
    _, output = made
    monkeypatch.setenv("DATTN_RECIPES", str(output.parent))
    words = ["--model", shapes_folder, "--frames", "9", "--no-stock", "--pattern", "auto", "--output", tmp_path]
    outcome = dattn_command("generate", *words)
    assert outcome.code == 0 and "recipe mine" in (tmp_path / "report.json").read_text()


def test_recipes_lists_what_is_here(made, monkeypatch, dattn_command):
    _, output = made
    monkeypatch.setenv("DATTN_RECIPES", str(output.parent))
    listed = dattn_command("recipes")
    assert listed.code == 0 and "mine" in listed.out and "5x4x4" in listed.out
    assert "goal 8.0 dB" in dattn_command("recipes", "mine").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "x.txt"], "a recipe ends in .json"),
        (["-o", "x.json", "--quality", "2"], "quality=2.0: give a number above 0 and below 1"),
        (["-o", "x.json", "--quality", "0.9", "--psnr", "30"], "not allowed with"),
        (["-o", "x.json", "--size", "64"], "write height x width"),
        (["-o", "x.json", "--model", "./nowhere"], "no such folder"),
        ([], "required: --output"),
    ],
)
def test_bad_input(words, message, dattn_command):
    outcome = dattn_command("tune", *words)
    assert outcome.code == 2 and message in outcome.err and len(outcome.err.strip().splitlines()) == 1


def test_an_unknown_model_needs_prompts(plain_folder, tmp_path, dattn_command):
    outcome = dattn_command("tune", "--model", plain_folder, "-o", tmp_path / "x.json")
    assert outcome.code == 2 and "no --prompts" in outcome.err


def test_an_unknown_recipe(dattn_command):
    assert "no such file" in dattn_command("recipes", "nothing").err
