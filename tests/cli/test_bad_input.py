"""Bad input: exit code 2, one clear line on stderr, nothing written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dattn.apps import loading

GENERATE = ("generate", "--model", "{model}", "--output", "{out}")
EVALUATE = ("evaluate", "--model", "{model}", "--output", "{out}", "--captions", "1")
PLOT = ("plot", "-o", "{out}/mask.png")

CASES = {
    "unknown command": (("explode",), "explode"),
    "unknown option": ((*GENERATE, "--wings"), "--wings"),
    "unknown pattern": ((*GENERATE, "--pattern", "Spiral"), "Spiral"),
    "unknown pattern called": ((*GENERATE, "--pattern", "Spiral(3)"), "Spiral"),
    "unknown field": ((*GENERATE, "--pattern", "Radial(speed=3)"), "speed"),
    "bad literal": ((*GENERATE, "--pattern", "Radial(decay=)"), "decay"),
    "code, not a literal": ((*GENERATE, "--pattern", "Radial(decay=__import__('os').getpid())"), "Radial"),
    "window larger than the clip": ((*GENERATE, "--pattern", "Neighborhood(window=99)"), "does not fit the grid"),
    "value out of range": ((*GENERATE, "--pattern", "Radial(decay=-1)"), "decay"),
    "missing recipe": ((*GENERATE, "--pattern", "{out}/none.json"), "none.json"),
    "unreadable recipe": ((*GENERATE, "--pattern", "{files}/broken.json"), "broken.json"),
    "a JSON that is no recipe": ((*GENERATE, "--pattern", "{files}/list.json"), "list.json"),
    "no such folder": (("generate", "--model", "./no/such/folder", "--output", "{out}"), "no such folder"),
    "a folder that is no model": (
        ("generate", "--model", "{files}", "--output", "{out}"),
        "model_index.json",
    ),
    "a broken model": (("generate", "--model", "{files}/broken-model", "--output", "{out}"), "broken-model"),
    "unsupported pipeline": (
        ("generate", "--model", "{files}/unsupported", "--prompt", "x", "--output", "{out}"),
        "DDPMPipeline",
    ),
    "no prompt": (("generate", "--model", "{plain}", "--output", "{out}"), "--prompt"),
    "negative steps": ((*GENERATE, "--steps", "-4"), "-4"),
    "no steps": ((*GENERATE, "--steps", "0"), "at least 1"),
    "negative dense steps": ((*GENERATE, "--dense-steps", "-1"), "-1"),
    "a share above one": ((*GENERATE, "--dense-steps", "1.5"), "1.5"),
    "not a number": ((*GENERATE, "--frames", "many"), "many"),
    "a size that the pipeline refuses": ((*GENERATE, "--height", "30"), "30"),
    "unknown device": ((*GENERATE, "--device", "toaster"), "toaster"),
    "unknown backend": ((*GENERATE, "--backend", "abacus"), "abacus"),
    "a backend that cannot run here": ((*GENERATE, "--backend", "triton", "--device", "cpu"), "NVIDIA GPU"),
    "unwritable output": (
        ("generate", "--model", "{model}", "--output", "{files}/broken.json/x"),
        "broken.json",
    ),
    "output that is a device": (("generate", "--model", "{model}", "--output", "/proc/dattn"), "/proc"),
    "patterns named twice": (
        ("compare", "--model", "{model}", "--output", "{out}", "--patterns", "radial", "radial"),
        "twice",
    ),
    "compare nothing": (("compare", "--model", "{model}", "--output", "{out}"), "--patterns"),
    "window larger than the grid": (
        (*PLOT, "--pattern", "Neighborhood(window=9)", "--grid", "4x8x8"),
        "9",
    ),
    "not a grid": ((*PLOT, "--pattern", "radial", "--grid", "21x30"), "21x30"),
    "an empty grid": ((*PLOT, "--pattern", "Radial", "--grid", "0x3x3"), "0x3x3"),
    "negative text": ((*PLOT, "--pattern", "Radial", "--grid", "2x3x3", "--text", "-1"), "-1"),
    "a token outside": ((*PLOT, "--pattern", "Radial", "--grid", "2x3x3", "--token", "2,0,0"), "outside"),
    "not a token": ((*PLOT, "--pattern", "Radial", "--grid", "2x3x3", "--token", "2"), "FRAME,ROW,COLUMN"),
    "not a picture": (("plot", "--pattern", "Radial", "--grid", "2x3x3", "-o", "{out}/mask.exe"), ".png"),
    "evaluate more patterns than the budget has": (
        (*EVALUATE, "--patterns", *(f"Radial(decay=0.{i})" for i in range(1, 8))),
        "7 patterns beside stock: the budget of 'final' is 6",
    ),
    "evaluate an unknown pattern": ((*EVALUATE, "--patterns", "Spiral"), "Spiral"),
    "no captions": (("evaluate", "--model", "{model}", "--output", "{out}", "--captions", "0"), "captions 0"),
    "missing captions": (
        ("evaluate", "--model", "{model}", "--output", "{out}", "--captions", "{out}/none.txt"),
        "none.txt",
    ),
    "too many cells": ((*EVALUATE, "--lengths", *map(str, range(1, 50))), "cells"),
    "evaluate without captions": (("evaluate", "--model", "{plain}", "--output", "{out}"), "--captions"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp("files")
    (folder / "broken.json").write_text("{")
    (folder / "list.json").write_text("[]")
    (folder / "broken-model").mkdir()
    (folder / "broken-model" / "model_index.json").write_text(json.dumps({"_class_name": "NoSuchPipeline"}))
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "unsupported")
    return folder


@pytest.mark.parametrize("words, named", CASES.values(), ids=CASES.keys())
def test_bad_input_is_one_line_and_writes_nothing(
    words, named, dattn_command, shapes_folder, plain_folder, files, tmp_path
):
    before = sorted(files.rglob("*"))
    places = {"model": shapes_folder, "plain": plain_folder, "files": files, "out": tmp_path / "out"}
    outcome = dattn_command(*(word.format(**places) if "{" in word else word for word in words))
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert named in outcome.err
    assert outcome.err.startswith("dattn")
    assert not list(tmp_path.iterdir())
    assert sorted(files.rglob("*")) == before


def test_an_installation_without_models_says_so(dattn_command, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "shipped_folder", lambda: tmp_path / "none")
    outcome = dattn_command("generate", "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "--model" in outcome.err and "carries no models" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_new_process_says_it_in_one_line_too(shapes_folder, tmp_path):
    command = [
        Path(sys.executable).with_name("dattn"),
        "generate",
        "--model",
        shapes_folder,
        "--height",
        "30",
    ]
    done = subprocess.run([*command, "--output", tmp_path / "out"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_the_traceback_is_there_for_who_wants_it(dattn_command):
    with pytest.raises(ValueError, match="Spiral"):
        dattn_command("plot", "--pattern", "Spiral", "--grid", "2x2x2", "--traceback")
