import json

import pytest
from PIL import Image

from dattn.apps.shapes.pictures import caption_of, draw_pictures, sample_picture


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for seed in range(5):
        scene = sample_picture([5, seed], 1)
        Image.fromarray(draw_pictures([scene], 64)[0]).save(folder / f"{seed}.png")
        lines.append(json.dumps({"file_name": f"{seed}.png", "text": caption_of(scene)}))
    (folder / "broken.png").write_bytes(b"nothing")
    lines.append(json.dumps({"file_name": "broken.png", "text": "a red circle"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder
