"""The demo's first tab over its API, as programs and browsers use it: results, scripts, bad and hostile input."""

import json

import numpy as np
import pytest
from PIL import Image

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from dattn.apps.demo import knobs, limits  # noqa: E402, after the check for gradio
from dattn.apps.running import read_attention  # noqa: E402
from dattn.grid import TokenGrid  # noqa: E402
from dattn.patterns import Radial  # noqa: E402
from dattn.presets import PRESETS  # noqa: E402
from dattn.registry import pattern_from_string  # noqa: E402


def test_both_clips_and_all_that_is_shown_beside_them(client, wish):
    facts, seed, stock, own, pictures, mask, report, code, gallery = client.predict(**wish())
    assert seed == 3 and "Seed <b>3</b>" in facts and "Speed-up" in facts and "PSNR" in facts and pictures is None
    assert stock.endswith(".mp4") and own.endswith(".mp4") and mask and "Radial" in report
    assert f"dattn.apply(pipe, '{wish()['pattern']}', dense_steps=0.0)" in code and "manual_seed(3)" in code
    compile(code, "snippet", "exec")
    assert len(gallery) == 1 and "seed 3" in gallery[0]["caption"]
    assert len(client.predict(**wish(pattern="stock"))[-1]) == 2


@pytest.fixture
def written(monkeypatch):
    """The clips that the demo and scripts make, by file name, before they are compressed."""
    import diffusers.utils

    from dattn.apps.demo import generate

    found, write = {}, generate.write_clip
    monkeypatch.setattr(
        generate, "write_clip", lambda clip, place, name: found.update({name: clip}) or write(clip, place, name)
    )
    monkeypatch.setattr(
        diffusers.utils, "export_to_video", lambda frames, path, fps: found.update({path: np.asarray(frames)})
    )
    return found


@pytest.mark.parametrize("changed", [{}, {"pattern": "stock"}], ids=["pattern", "stock"])
def test_the_script_makes_the_same_frames(client, wish, shapes_folder, written, changed, monkeypatch):
    code = client.predict(**wish(dense=0.5, **changed))[7]
    assert str(shapes_folder.parent) not in code
    assert f"# Run this beside a copy of the folder {shapes_folder.name!r}" in code
    monkeypatch.chdir(shapes_folder.parent)
    exec(code, {})
    assert written["dattn"].shape == (9, 32, 32, 3) and written["dattn"].std() > 1
    assert abs(written["clip.mp4"] * 255 - written["dattn"]).max() < 0.51  # which is rounded
    assert ("pattern" in changed) == bool((written["stock"] == written["dattn"]).all())


def test_the_script_makes_the_same_picture(client, wish, sd_folder, tmp_path, monkeypatch):
    pictures, code = (client.predict(**wish(model=str(sd_folder), pattern="Neighborhood(3)"))[i] for i in (4, 7))
    monkeypatch.chdir(tmp_path)
    (tmp_path / sd_folder.name).symlink_to(sd_folder)
    exec(code, {})
    mine, theirs, stock = (np.asarray(Image.open(path)) for path in ("picture.png", pictures[1], pictures[0]))
    assert (mine == theirs).all() and (theirs != stock).any()


def test_pictures_are_compared_under_a_slider(client, wish, sd_folder):
    _, seed, stock, own, pictures, *_ = client.predict(**wish(model=str(sd_folder), pattern="Neighborhood(3)"))
    assert seed == 3 and stock is None and own is None and len(pictures) == 2


def test_a_bare_name_is_the_pattern_of_that_name_and_no_preset(client, wish):
    assert "radial" in PRESETS and read_attention("radial") == "radial"
    assert read_attention(limits.attention(" Radial ")) == read_attention(limits.attention("radial")) == Radial()
    code = client.predict(**wish(pattern="radial"))[7]
    assert "dattn.apply(pipe, 'radial()', dense_steps=0.0)" in code


def test_another_seed_is_shown(client, wish):
    assert client.predict(**wish(another=True))[1] != 3


def test_an_estimate_before_anything_is_made(client, wish, shapes_folder):
    told = client.predict(str(shapes_folder), wish()["pattern"], 9, 32, 32, api_name="/estimate")
    assert "Tokens" in told and "%" in told
    dense = client.predict(str(shapes_folder), "Dense()", 9, 32, 32, api_name="/estimate")
    assert "100%" in dense
    part, none = (
        client.predict(str(shapes_folder), pattern, 9, 32, 32, 0.0, api_name="/estimate")
        for pattern in (wish()["pattern"], "Dense()")
    )
    assert "100%" in none and part != told


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"pattern": "Radial("}, "write it as in code"),
        ({"pattern": "Radial(<b>"}, "Radial(&lt;b&gt;"),
        ({"height": 12}, "whole number from 16"),
        ({"height": 40}, "multiples of"),
        ({"height": None}, "whole number"),
        ({"height": 4096, "width": 4096}, "are the most here"),
    ],
)
def test_what_is_wrong_while_one_types_is_told_in_place(client, shapes_folder, changed, says):
    given = {"model": str(shapes_folder), "pattern": "Dense()", "frames": 9, "height": 32, "width": 32, **changed}
    told = client.predict(**given, api_name="/estimate")
    assert "Not yet: " in told and says in told and "<b>" not in told


BAD = [
    ({"prompt": "  "}, "say what to show"),
    ({"prompt": "x" * 5000}, "1000 are the most"),
    ({"pattern": "Nowhere()"}, "unknown pattern"),
    ({"pattern": "Radial(block_size=17)"}, "block_size"),
    ({"pattern": "__import__('os').system('true')"}, "reads? files|read files|no pattern|write it as in code"),
    ({"pattern": "LearnedGate('/etc/passwd')"}, "read files are not served"),
    ({"pattern": "Selected(Gate('gate.safetensors'))"}, "read files are not served"),
    ({"pattern": "Clustered(2, 2, centroids='/etc/passwd')"}, "read files are not served"),
    ({"pattern": "/etc/passwd.json"}, "write it as in code"),
    ({"pattern": "(" * 900}, "write it as in code"),
    ({"pattern": "Nowhere() #.json"}, "unknown pattern"),
    ({"model": "/etc"}, "not in the list of choices"),
    ({"frames": 10**9}, "greater than maximum"),
    ({"height": 4096, "width": 4096}, "are the most here; ask for less"),
    ({"height": 33}, "multiples of"),
    ({"height": -16}, "whole number from"),
    ({"steps": 10**6}, "greater than maximum"),
    ({"steps": 1.5}, "whole number from 1 to 200"),
    ({"seed": -1}, "whole number from 0"),
    ({"dense": 0.95}, "greater than maximum"),
]


@pytest.mark.parametrize(("changed", "says"), BAD, ids=[json.dumps(changed)[:40] for changed, _ in BAD])
def test_what_is_wrong_is_said_and_the_app_goes_on(client, wish, changed, says):
    with pytest.raises(gradio_client.exceptions.AppError, match=says) as caught:
        client.predict(**wish(**changed))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "3", True, 2.5, float("nan"), float("inf"), 0, 11, [1], {}])
def test_numbers_are_checked_whatever_comes(value):
    with pytest.raises(ValueError, match="Steps .*: give a whole number from 1 to 10"):
        limits.whole(value, "Steps", 1, 10)
    assert limits.whole(3.0, "Steps", 1, 10) == 3


GRIDS = {True: TokenGrid(17, 8, 8), False: TokenGrid(1, 32, 32)}
"""Of shapes-wan and shapes-sd at the sizes that the demo starts with."""


@pytest.mark.parametrize("video", [True, False], ids=["clips", "pictures"])
@pytest.mark.parametrize("offer", knobs.OFFERS, ids=lambda offer: offer.title)
def test_every_knob_changes_how_much_is_computed(served, offer, video):
    if offer not in knobs.offers(video):
        pytest.skip("not for pictures")
    usual = {knob.name: knob.value for knob in offer.knobs}
    for knob in offer.knobs:
        low, high = (offer.written({**usual, knob.name: value}) for value in (knob.low, knob.high))
        assert abs(served[1].share(low, GRIDS[video]) - served[1].share(high, GRIDS[video])) > 0.05, knob.name


@pytest.mark.parametrize("offer", knobs.OFFERS, ids=lambda offer: offer.title)
def test_every_position_of_the_sliders_is_a_pattern(offer):
    for place in range(11):
        values = {knob.name: knob.between(place / 10) for knob in offer.knobs}
        text = offer.written(values)
        assert limits.attention(text) == text and pattern_from_string(text)
    assert len(set(offer.sweep(4))) == 4


def test_the_script_is_python_whatever_the_pattern(studio_of):
    for text in ('Selected(Pooled(), TopK(0.3, across="head"))', "Radial(\n  decay=0.5)"):
        compile(studio_of(limits.attention(text)), "script", "exec")


@pytest.fixture
def studio_of(served, shapes_folder):
    """The script of a pattern on the tiny model."""
    from dattn.apps.demo.snippet import snippet

    request = served[1].request({"model": str(shapes_folder), "frames": 9, "height": 32, "width": 32, "steps": 2})
    with served[1].model(str(shapes_folder)) as loaded:
        yield lambda attention: snippet(loaded, request, attention, 0.0)
