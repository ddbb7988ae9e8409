"""`python -m custom_nodes.mulan-nodes.mulan.training`, from ComfyUI's folder."""

import sys

from .trainer import main

if __name__ == "__main__":
    sys.exit(main())
