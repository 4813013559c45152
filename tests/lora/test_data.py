"""Data: files in any layout become examples of the sizes asked for, once, and what cannot be read is told."""

import json
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dattn.apps.lora.clips import bucket, cut, fitting, read
from dattn.apps.lora.hub import items_of_dataset
from dattn.apps.lora.items import Item, check_there, find_items
from dattn.apps.lora.order import Order
from dattn.apps.media import write_video
from dattn.apps.shapes.folder import main as folder_main
from dattn.apps.shapes.world import sample_scene


def picture(path, side=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), 100, np.uint8)).save(path)


def test_lines_of_metadata(tmp_path):
    lines = [{"file_name": "a.png", "text": "one"}, {"file_name": "in/b.png", "text": "two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert find_items(tmp_path) == [Item(tmp_path / "a.png", "one"), Item(tmp_path / "in/b.png", "two")]


def test_a_file_of_lines(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"video_path": "clips/a.mp4", "caption": "a fox"}')
    assert find_items(path) == [Item(tmp_path / "clips/a.mp4", "a fox")]


def test_lists_side_by_side(tmp_path):
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "videos.txt").write_text("a.mp4\nb.mp4\n")
    assert [item.caption for item in find_items(tmp_path)] == ["one", "two"]
    (tmp_path / "videos.txt").write_text("a.mp4\n")
    with pytest.raises(ValueError, match="2 prompts for 1 lines"):
        find_items(tmp_path)


def test_captions_beside_files(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" a fox \n")
    picture(tmp_path / "sub/b.png")
    (tmp_path / "sub/b.txt").write_text("an owl")
    picture(tmp_path / "without.png")
    assert [(item.path.name, item.caption) for item in find_items(tmp_path)] == [
        ("a.png", "a fox"),
        ("b.png", "an owl"),
    ]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "nothing to learn from"),
        ({"metadata.jsonl": "{"}, "line 1"),
        ({"metadata.jsonl": '{"text": "a fox"}'}, "line 1: write an object"),
        ({"metadata.jsonl": '{"file_name": 3, "text": "a fox"}'}, "line 1: .* both of them text"),
        ({"metadata.jsonl": '{"file_name": "a.png", "text": null}'}, "line 1: .* both of them text"),
        ({"prompts.txt": "a fox"}, "without videos.txt"),
        ({"prompts.txt": "a\nb\n\nc", "videos.txt": "a.mp4\n\nb.mp4\nc.mp4"}, "is empty, and the other's is not"),
    ],
)
def test_data_that_is_none(tmp_path, files, says):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        find_items(tmp_path)


def test_empty_lines_keep_their_places(tmp_path):
    (tmp_path / "prompts.txt").write_text("a\n\nb\n\n")
    (tmp_path / "videos.txt").write_text("a.mp4\n\nb.mp4")
    assert find_items(tmp_path) == [Item(tmp_path / "a.mp4", "a"), Item(tmp_path / "b.mp4", "b")]


def test_files_that_are_not_there():
    with pytest.raises(ValueError, match=r"none of 1 files is there, such as a\.png"):
        check_there([Item(Path("a.png"), "a fox")])


def test_a_picture_that_is_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture(tmp_path / "large.png", 64)
    with pytest.raises(ValueError, match=r"large\.png: cannot be read"):
        read(tmp_path / "large.png")


def test_no_such_place():
    with pytest.raises(ValueError, match="no such folder"):
        find_items(Path("nowhere"))


def test_files_are_read(tmp_path):
    picture(tmp_path / "a.png")
    assert read(tmp_path / "a.png").shape == (1, 16, 16, 3)
    write_video(np.zeros((5, 16, 32, 3), np.uint8), tmp_path / "a.mp4")
    assert read(tmp_path / "a.mp4").shape == (5, 16, 32, 3)
    assert read(tmp_path / "a.mp4", most=3).shape[0] == 3
    clip = np.repeat(np.arange(8, dtype=np.uint8) * 30, 16 * 16 * 3).reshape(8, 16, 16, 3)
    write_video(clip, tmp_path / "b.mp4", fps=16)
    for fps, frames in ((16, range(8)), (8, (0, 2, 4, 6)), (4, (0, 4)), (32, np.arange(16) // 2)):
        seen = read(tmp_path / "b.mp4", fps).mean((1, 2, 3))
        assert np.abs(seen - 30 * np.array(frames)).max() < 12
    for name in ("broken.png", "broken.mp4"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match="cannot be read"):
            read(tmp_path / name)


def test_buckets():
    assert bucket("49x480x832") == (49, 480, 832) and bucket("512x768") == (1, 512, 768)
    for text in ("512", "0x16x16", "axb", "1x2x3x4"):
        with pytest.raises(ArgumentTypeError, match="FRAMESxHEIGHTxWIDTH"):
            bucket(text)


def test_a_clip_goes_where_it_fits():
    buckets = [(1, 64, 64), (17, 32, 64), (17, 64, 32), (33, 64, 64)]
    assert fitting((40, 100, 50), buckets) == (33, 64, 64)
    assert fitting((20, 100, 50), buckets) == (17, 64, 32)
    assert fitting((20, 50, 100), buckets) == (17, 32, 64)
    assert fitting((1, 50, 100), buckets) == (1, 64, 64)
    assert fitting((1, 50, 100), buckets[1:]) is None
    assert fitting((1, 1024, 1024), [(1, 512, 512), (1, 1024, 1024)]) == (1, 1024, 1024)


@given(st.integers(1, 6), st.integers(8, 40), st.integers(8, 40), st.integers(8, 24), st.integers(8, 24))
def test_cuts(frames, height, width, tall, wide):
    clip = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    found = cut(clip, (1, tall, wide))
    assert found.shape == (1, tall, wide, 3) and found.abs().max() <= 1
    same = cut(clip, (frames, height, width))
    assert torch.equal(same, torch.from_numpy(clip.copy()).float() / 127.5 - 1)


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=20), st.integers(1, 4), st.integers(0, 3))
def test_every_epoch_sees_all_once_in_batches_of_one_size(sizes, batch, seed):
    order = Order(sizes, batch, seed)
    for epoch in range(2):
        batches = [order[epoch * order.per_epoch + i] for i in range(order.per_epoch)]
        assert sorted(i for one in batches for i in one) == list(range(len(sizes)))
        assert all(len({sizes[i] for i in one}) == 1 and len(one) <= batch for one in batches)
    assert Order(sizes, batch, seed)[3] == order[3]  # wherever it starts
    many = Order(["a"] * 50, 1, seed)
    assert [many[i] for i in range(50)] != [many[50 + i] for i in range(50)] != [[i] for i in range(50)]


def test_moving_shapes_as_a_folder(tmp_path):
    for name, frames in (("clips", 5), ("pictures", 1)):
        folder_main([str(tmp_path / name), "--count", "2", "--frames", str(frames), "--size", "32"])
        items = find_items(tmp_path / name)
        assert len(items) == 2 and len({item.caption for item in items}) == 2
        assert read(items[0].path).shape == (frames, 32, 32, 3)
        assert abs(read(items[0].path)[0].astype(int) - sample_scene((0, 0)).render(1, 32)[0]).mean() < 6


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A data set as the hub keeps them: pictures inside a parquet file."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    pictures = [Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)) for i in range(3)]
    rows = datasets.Dataset.from_dict(
        {"image": [*pictures, None], "label": [0, 1, 2, 3], "caption": ["dark", "grey", "light", "none"]},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.Value("int64"), "caption": datasets.Value("string")}
        ),
    )
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    return str(tmp_path / "set")


def test_a_data_set_of_hugging_face(dataset, tmp_path):
    items = items_of_dataset(dataset, "train", tmp_path / "files")
    assert [item.caption for item in items] == ["dark", "grey", "light", "none"]
    assert not items.pop().path.exists(), "skipped and reported like any file that is not there"
    for number, item in enumerate(items):
        assert (read(item.path) == 40 * number).all()
    times = [item.path.stat().st_mtime_ns for item in items]
    again = items_of_dataset(dataset, "train", tmp_path / "files", media="image", caption="label")
    assert [item.caption for item in again] == ["0", "1", "2", "3"]
    assert [item.path.stat().st_mtime_ns for item in again[:3]] == times


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"media": "film"}, "--media_column film: the data set has image, label, caption"),
        ({"caption": "words"}, "--caption_column words: the data set has"),
        ({"split": "test"}, "cannot be loaded"),
    ],
)
def test_a_data_set_without_what_is_wanted(dataset, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        items_of_dataset(dataset, **{"split": "train", "folder": tmp_path / "files", **options})
