"""``dattn train-lora`` under FSDP in CPU processes of torchrun.

accelerate takes its way to FSDP where processes have GPUs; here they are said to, while their device stays the CPU.
"""

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from dattn.apps.cli import main

if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    sys.exit(main(["train-lora", *sys.argv[1:]]))
