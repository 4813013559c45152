"""Samples of a run's moments are there again where it goes on, if they are of the same."""

import numpy as np
import pytest

from dattn.apps.lora.moments import MOST, Moments
from dattn.apps.sheet import excerpt, sheet


def clip(level):
    return {"a fox": np.full((2, 4, 6, 3), level, np.uint8)}


def filled(folder, steps):
    found = Moments(folder, ["a fox", 0], 0)
    for step in range(steps):
        found.add(f"step {step}", step, clip(step))
    return found


def test_frames_of_any_layout_in_memory(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 6), np.uint8).transpose(1, 2, 3, 0)
    Moments(tmp_path, ["a fox"], 0).add("before", 0, {"a fox": frames})
    ((_, again),) = Moments(tmp_path, ["a fox"], 1).shown
    assert np.array_equal(again["a fox"], frames)


def test_they_come_back_up_to_a_step(tmp_path):
    filled(tmp_path, 5)
    again = Moments(tmp_path, ["a fox", 0], 3)
    assert [when for when, _ in again.shown] == ["step 0", "step 1", "step 2", "step 3"]
    assert all((clips["a fox"] == level).all() for level, (_, clips) in enumerate(again.shown))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{i}.safetensors" for i in range(4)]


@pytest.mark.parametrize(("made_of", "step"), [(["a fox", 1], 3), (["an owl", 0], 3), (["a fox", 0], 0)])
def test_those_of_another_run_are_dropped(tmp_path, made_of, step):
    filled(tmp_path, 5)
    assert Moments(tmp_path, made_of, step).shown == [] and not list(tmp_path.iterdir())


def test_the_first_and_the_last_are_kept(tmp_path):
    found = filled(tmp_path, MOST + 4)
    found.add("after", None, clip(99))
    kept = ["step 0", *(f"step {i}" for i in range(5, MOST + 4)), "after"]
    assert [when for when, _ in found.shown] == kept
    assert [when for when, _ in Moments(tmp_path, ["a fox", 0], 50).shown] == kept[:-1]


@pytest.mark.parametrize("width", [48, 96, 200])
def test_a_sheet_of_excerpts_is_the_sheet(width):
    clips = {
        name: np.random.default_rng(i).integers(0, 256, (17, 40, width, 3), np.uint8) for i, name in enumerate("ab")
    }
    parts = {name: excerpt(one, cell=96) for name, one in clips.items()}
    frames = {name: part for name, (part, _) in parts.items()}
    assert all(len(part) == 9 and part.shape[2] <= 96 for part in frames.values())
    whole, made = sheet(clips, "title", cell=96), sheet(frames, "title", cell=96, numbers=parts["a"][1])
    assert whole.tobytes() == made.tobytes()
