"""Moving Shapes: the world draws what it says, and the judge believes nothing else."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dattn.apps.shapes import Caption, Object, Scene, Wanted, judge, parse_caption, sample_scene
from dattn.apps.shapes.captions import COLORS, MOTIONS, SHAPES
from dattn.apps.shapes.world import BACKGROUND, PALETTE, coverage

MODEL = Path(__file__).parents[1] / "assets" / "models" / "shapes-wan"


def blurred(clip, passes):
    """The clip after some passes of a 3 x 3 mean on the torus."""
    clip = clip.astype(np.float32)
    for _ in range(passes):
        clip = sum(np.roll(clip, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    return clip.round().astype(np.uint8)


def red(shape="circle", motion="moving right", **changes):
    speed = 0.0 if motion == "standing still" else 1.2 / 64
    one = Object("red", shape, motion, x=0.3, y=0.4, radius=10 / 64, speed=speed)
    return dataclasses.replace(one, **changes)


# the world


def test_same_seed_same_scene_and_clip():
    for seed in range(20):
        assert sample_scene(seed) == sample_scene(seed)
    assert np.array_equal(sample_scene(3).render(5), sample_scene(3).render(5))
    assert len({sample_scene(seed) for seed in range(50)}) == 50


def test_a_short_clip_is_the_start_of_a_long_one():
    scene = sample_scene(5, 3)
    assert np.array_equal(scene.render(9), scene.render(33)[:9])


@pytest.mark.parametrize("size", [16, 64, 100, (48, 96)])
def test_any_size(size):
    clip = sample_scene(1, 2).render(7, size)
    height, width = (size, size) if isinstance(size, int) else size
    assert clip.shape == (7, height, width, 3) and clip.dtype == np.uint8


def test_the_world_wraps_around():
    once, later = red(x=0.95).centers(2, 64, 64), red(x=-0.05).centers(2, 64, 64)
    for shape in SHAPES:
        np.testing.assert_allclose(coverage(shape, once, 10, 64, 64), coverage(shape, later, 10, 64, 64), atol=1e-4)


def test_moving_a_whole_number_of_pixels_rolls_the_picture():
    clip = Scene((red("triangle", speed=1 / 64),)).render(40)
    assert np.array_equal(clip[39], np.roll(clip[0], 39, axis=1))


@pytest.mark.parametrize("shape", SHAPES)
def test_covered_area_is_the_area_of_the_shape(shape):
    area = {"circle": np.pi, "square": 4 * 0.886**2, "triangle": 3 * 3**0.5 / 4 * 1.2**2}[shape] * 100
    assert coverage(shape, np.array([[31.3, 30.8]]), 10, 64, 64).sum() == pytest.approx(area, rel=0.01)


def test_sampled_objects_never_touch():
    for seed in range(40):
        scene = sample_scene(seed, 2 + seed % 2)
        alone = [(Scene((o,)).render(65) != BACKGROUND).any(-1) for o in scene.objects]
        assert not (np.sum(alone, 0) > 1).any(), scene


def test_number_of_objects():
    counts = np.bincount([len(sample_scene(seed).objects) for seed in range(400)], minlength=4)
    assert counts[0] == 0 and (counts[1:] > 0).all() and counts[1] > counts[2] > counts[3]
    with pytest.raises(ValueError, match=r"4 objects.*one to 3"):
        sample_scene(0, 4)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="0 frames"):
        sample_scene(0).render(0)


# captions


def test_captions_read_back():
    for seed in range(300):
        scene = sample_scene(seed, 1 + seed % 3)
        caption = parse_caption(scene.caption())
        assert str(caption) == scene.caption()
        assert [(o.color, o.shape) for o in caption.objects] == [(o.color, o.shape) for o in scene.objects]
        assert caption.relation == scene.relation


def test_captions_by_hand():
    assert parse_caption("A red circle  moving right.") == Caption((Wanted("red", "circle", "moving right"),))
    pair = (Wanted("blue", "square", "moving left"), Wanted("green", "triangle", "moving left"))
    assert parse_caption("a blue square above a green triangle, both moving left") == Caption(pair, "above")
    still = (Wanted("blue", "square"), Wanted("green", "triangle"))
    assert parse_caption("a blue square left of a green triangle") == Caption(still, "left of")


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("", "not of this world"),
        ("a fox in the snow", "not of this world"),
        ("a red circle and", "not of this world"),
        ("a pink circle moving right", "pink.*the colours are"),
        ("a red star moving right", "star.*the shapes are"),
        ("a red circle jumping", "not of this world"),
        ("a red circle moving right and a red square moving up", "told apart by colour"),
        ("a red circle above a blue square, both moving up", "wraps around"),
        ("a red circle left of a blue square, both moving right", "wraps around"),
        (" and ".join(f"a {c} circle moving up" for c in COLORS[:4]), "4 objects"),
    ],
)
def test_captions_of_another_world(caption, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(caption)


def test_a_relation_joins_two_that_move_alike():
    with pytest.raises(ValueError, match="joins two"):
        Caption((Wanted("red", "circle"),), "above")
    with pytest.raises(ValueError, match="alike"):
        Caption((Wanted("red", "circle", "moving left"), Wanted("blue", "circle")), "above")


# the judge on true clips


@pytest.mark.parametrize(("frames", "count"), [(9, 30), (33, 150), (129, 24)])
def test_true_clips_are_accepted(frames, count):
    scenes = [sample_scene((1, seed), 1 + seed % 3) for seed in range(count)]
    wrong = [str(v) for s in scenes if not (v := judge(s.render(frames), s.caption())).ok]
    assert len(wrong) <= count // 100, wrong


def test_every_kind_of_object_is_accepted():
    for color in COLORS:
        for shape in SHAPES:
            for motion in MOTIONS:
                scene = Scene((red(shape, motion, color=color),))
                assert judge(scene.render(9), scene.caption()).ok


def test_other_sizes_and_floats():
    scene = sample_scene(4, 2)
    assert judge(scene.render(17, (64, 96)), scene.caption()).ok
    assert judge(scene.render(17, 128).astype(np.float64) / 255, scene.caption()).ok


def test_a_little_noise_and_blur_are_forgiven():
    rng = np.random.default_rng(0)
    for seed in range(9):
        scene = sample_scene(seed, 1 + seed % 3)
        clip = scene.render(17)
        noisy = np.clip(clip + rng.normal(0, 8, clip.shape), 0, 255).astype(np.uint8)
        assert judge(noisy, scene.caption()).ok
        assert judge(blurred(clip, 1), scene.caption()).ok


# the judge on false clips


def test_wrong_captions_are_rejected():
    accepted = 0
    for seed in range(60):
        scene, other = sample_scene((2, seed), 1 + seed % 3), sample_scene((3, seed), 1 + seed % 3)
        accepted += judge(scene.render(17), other.caption()).ok and scene.caption() != other.caption()
    assert accepted == 0


@pytest.mark.parametrize(("field", "values"), [("color", COLORS), ("shape", SHAPES), ("motion", tuple(MOTIONS))])
def test_one_wrong_word_is_found(field, values):
    scene = Scene((red(),))
    clip = scene.render(17)
    for value in values:
        verdict = judge(clip, Caption((dataclasses.replace(scene.objects[0].wanted(), **{field: value}),)))
        right = value == getattr(scene.objects[0], field)
        assert verdict.ok == right and getattr(verdict.objects[0], field) == right
        assert str(verdict).startswith("ok" if right else "not ok") and "\n" not in str(verdict)


def test_a_wrong_relation_is_found():
    scene = next(s for seed in range(99) if (s := sample_scene(seed, 2)).relation == "above")
    caption = parse_caption(scene.caption())
    verdict = judge(scene.render(9), dataclasses.replace(caption, relation="below"))
    assert not verdict.ok and not any(o.position for o in verdict.objects)
    assert all(o.shape and o.color and o.motion for o in verdict.objects)


@pytest.mark.parametrize("frames", [33, 129])
def test_an_object_that_vanishes_is_found(frames):
    for seed in range(6):
        scene = sample_scene(seed, 1 + seed % 3)
        clip = scene.render(frames)
        clip[frames // 2 :] = Scene(scene.objects[1:]).render(frames)[frames // 2 :]
        assert not judge(clip, scene.caption()).ok


def test_extra_objects_are_found():
    for seed in range(12):
        scene = sample_scene(seed, 2 + seed % 2)
        fewer = Scene(scene.objects[:-1])
        assert not judge(scene.render(17), fewer.caption()).ok
    twins = Scene((red(), red(y=0.9)))
    verdict = judge(twins.render(17), "a red circle moving right")
    assert not verdict.ok and not verdict.objects[0].shape


def test_a_shape_that_changes_is_found():
    clip = Scene((red("circle"),)).render(33)
    clip[16:] = Scene((red("square"),)).render(33)[16:]
    assert not judge(clip, "a red circle moving right").ok
    assert not judge(clip, "a red square moving right").ok


def test_a_size_that_changes_is_found():
    clip = Scene((red(),)).render(33)
    clip[16:] = Scene((red(radius=15 / 64),)).render(33)[16:]
    assert not judge(clip, "a red circle moving right").ok


def test_a_motion_that_changes_is_found():
    there = Scene((red(),)).render(33)
    back = np.concatenate([there[:17], there[16:0:-1]])
    stops = np.concatenate([there[:17], np.repeat(there[16:17], 16, 0)])
    slanted = Scene((red(),)).render(33)
    slanted = np.stack([np.roll(frame, i, axis=0) for i, frame in enumerate(slanted)])
    for clip in (back, stops, slanted):
        assert not judge(clip, "a red circle moving right").ok


def test_a_blob_between_shapes_is_no_shape():
    soft = blurred(Scene((red("square"),)).render(9), 16)
    assert not judge(soft, "a red square moving right").objects[0].shape


def test_an_empty_clip_is_wrong_everywhere():
    clip = np.broadcast_to(np.uint8(BACKGROUND), (9, 64, 64, 3))
    verdict = judge(clip, "a red circle moving right").objects[0]
    assert not (verdict.color or verdict.shape or verdict.motion)


@pytest.mark.parametrize("clip", [np.zeros((3, 64, 64, 3)), np.zeros((9, 3, 64, 64)), np.full((9, 64, 64, 3), 2.0)])
def test_no_clip_is_an_error(clip):
    with pytest.raises(ValueError, match=r"clip (of shape|with values)"):
        judge(clip, "a red circle moving right")


def test_palette_is_far_apart():
    inks = np.array([PALETTE[c] for c in COLORS], float)
    distances = np.linalg.norm(inks[:, None] - inks[None], axis=-1) + 1e3 * np.eye(len(COLORS))
    assert distances.min() > 120
