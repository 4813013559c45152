"""Runs of the tests, as a user starts them."""

import os
import subprocess
import sys

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dattn.apps.cli import main
from tests.pipelines.tiny import MODELS

FLUX = ["--model", f"{MODELS}/shapes-flux", "--buckets", "32x32", "--rank", "2", "--lora_alpha", "6"]
WEIGHTS = "pytorch_lora_weights.safetensors"


def train(data, output, steps, *more):
    AcceleratorState._reset_state(reset_partial_state=True)  # one run in a process is all that accelerate knows
    words = ["train-lora", *FLUX, "--data", str(data), "--output", str(output), "--max_train_steps", str(steps)]
    return main([*words, "--learning_rate", "1e-2", "--cache_dir", str(data / "cache"), *more])


def same(one, other):
    """Bit for bit."""
    return _alike(one, other, torch.equal)


def near(one, other, share):
    """Weights whose differences have that share of their norm at most."""
    return _alike(one, other, lambda a, b: (a - b).norm() <= share * b.norm())


def _alike(one, other, are):
    first, second = (load_file(folder / WEIGHTS) for folder in (one, other))
    return first.keys() == second.keys() and all(are(first[name], second[name]) for name in first)


def launched(processes, data, output, steps, *more, module="dattn.apps.train_lora", env=()):
    """A run in processes of its own: one by accelerate, several by torchrun, as accelerate wants MPI for CPUs."""
    own = ["-m", module, *FLUX, "--data", str(data), "--cache_dir", str(data / "cache")]
    own += ["--output", str(output), "--max_train_steps", str(steps), "--learning_rate", "1e-2", *more]
    one = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    one += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    several = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [sys.executable, "-m", *(one if processes == 1 else several), *own],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
