"""Hundreds of random and hostile calls of the demo: errors to read, no files read, and memory that stays."""

import gc
import random

import psutil
import pytest

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from dattn.apps.demo import defaults  # noqa: E402, after the check for gradio
from dattn.apps.demo.app import build, launch  # noqa: E402
from dattn.apps.demo.studio import Studio  # noqa: E402
from dattn.apps.demo.visits import Visits  # noqa: E402

pytestmark = pytest.mark.slow
CALLS, GROWTH = 500, 50 * 2**20
TEXTS = (
    "",
    " ",
    "a red circle",
    "\x00",
    "💣" * 50,
    "x" * 10**4,
    "<script>alert(1)</script>",
    "{0.__class__}",
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "'; DROP TABLE",
    "%s%n",
    "a" * 999,
    "\u202eevil",
)
PATTERNS = (
    "Radial(block_size=16)",
    "Radial(block_size=16, decay=1e309)",
    "Radial(decay=-1)",
    "stock",
    "Neighborhood((1, 2, 2))",
    "Neighborhood(10**9)",
    "Alike(0.3, block_size=16)",
    "Alike(2)",
    "LearnedGate('/etc/passwd')",
    "Gate('/etc/passwd')",
    "Clustered(2, 2, centroids='/etc/shadow')",
    "PerHead((Radial(), Dense()))",
    "PerHead(())",
    "Reshaped(Radial(), 0)",
    "__import__('os')",
    "open('/etc/passwd')",
    "(lambda: 1)()",
    "Dense",
    "dense()",
    "[" * 500,
    "Radial(" * 200,
    "1",
    "None",
    "Radial(block_size=16).__class__",
    "f'{1}'",
    "TokenMerge(0.5)",
    "Agent(0.5)",
    "Selected(Pooled(), TopK(0.5))",
    "radial",
)
BOXES = ("", "0 0 1 1", "0, 0, 0.5, 1", "1 1 0 0", "nan 0 1 1", "1e400 0 1 1", "../../etc", "0 0 1")
NUMBERS = (
    0,
    1,
    2,
    5,
    9,
    16,
    17,
    32,
    -1,
    0.5,
    1e18,
    10**400,
    float("nan"),
    float("inf"),
    None,
    "9",
    True,
    [1],
    {"a": 1},
)


@pytest.fixture(scope="module")
def served(shapes_folder, sd_folder):
    models = [str(shapes_folder), str(sd_folder)]
    studio, visits = Studio(models, device="cpu"), Visits()
    demo = build(studio, visits)
    _, address, _ = launch(demo, defaults(), prevent_thread_lock=True, quiet=True)
    yield address, models
    demo.close()
    visits.close()


def calls(models, seed):
    """Arguments without end: mostly a good call in which one to three things are replaced by anything."""
    rng = random.Random(seed)
    anything = [*TEXTS, *PATTERNS, *NUMBERS]
    while True:
        model, prompt, pattern = rng.choice(models), rng.choice(TEXTS), rng.choice(PATTERNS)
        size = [rng.choice((5, 9)), 32, 32, rng.choice((1, 2)), rng.randrange(9), rng.choice((True, False))]
        lora = rng.choice(("none", "LoRA of this visit"))
        regions = [*rng.choices(TEXTS, k=4), *rng.choices(BOXES, k=4)]
        good = {
            "/generate": [model, prompt, pattern, rng.choice((0, 0.5)), *size, lora],
            "/edit": [model, *rng.choices(TEXTS, k=2), 0.8, *size, *rng.choices((0, 1, 2.5, -1), k=8), lora],
            "/regions": [model, prompt, *regions, 0.2, *rng.choices((True, False), k=2), 1, 0, *size],
            "/look_inside": [model, prompt, rng.random(), rng.random(), *size],
            "/inside": rng.choices(("0", "1", "all heads", "99"), k=3),
            "/fine_tune": ["nowhere", rng.choice(TEXTS), pattern, 1, 2, rng.choice((1e-3, 9)), prompt, *size],
            "/estimate": [model, pattern, *size[:3]],
            "/map": [rng.choice(TEXTS)],
            "/stop": [],
        }
        name = rng.choice(("/generate", *good))
        good = good[name]
        for _ in range(rng.randrange(3)):
            if good:
                good[rng.randrange(len(good))] = rng.choice(anything)
        yield name, good


def first_calls(models):
    """One good call of each kind on each model: what is loaded on first use is loaded then."""
    for model in models:
        size = {"frames": 5, "height": 32, "width": 32, "steps": 1, "seed": 0}
        yield {"api_name": "/generate", "model": model, "prompt": "a red circle", **size}
        yield {"api_name": "/edit", "model": model, "source": "a red circle", "edit": "a blue circle", **size}
        yield {"api_name": "/regions", "model": model, "prompt": "a red circle", "box_1": "0 0 1 1", **size}
        yield {"api_name": "/look_inside", "model": model, "prompt": "a red circle", **size}
        yield {"api_name": "/inside", "step": "0", "layer": "0", "head": "all heads"}


def memory():
    gc.collect()
    return psutil.Process().memory_info().rss


def test_random_and_hostile_calls(served):
    address, models = served
    client, ok = gradio_client.Client(address, verbose=False), 0
    for first in first_calls(models):
        client.predict(**first)
    before = memory()
    for number, (name, arguments) in zip(range(CALLS), calls(models, 0), strict=False):
        try:
            client.predict(*arguments, api_name=name)
            ok += 1
        except (gradio_client.exceptions.AppError, ValueError, TypeError, OverflowError) as error:
            told = str(error)
            assert "Traceback" not in told and "root:" not in told, (name, arguments)
        if number % 100 == 0:
            print(number, (memory() - before) >> 20, "MB more")
    assert ok > CALLS / 10
    assert memory() - before < GROWTH
