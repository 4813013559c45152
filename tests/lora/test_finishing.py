"""The record of a run tells data and model from others."""

import json
from pathlib import Path
from types import SimpleNamespace

from diffusers import DiffusionPipeline

import dattn
from dattn.apps.lora.cache import Example
from dattn.apps.lora.finishing import _data, _model
from dattn.apps.record import fingerprint
from tests.pipelines.tiny import MODELS

from .runs import train


def example(content="c", caption="a fox", size=(1, 32, 32), place="here"):
    return Example(size, Path(place), Path(place), caption, content)


def test_data_is_known_by_what_is_in_it():
    one = _data([example(), example("d")])
    assert one["examples"] == 2 and one == _data([example(place="there"), example("d")])
    others = [[example()], [example("d"), example()], [example("x"), example("d")]]
    others += [[example(caption="an owl"), example("d")], [example(size=(1, 64, 64)), example("d")]]
    assert one["sha256"] not in {_data(other)["sha256"] for other in others}


def test_models_are_known_by_weights_or_commit(tmp_path, monkeypatch):
    name = f"{MODELS}/shapes-flux"
    folder = _model(SimpleNamespace(model=name, revision=None))
    assert folder == {"name": "shapes-flux", "weights": fingerprint(Path(name)), "commit": None}
    asked = []
    place = str(tmp_path / "snapshots" / "0123abc" / "model_index.json")
    found = lambda *args, **more: asked.append((args, more)) or place
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", found)
    hub = _model(SimpleNamespace(model="me/mine", revision="v2"))
    assert hub == {"name": "me/mine", "weights": None, "commit": "0123abc"}
    assert asked == [(("me/mine", "model_index.json"), {"revision": "v2"})]


def test_a_run_records_both(pictures, tmp_path):
    assert train(pictures, tmp_path, 1, "--validation_steps", "0") == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["data"]["examples"] == 5 and len(run["data"]["sha256"]) == 64
    assert run["model"]["weights"] == fingerprint(Path(f"{MODELS}/shapes-flux"))
    assert run["versions"]["diffusers"] and run["versions"]["torch"]


def test_a_run_says_how_to_use_it(pictures, tmp_path, capsys):
    """What it prints is Python: the recipe, dense before the steps that were trained, and the LoRA in these."""
    words = ["--attention", "Neighborhood(3)", "--train_window", "0.75", "1"]
    assert train(pictures, tmp_path, 1, "--validation_steps", "0", *words) == 0
    said = capsys.readouterr().out.split("use it with ")[1].strip()
    pipe = DiffusionPipeline.from_pretrained(f"{MODELS}/shapes-flux")
    load, apply = said.split(" and ")
    there = {"pipe": pipe, "dattn": dattn}
    eval(load, there)
    handle = eval(apply, there)
    assert "Neighborhood" in str(handle.settings.attention) and handle.settings.dense_steps == 0.75
    assert [control.window for control in handle.controls] == [(0.75, 1.0)]
