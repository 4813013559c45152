"""The demo's tabs Edit, Regions and Long video over their API."""

import re

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

gradio_client = pytest.importorskip("gradio_client")
gr = pytest.importorskip("gradio")

from dattn.apps.demo.edit import WORDS, EditTab  # noqa: E402, after the check for gradio
from dattn.apps.demo.generate import GenerateTab  # noqa: E402, after the check for gradio
from dattn.apps.demo.long_video import LongTab  # noqa: E402, after the check for gradio
from dattn.apps.demo.painting import COLORS, MOST_LAYERS, SHOWN, painted, zoom  # noqa: E402
from dattn.apps.demo.regions import RegionsTab  # noqa: E402
from dattn.apps.demo.serving import while_typing  # noqa: E402
from dattn.apps.demo.visits import MOST_RUNS  # noqa: E402


@pytest.fixture
def change(sd_folder):
    """Arguments of ``/edit``, with some changed."""
    usual = {
        "model": str(sd_folder), "source": "a red circle", "edit": "a blue circle", "keep": 0.8, "frames": 1,
        "height": 32, "width": 32, "steps": 2, "seed": 3, "another": False,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/edit"}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_an_edit_is_shown_beside_its_source(client, change):
    _, seed, left, right, pictures, word, *seen, _ = client.predict(**change())
    assert seed == 3 and left is None and right is None
    source, other = map(pixels, pictures)
    assert source.shape == other.shape and abs(source - other).max() > 0
    assert word["value"] == "blue" and [name for name, _ in word["choices"]] == ["blue", "a", "circle"]
    assert abs(pixels(seen[2][1]) - other).max() > 0  # the map is over it
    again = client.predict("a", api_name="/map")
    assert abs(pixels(again[2][0]) - other).max() == 0 and again[2][1] != seen[2][1]


def test_what_other_tabs_made_is_in_the_gallery(served, client, change):
    client.predict(**change())
    tab = GenerateTab(served[1], served[2])
    ((file, caption),) = tab.refill(gr.Request(session_hash=client.session_hash))
    assert file.endswith("edit.png") and caption == "Edit · a blue circle · seed 3"
    assert tab.refill(gr.Request(session_hash="stranger")) == []


def test_words_may_be_stronger_and_an_edit_that_changes_nothing_is_the_source(client, change):
    same = client.predict(**change(edit="a red circle"))[4]
    assert abs(pixels(same[0]) - pixels(same[1])).max() <= 1
    strong = client.predict(**change(edit="a red circle", strength_2=5.0))[4]
    assert abs(pixels(strong[0]) - pixels(strong[1])).max() > 1


def test_a_word_that_stays_keeps_its_strength(served):
    tab = EditTab(served[1], served[2])
    words, *sliders = tab.name_strengths("a red circle", [""] * WORDS, *[1] * WORDS)
    assert words[:3] == ["a", "red", "circle"] and [one["value"] for one in sliders] == [1] * WORDS
    values = [1, 0.5, 2.5, *[1] * (WORDS - 3)]
    words, *sliders = tab.name_strengths("a big circle", words, *values)
    assert words[:3] == ["a", "big", "circle"] and [one["value"] for one in sliders[:3]] == [1, 1, 2.5]
    shown = [(one["label"], one["visible"]) for one in sliders]
    assert shown[:4] == [("a", True), ("big", True), ("circle", True), ("–", False)]


def test_edits_of_other_lengths_and_of_videos(client, change, shapes_folder):
    assert client.predict(**change(edit="a big red circle"))[5]["value"] == "big"
    clips = client.predict(**change(model=str(shapes_folder), frames=9))
    assert clips[2].endswith(".mp4") and clips[3].endswith(".mp4")


def test_frames_of_an_edited_video_are_compared_under_a_slider(served, client, change, shapes_folder):
    *_, frame = client.predict(**(wish := change(model=str(shapes_folder), frames=9)))
    made = served[2].known(client.session_hash).edit
    assert frame["maximum"] == 8 and frame["value"] == 4 and abs(made.source[4].astype(int) - made.edit[4]).max() > 0
    for number, pair in ((4, client.predict(**wish)[4]), (7, client.predict(7, api_name="/frame"))):
        for clip, file in zip((made.source, made.edit), pair, strict=True):
            assert abs(pixels(file) - clip[number]).max() == 0
    with pytest.raises(gradio_client.exceptions.AppError, match="from 0 to 8|maximum"):
        client.predict(9, api_name="/frame")


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"edit": " "}, "Edit: say what to show"), ({"keep": 2}, "maximum"), ({"strength_1": 99}, "maximum")],
)
def test_what_is_wrong_with_an_edit_is_said(client, change, changed, says):
    with pytest.raises(gradio_client.exceptions.AppError, match=says):
        client.predict(**change(**changed))


def test_there_is_a_map_only_after_an_edit(client, change):
    with pytest.raises(gradio_client.exceptions.AppError, match="make an edit first|not in the list of choices"):
        client.predict("circle", api_name="/map")


def test_the_map_of_an_edit_long_ago_says_to_make_it_again(served, client, change):
    client.predict(**change())
    visit = served[2].known(client.session_hash)
    for _ in range(MOST_RUNS):
        visit.place()
    with pytest.raises(gradio_client.exceptions.AppError, match="make the edit again"):
        client.predict("a", api_name="/map")


@pytest.fixture
def long():
    """Arguments of ``/long_video``, with some changed."""
    usual = {
        "model": "shapes-wan", "prompts": "a red circle moving right\na red circle moving up", "frames": 9,
        "height": 32, "width": 32, "steps": 1, "seed": 3, "another": False,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/long_video"}


def test_a_video_of_several_prompts_and_its_timeline(client, long):
    from dattn.apps.media import read_video

    facts, seed, clip, line = client.predict(**long())
    assert seed == 3 and "Frames" in facts and line.count('class="bar"') == 2 and "moving up" in line
    assert len(read_video(clip)) > 9
    longer = client.predict(**long(prompts="a red circle moving right | 3\na red circle moving up|1"))
    assert len(read_video(longer[2])) > len(read_video(clip)) and "|" not in longer[3]


def shares(line):
    """How much of a timeline each prompt has, in percent."""
    return [float(found) for found in re.findall(r"width: ([\d.]+)%", line)]


def test_a_timeline_shows_which_prompt_lasts_longer(served):
    tab = LongTab(served[1], served[2])
    first, second = shares(tab.preview("shapes-wan", "a | 4\nb", 9, 32, 32))
    assert first > 1.5 * second
    even = shares(tab.preview("shapes-wan", "a\nb", 9, 32, 32))
    assert even[0] == even[1]


def test_a_timeline_waits_for_the_end_of_a_line(served):
    tab = LongTab(served[1], served[2])
    told = while_typing(tab.preview)
    assert "Not yet: Prompts: &#x27;a |&#x27;: write a whole number" in told("shapes-wan", "a |", 9, 32, 32)
    assert told("shapes-wan", "a | 2", 9, 32, 32) == tab.preview("shapes-wan", "a | 2", 9, 32, 32)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompts": ""}, "0 lines; write 1 to 6"),
        ({"prompts": "x\n" * 7}, "7 lines; write 1 to 6"),
        ({"prompts": "a | 0"}, "'a | 0': write a whole number from 1 to 9 after"),
        ({"prompts": "a | ²"}, "from 1 to 9"),
        ({"prompts": "a | b"}, "from 1 to 9"),
        ({"prompts": "| 2"}, "say what to show"),
        ({"height": 512, "width": 512, "frames": 65}, "are the most here"),
        ({"model": "shapes-flux"}, "not in the list of choices"),
    ],
)
def test_what_is_wrong_with_a_long_video_is_said(client, long, changed, says):
    with pytest.raises(gradio_client.exceptions.AppError, match=says):
        client.predict(**long(**changed))


@pytest.fixture
def regional(sd_folder):
    """Arguments of ``/regions``, with some changed."""
    usual = {
        "model": str(sd_folder), "prompt": "two things", "prompt_1": "a red circle", "box_1": "0, 0, 0.5, 1",
        "prompt_2": "a blue circle", "box_2": "0.5 0 1 1", "height": 32, "width": 32, "steps": 2, "seed": 3,
    }  # fmt: skip
    return lambda **changed: {**usual, **changed, "api_name": "/regions"}


def test_regions_are_boxes_and_drawn_around(client, regional):
    _, seed, left, right, pictures = client.predict(**regional())
    plain, made = map(pixels, pictures)
    assert seed == 3 and left is None and right is None and plain.shape == made.shape == (256, 256, 3)
    orange, blue = (ImageColor.getrgb(color) for color in [*COLORS.values()][:2])
    for x, color in ((0, orange), (127, orange), (128, blue), (255, blue)):
        assert tuple(made[100, x]) == color
    assert abs(made[32:96, 32:96] - plain[32:96, 32:96]).max() > 0


@pytest.fixture
def canvas(tmp_path):
    """A canvas with the first region's colour where something is drawn."""

    def of(draw):
        layer = Image.new("RGBA", (64, 64))
        draw(ImageDraw.Draw(layer), ImageColor.getrgb(COLORS["orange"]))
        layer.save(tmp_path / "layer.png")
        file = gradio_client.handle_file(str(tmp_path / "layer.png"))
        return {"background": None, "layers": [file], "composite": file}

    return of


def test_paint_counts_more_than_a_box(client, regional, canvas):
    color = ImageColor.getrgb(COLORS["orange"])
    drawn = canvas(lambda draw, fill: draw.rectangle((0, 32, 63, 63), fill=fill))
    made = pixels(client.predict(**regional(canvas=drawn, prompt_2="", soft=2))[4][1])
    assert tuple(made[128, 100]) == tuple(made[255, 200]) == color and tuple(made[60, 0]) != color


@pytest.mark.parametrize("paint", ["as painted", "the box around it"])
def test_what_is_painted_may_count_as_the_box_around_it(client, regional, canvas, paint):
    """A stroke from corner to corner: its box has corners of its own."""
    color = ImageColor.getrgb(COLORS["orange"])
    drawn = canvas(lambda draw, fill: draw.line((8, 16, 47, 39), fill=fill))
    made = pixels(client.predict(**regional(canvas=drawn, prompt_2="", paint=paint))[4][1])
    assert tuple(made[64, 32]) == tuple(made[159, 191]) == color
    corners = [tuple(made[64, 191]) == color, tuple(made[159, 32]) == color, tuple(made[100, 32]) == color]
    assert corners == [paint == "the box around it"] * 3 and tuple(made[64, 192]) != color


def test_a_box_that_is_typed_stays_whatever_counts_of_paint(client, regional):
    one, other = (client.predict(**regional(paint=paint))[4][1] for paint in ("as painted", "the box around it"))
    assert abs(pixels(one) - pixels(other)).max() == 0


def test_the_canvas_has_the_shape_of_the_picture(served, sd_folder):
    tab = RegionsTab(served[1], served[2])
    canvas, shape = tab.fit_canvas(str(sd_folder), 32, 64, (256, 256))
    assert canvas["canvas_size"] == shape == (256, 128)
    for height in (3, None, 32, 32.0):  # half written, or of the same shape
        canvas, same = tab.fit_canvas(str(sd_folder), height, 64, shape)
        assert "canvas_size" not in canvas and same == shape


@pytest.mark.parametrize("sides", [(16, 16), (64, 64), (16, 4096), (8, 100_000), (300, 20)])
def test_what_is_shown_is_no_larger_than_what_may_be_made(sides):
    """Only small pictures grow, whatever their shape."""
    scale = zoom(*sides)
    assert scale == 1 or max(sides) * scale <= SHOWN


def test_a_canvas_of_very_many_layers_is_refused():
    layers = [Image.new("RGBA", (4, 4), COLORS["orange"])] * MOST_LAYERS
    assert painted({"layers": layers}, (4, 4))[0] is not None
    with pytest.raises(ValueError, match=f"Canvas: {MOST_LAYERS + 1} layers; {MOST_LAYERS} are the most"):
        painted({"layers": [*layers, layers[0]]}, (4, 4))


def test_regions_of_a_video(client, regional, shapes_folder):
    files = client.predict(**regional(model=str(shapes_folder), frames=9, isolate=True, avoid=True, window=0.5))
    assert files[2].endswith(".mp4") and files[3].endswith(".mp4") and files[4] is None


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt_1": "", "prompt_2": " "}, "No region has a prompt"),
        ({"box_1": ""}, "Region 1: paint it in orange"),
        ({"box_1": "0 0 2 1"}, "fractions of the picture"),
        ({"box_1": "a b"}, "write left, top, right, bottom"),
        ({"box_1": "0 0 0.0001 1"}, "thinner than a pixel"),
        ({"box_1": "nan 0 1 1"}, "fractions of the picture"),
        ({"soft": 99}, "maximum"),
    ],
)
def test_what_is_wrong_with_regions_is_said(client, regional, changed, says):
    with pytest.raises(gradio_client.exceptions.AppError, match=says):
        client.predict(**regional(**changed))


def test_a_small_file_that_holds_a_huge_picture_is_refused(client, regional, tmp_path):
    Image.new("1", (2**13, 2**13)).save(tmp_path / "bomb.png")
    file = gradio_client.handle_file(str(tmp_path / "bomb.png"))
    with pytest.raises(gradio_client.exceptions.AppError, match="decompression bomb"):
        client.predict(**regional(canvas={"background": None, "layers": [file], "composite": file}))
