"""What is validated on is never trained on, where there is enough."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dattn.apps.lora.cache import Example, Prepared
from dattn.apps.lora.holdout import hold_out, validated_on
from dattn.apps.lora.loop import VALIDATION, Trainer
from dattn.apps.lora.reading import read_options

from .runs import train


def prepared(contents, size=(1, 32, 32)):
    examples = [Example(size, Path(f"{i}"), Path(), f"caption {i}", content) for i, content in enumerate(contents)]
    return Prepared(examples, {size: f"manner of {size}"}, {size: Path()}, [f"skipped {len(contents)}"])


@pytest.mark.parametrize(
    ("files", "wanted", "held"),
    [
        (9, None, 0),
        (10, None, 1),
        (39, None, 3),
        (500, None, 8),
        (500, 20, 20),
        (50, 0.5, 25),
        (20, 0, 0),
        (1, None, 0),
    ],
)
def test_how_many(files, wanted, held):
    data = prepared([f"c{i}" for i in range(files)])
    found = hold_out(data, wanted, 0)
    assert (len(found.examples), len(found.held_out)) == (files - held, held)
    assert sorted(found.examples + list(found.held_out)) == sorted(data.examples)
    assert list(found.validated) == (list(found.held_out) or data.examples[:8])
    assert found.examples == [one for one in data.examples if one in found.examples], "in the order of the data"


def test_the_seed_chooses():
    data = prepared([f"c{i}" for i in range(100)])
    assert hold_out(data, None, 0) == hold_out(data, None, 0) != hold_out(data, None, 1)


def test_the_same_file_twice_is_on_one_side():
    data = prepared([f"c{i % 12}" for i in range(36)])
    found = hold_out(data, 4, 0)
    assert len(found.held_out) == 12
    assert not {one.content for one in found.held_out} & {one.content for one in found.examples}


def test_nothing_left():
    for wanted in (2, 3):
        with pytest.raises(ValueError, match=f"--validation_split {wanted}: of 2 files none is left"):
            hold_out(prepared("ab"), wanted, 0)
    with pytest.raises(ValueError, match="--validation_data: it has all files"):
        validated_on(prepared("ab"), prepared("abc"))


def test_other_data():
    found = validated_on(prepared("abc"), prepared("xcy", (1, 64, 64)))
    assert [one.content for one in found.examples] == ["a", "b"]
    assert [one.content for one in found.held_out] == ["x", "c", "y"]
    assert set(found.manners) == {(1, 32, 32), (1, 64, 64)} and len(found.skipped) == 2


def test_both_ways_at_once():
    with pytest.raises(ValueError, match="--validation_split 3: give one"):
        read_options(["--model", "m", "--data", "d", "--validation_data", "v", "--validation-split", "3"])


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twelve")
    for i in range(12):
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"shade {i}")
    return folder


def test_a_run_never_trains_on_it(twelve, tmp_path, monkeypatch, capsys):
    batch, seen = Trainer._batch, {True: set(), False: set()}

    def noting(self, examples, number, levels=None, indices=()):
        seen[number >= VALIDATION].update(one.caption for one in examples)
        return batch(self, examples, number, levels, indices)

    monkeypatch.setattr(Trainer, "_batch", noting)
    options = ["--train_batch_size", "4", "--validation_steps", "6"]
    assert train(twelve, tmp_path / "out", 6, *options) == 0
    assert "validation on 1 examples that are held out" in capsys.readouterr().out
    assert len(seen[True]) == 1 and len(seen[False]) == 11 and not seen[True] & seen[False]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["data"]["examples"], record["held_out"]["examples"]) == (11, 1)
    more = ["--resume_from_checkpoint", "latest", "--validation_split"]
    assert train(twelve, tmp_path / "out", 7, *options, *more, "2") == 2
    assert "held_out was 1, now it is 2" in capsys.readouterr().err
    assert train(twelve, tmp_path / "out", 7, *options, *more, "0") == 2
    assert "held_out was 1, now it is None" in capsys.readouterr().err


def test_few_examples_are_validated_on_and_said(pictures, twelve, tmp_path, capsys):
    assert train(pictures, tmp_path / "few", 1) == 0
    assert "validation on 5 training examples" in capsys.readouterr().out
    shutil.copytree(twelve, tmp_path / "other")
    assert train(pictures, tmp_path / "out", 1, "--validation_data", str(tmp_path / "other")) == 0
    assert "validation on 12 examples that are held out" in capsys.readouterr().out
    assert train(pictures, tmp_path / "none", 1, "--validation_data", str(tmp_path / "nowhere")) == 2
    assert "no such folder" in capsys.readouterr().err


def test_losses_are_of_what_is_held_out(twelve, tmp_path):
    """The same model, other data held out: another loss; and the same seed, the same loss."""
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(twelve, tmp_path / name, 1, "--seed", str(seed)) == 0
        losses.append(json.loads((tmp_path / name / "training.jsonl").read_text().splitlines()[0])["validation_loss"])
    assert losses[0] == losses[1] != losses[2] and torch.isfinite(torch.tensor(losses)).all()
