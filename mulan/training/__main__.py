"""Train a MuLan adapter: `python -m custom_nodes.<folder>.mulan.training --help`, from ComfyUI's folder, in ComfyUI's
Python.
"""

import sys

from .trainer import main

if __name__ == "__main__":
    sys.exit(main())
