"""What a launch passes beside its tensors."""

import subprocess
import sys

SETTINGS = {
    "backends.cuda.matmul.allow_tf32 = True": "tf32 ieee",
    "set_float32_matmul_precision('highest')": "ieee ieee",
    "backends.cuda.matmul.fp32_precision = 'tf32'": "tf32 ieee",
    "backends.cuda.matmul.fp32_precision = 'none'": "ieee ieee",
    "backends.fp32_precision = 'tf32'": "tf32 ieee",
}


def test_tf32_where_pytorch_is_told_to_take_it():
    """In a process of its own: once the newer setting is used, PyTorch cannot read the older one again."""
    lines = ["import torch", "from dattn.kernels.options import precision"]
    for setting in SETTINGS:
        lines += [f"torch.{setting}", "print(precision(torch.float32), precision(torch.bfloat16))"]
    said = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert said.stdout.splitlines() == list(SETTINGS.values()), said.stderr
