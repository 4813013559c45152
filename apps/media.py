"""Writing and reading what pipelines make: H.264 videos and PNG pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_clip(clip: np.ndarray, folder: Path, name: str, fps: int = 16) -> Path:
    """Write uint8 ``[frames, height, width, 3]`` as ``name.mp4``, or a single frame as ``name.png``."""
    if len(clip) == 1:
        path = folder / f"{name}.png"
        Image.fromarray(clip[0]).save(path)
        return path
    path = folder / f"{name}.mp4"
    write_video(clip, path, fps)
    return path


def write_video(clip: np.ndarray, path: Path, fps: int = 16) -> None:
    """Write an H.264 file of these frames; an odd side, which H.264 cannot hold, grows by one pixel."""
    import imageio.v3 as imageio

    odd_rows, odd_columns = clip.shape[1] % 2, clip.shape[2] % 2
    even = np.pad(clip, ((0, 0), (0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
    imageio.imwrite(path, even, plugin="FFMPEG", fps=fps, quality=9, macro_block_size=2)


def read_video(path: Path, fps: float | None = None, most: int | None = None) -> np.ndarray:
    """The frames of a video file: uint8 ``[frames, height, width, 3]``.

    Args:
        fps: so many of each second, left out or repeated; None takes them as they are.
        most: no more than so many, from the first on.
    """
    import imageio.v3 as imageio

    pace = 1.0 if fps is None else float(imageio.immeta(path, plugin="FFMPEG")["fps"]) / fps
    kept: list[np.ndarray] = []
    for number, frame in enumerate(imageio.imiter(path, plugin="FFMPEG")):
        while int(len(kept) * pace) == number and len(kept) != most:
            kept.append(frame)
        if len(kept) == most:
            break
    return np.stack(kept)
