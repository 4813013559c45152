import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dattn.apps import cli, doctor, gallery, loading
from dattn.apps.arguments import token_index
from dattn.apps.plot import PANELS, chosen_frames
from dattn.attention import attend
from dattn.grid import TokenGrid

WRITTEN = [name for name in cli.COMMANDS if importlib.util.find_spec(f"dattn.apps.{cli.COMMANDS[name][0]}")]


def test_help_names_every_command(dattn_command):
    outcome = dattn_command("--help")
    assert outcome.code == 0
    assert all(re.search(rf"^  {name} ", outcome.out, re.M) for name in cli.COMMANDS)


def test_help_is_quick():
    program = (
        "import sys; from dattn.apps.cli import main; main(['--help']); "
        "print('HEAVY', sorted({'diffusers', 'transformers', 'matplotlib', 'imageio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("name", WRITTEN)
def test_every_command_has_help_with_examples(name, dattn_command):
    outcome = dattn_command(name, "--help")
    assert outcome.code == 0
    assert f"dattn {name}" in outcome.out.split("examples:", 1)[1]


def test_version(dattn_command):
    assert re.fullmatch(r"dattn \d+\.\d+.*\n", dattn_command("--version").out)


def test_patterns_lists_fields_and_defaults(dattn_command):
    from dattn.registry import SPECS

    outcome = dattn_command("patterns")
    assert outcome.code == 0
    assert all(f"{kind.__name__}(" in outcome.out for kind in SPECS.values())
    assert "decay=1.0" in outcome.out and "block_size=128" in outcome.out


def test_models_lists_what_is_supported(dattn_command, shapes_folder, monkeypatch):
    monkeypatch.setattr(loading, "shipped_folder", lambda: shapes_folder.parent)
    outcome = dattn_command("models")
    assert outcome.code == 0
    assert "Wan" in outcome.out and "CogVideoX" in outcome.out
    assert "shapes-tiny" in outcome.out


def test_doctor_finds_this_machine_healthy(dattn_command):
    outcome = dattn_command("doctor")
    assert outcome.code == 0, outcome.out
    assert "MISSING" not in outcome.out
    for word in ("torch", "diffusers", "ffmpeg", "backend"):
        assert word in outcome.out


def test_doctor_says_what_is_missing(dattn_command, monkeypatch):
    monkeypatch.setattr(doctor, "versions", lambda: {"python": "3.11.0", "torch": "2.4.0", "diffusers": "0.42.1"})
    outcome = dattn_command("doctor")
    assert outcome.code == 1
    lines = [line for line in outcome.out.splitlines() if line.startswith("MISSING")]
    assert [line.split()[1] for line in lines] == ["torch", "transformers"]
    assert "2.11" in lines[0]


def test_plot_writes_a_picture(dattn_command, tmp_path):
    path = tmp_path / "new" / "mask.png"
    outcome = dattn_command("plot", "--pattern", "Radial(block_size=16)", "--grid", "6x8x8", "--text", "5", "-o", path)
    assert outcome.code == 0, outcome.err
    assert "density 0." in outcome.out
    assert np.asarray(Image.open(path)).std() > 10


def test_plot_marks_what_the_token_sees(dattn_command, tmp_path):
    pictures = []
    for token in ("0,0,0", "5,7,7"):
        path = tmp_path / f"{token}.png"
        words = (
            "plot",
            "--pattern",
            "Neighborhood(window=3)",
            "--grid",
            "6x8x8",
            "--token",
            token,
            "-o",
            path,
        )
        assert dattn_command(*words).code == 0
        pictures.append(np.asarray(Image.open(path)))
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


def test_places_of_tokens():
    grid = TokenGrid(3, 4, 5, text=7, text_first=True)
    assert token_index((0, 0, 0), grid) == 7
    assert token_index((2, 3, 4), grid) == grid.tokens - 1
    with pytest.raises(ValueError, match="outside"):
        token_index((0, 4, 0), grid)


@pytest.mark.parametrize("frames, always", [(1, 0), (5, 3), (81, 40), (81, 0), (1000, 999)])
def test_long_clips_show_some_frames_and_the_tokens_own(frames, always):
    chosen = chosen_frames(frames, always)
    assert always in chosen
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(frames, PANELS)


def test_the_console_script_is_installed():
    done = subprocess.run([Path(sys.executable).with_name("dattn"), "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("dattn ")


def test_the_gallery_shows_every_pattern(dattn_command, tmp_path):
    from dattn import DYNAMIC, OPERATORS, PATTERNS, SETTINGS

    outcome = dattn_command("plot", "--gallery", "-o", tmp_path / "all.png")
    assert outcome.code == 0, outcome.err
    for name in ("all.png", "all-maps.png"):
        picture = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert min(picture.shape) > 500 and picture.std() > 20
    assert {text.split("(")[0] for text in gallery.PATTERNS} == set(PATTERNS)
    without_file = {*DYNAMIC, *OPERATORS, *SETTINGS} - {"LearnedGate"}
    assert {text.split("(")[0] for text in gallery.MAPS} == without_file


MORE_THAN_ONE = {"Reshaped(BlockCausal(2))": 1.04, "Agent(0.8)": 1.075}
"""Growth at the step after a refresh, and the shortcut."""


@pytest.mark.parametrize("text", ["Dense()", *gallery.MAPS])
def test_a_drawn_map_is_what_attention_does_to_any_values(text):
    grid = TokenGrid(*gallery.MAP_GRID)
    drawn = gallery.attention_map(text, grid)
    sums = torch.full((2, grid.tokens), MORE_THAN_ONE.get(text, 1.0))
    torch.testing.assert_close(drawn.sum(-1), sums, atol=1e-5, rtol=0)
    value = torch.randn(1, 2, grid.tokens, grid.tokens, generator=torch.Generator().manual_seed(0))
    spec, state = gallery.spec_of(text, grid).at(0, 2, 0, 2), {}
    attend(*gallery.queries_and_keys(grid, gallery.DRIFT), value, spec, grid, state=state)
    output = attend(*gallery.queries_and_keys(grid), value, spec, grid, state=state)
    torch.testing.assert_close(drawn @ value[0], output[0], atol=2e-5, rtol=1e-4)


def test_maps_say_what_they_are_of():
    grid = TokenGrid(*gallery.MAP_GRID)
    maps = {text: gallery.attention_map(text, grid) for text in ("Dense()", *gallery.MAPS)}
    dense = maps.pop("Dense()")
    assert all((drawn - dense).abs().max() > 0.01 for drawn in maps.values())
    where = {text.split("(")[0]: (gallery.elsewhere(text, grid, drawn[0]) or [None])[0] for text, drawn in maps.items()}
    other = {"PerHead": "next head", "PerLayer": "next layer", "VMoBA": "next layer", "PerStep": "later step"}
    assert {name: at for name, at in where.items() if at} == other
