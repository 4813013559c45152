"""The ``dattn`` command: finds the subcommand's module and turns bad input into one line and exit code 2."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "generate": ("generate", "make a video or picture with a pattern, and with stock attention beside it"),
    "compare": ("compare", "several patterns and stock attention, same seed, side by side"),
    "evaluate": ("evaluate", "the quality table: patterns x lengths, judged; goes on where it stopped"),
    "probe": ("probe", "how near patterns come to dense attention inside a model"),
    "controls": ("controls", "what controls do to the demo models, judged before and after"),
    "plot": ("plot", "a picture of the mask of a pattern"),
    "simulate": ("simulate", "what a pattern computes at a grid, and windows for a wanted density"),
    "patterns": ("patterns", "patterns and operators, their fields and defaults"),
    "models": ("models", "the models that can be made sparse"),
    "doctor": ("doctor", "what is installed here, and what would run"),
    "tune": ("tune", "the right attention for a model, a clip and this machine, by measuring"),
    "recipes": ("recipes", "recipes that are shipped, and what is in one"),
    "train-lora": ("train_lora", "fine-tune a model with LoRA, under any attention"),
    "train-gates": ("train_gates", "let a pipeline teach gates that choose blocks or heads"),
    "demo": ("demo", "the web demo: see what attention does"),
    "bench": ("benchmark", "how fast the kernels are"),
}
"""Name on the command line: (module of dattn.apps with a ``main(argv)``, what it does)."""

EXAMPLES = """\
examples:
  dattn generate --prompt "a red circle moving right"
  dattn generate --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompt "a fox in the snow" --pattern radial
  dattn plot --pattern "Radial(decay=0.2)" --grid 21x30x52 -o mask.png
  dattn COMMAND --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dattn``.

    Args:
        argv: the words after ``dattn``; None takes the process's own.

    Returns:
        Exit code: 0 done, 1 a check found something wrong, 2 bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        return _version()
    if words[0] not in COMMANDS:
        return _complain("dattn", f"unknown command {words[0]!r}: use one of {', '.join(COMMANDS)}")
    return _run(words[0], words[1:])


def usage() -> str:
    """The help text of ``dattn`` itself."""
    rows = "\n".join(f"  {name:<11} {what}" for name, (_, what) in COMMANDS.items())
    return f"usage: dattn COMMAND [options]\n\n{rows}\n\n{EXAMPLES}"


def _run(name: str, words: list[str]) -> int:
    trace = "--traceback" in words
    try:
        module = importlib.import_module(f"dattn.apps.{COMMANDS[name][0]}")
        return module.main([word for word in words if word != "--traceback"]) or 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        if trace:
            raise
        return _complain(f"dattn {name}", error)


def _complain(command: str, problem: object) -> int:
    print(f"{command}: {' '.join(str(problem).split())}", file=sys.stderr)
    return 2


def _version() -> int:
    from importlib.metadata import version

    print(f"dattn {version('dattn')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
