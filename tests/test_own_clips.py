"""Clips that a model makes itself: only what is right is kept, and what is there already counts."""

import json

import numpy as np
import pytest

from dattn.apps.media import read_video
from dattn.apps.shapes import judge, own_clips, sample_scene
from dattn.apps.shapes.own_clips import OWN, PATIENCE, write_own_clips

FRAMES = 17


@pytest.fixture
def asked(monkeypatch):
    """The seeds that clips were made from; every second clip is right, the others are empty."""
    seeds = []

    def generate(pipe, captions, frames, steps, guidance, seed):
        seeds.append(seed)
        clip = sample_scene(seed, 1).render(frames) / 255
        return (clip if seed % 2 == 0 else np.zeros_like(clip))[None]

    monkeypatch.setattr(own_clips, "generate", generate)
    return seeds


def test_only_what_is_right_is_kept(asked, tmp_path):
    write_own_clips(None, tmp_path, 2, FRAMES)
    assert asked == [OWN, OWN + 1, OWN + 2]
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["00000.mp4", "00002.mp4"]
    assert all(judge(read_video(tmp_path / line["file_name"]), line["text"]).ok for line in lines)
    write_own_clips(None, tmp_path, 3, FRAMES)
    assert asked[3:] == [OWN + 3, OWN + 4]


def test_a_model_that_makes_none_ends_it(monkeypatch, tmp_path):
    monkeypatch.setattr(own_clips, "generate", lambda *args: np.zeros((1, FRAMES, 64, 64, 3)))
    with pytest.raises(RuntimeError, match=f"{PATIENCE} clips of {FRAMES} frames in a row are wrong"):
        write_own_clips(None, tmp_path, 1, FRAMES)
