"""What the examples share: flags, one clear line for what is wrong, and Ctrl-C."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from matplotlib.figure import Figure

from xpnn import Solver, backend, data
from xpnn.backend import Backend
from xpnn.data import Dataset
from xpnn.errors import XpnnError


def at_least(low: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not below `low`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}; received {text!r}")
        return int(text)

    return read


def probability(text: str) -> float:
    try:
        if 0 <= float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number in [0, 1); received {text!r}")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def new_parser(text: str, out: str) -> Parser:
    """Return a parser with the flags that every example has but for --epochs."""
    parser = Parser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="numpy, cupy, torch, array-api-strict or auto")
    parser.add_argument("--dataset", default="digits", choices=["digits", "cifar10"])
    parser.add_argument("--data", help="folder of CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("figures", out), help="the picture, a .png, .pdf or .svg")
    return parser


def read(parser: Parser) -> tuple[argparse.Namespace, Backend, Dataset]:
    """Return the flags, the backend and the images; what is wrong with them ends the program with status 2."""
    args = parser.parse_args()
    if args.data is not None and args.dataset == "digits":
        parser.error(f"argument --data: expected none for digits, which ship with xpnn; received {args.data}")
    try:
        where = backend.get(args.backend).require()
        images = data.load(args.dataset, args.data)
        if getattr(args, "images", None) is not None:
            images = images.take(args.images)
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except XpnnError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    known = Figure().canvas.get_supported_filetypes()
    if args.out.suffix.removeprefix(".") not in known or args.out.is_dir() or not os.access(args.out.parent, os.W_OK):
        parser.error(f"argument --out: expected a .png, .pdf or .svg that can be written; received {args.out}")
    return args, where, images


def train(solver: Solver) -> None:
    """Train; Ctrl-C ends the whole example."""
    solver.train()
    if solver.stop_reason == "interrupted":
        print("interrupted", file=sys.stderr)
        sys.exit(130)
