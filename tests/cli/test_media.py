import numpy as np
import pytest
from PIL import Image

from dattn.apps.media import read_video, write_clip
from dattn.apps.shapes import sample_scene
from dattn.apps.sheet import sheet
from dattn.apps.table import table
from dattn.metrics import psnr


def clip(frames=9, height=64, width=64, seed=1):
    return sample_scene(seed, objects=1).render(frames, (height, width))


def test_a_video_holds_the_frames_it_was_given(tmp_path):
    frames = clip(12)
    path = write_clip(frames, tmp_path, "a")
    back = read_video(path)
    assert path.name == "a.mp4"
    assert back.shape == frames.shape
    assert psnr(back, frames) > 25
    assert psnr(back, frames) > psnr(back[::-1], frames)


def test_an_odd_side_grows_by_a_pixel(tmp_path):
    assert read_video(write_clip(clip(5, 33, 47), tmp_path, "odd")).shape == (5, 34, 48, 3)


def test_a_single_frame_is_a_picture(tmp_path):
    frames = clip(1)
    path = write_clip(frames, tmp_path, "a")
    assert path.name == "a.png"
    assert np.array_equal(np.asarray(Image.open(path)), frames[0])


def test_a_sheet_shows_the_same_moments_of_every_clip():
    one, other = clip(33), clip(33, seed=2)
    paper = np.asarray(sheet({"one": one, "other": other}, "title", columns=3, cell=64))
    for frames in (one, other):
        for moment in (0, 16, 32):
            windows = np.lib.stride_tricks.sliding_window_view(paper, (64, 64, 3))[:, :, 0]
            corner = (windows[:, :, 0, 0] == frames[moment][0, 0]).all(-1)
            assert any(np.array_equal(windows[i, j], frames[moment]) for i, j in np.argwhere(corner))


def test_a_sheet_has_a_column_for_each_moment_and_a_row_for_each_clip():
    small, large = (
        sheet({"a": clip(9)}, cell=64, columns=9),
        sheet({"a": clip(9), "b": clip(9)}, cell=64, columns=9),
    )
    assert small.width >= 9 * 64 and large.width == small.width
    assert large.height - small.height >= 64
    assert sheet({"a": clip(1)}).height < sheet({"a": clip(2)}).height, "no frame numbers for a picture"


def test_clips_of_different_sizes_make_no_sheet():
    with pytest.raises(ValueError, match="one size"):
        sheet({"a": clip(9), "b": clip(5)})
    with pytest.raises(ValueError, match="one or more"):
        sheet({})


def test_a_table_lines_up():
    text = table(("name", "n"), [("a", 1), ("long name", 12.345), ("none", None)])
    assert text.splitlines() == [
        "name          n",
        "---------  ----",
        "a             1",
        "long name  12.3",
        "none          -",
    ]
