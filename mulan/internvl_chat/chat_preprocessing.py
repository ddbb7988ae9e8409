"""Pictures as InternVL's dialogue models see them: tiles of 448 pixels (that of the tower), with the mean and deviation of ImageNet.

Source: OpenGVLab/InternVL's model cards (``load_image``), which resize with PIL; transformers' processor on torchvision rounds otherwise.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..images.tiling import Picture, as_pixels, normalised, tiled
from ..internvl.preprocessing import MEAN, STD

MOST_TILES = 12  # the whole picture, which is added where there are several, is not counted


def tiles_of(picture: Picture, size: int, most: int = MOST_TILES) -> torch.Tensor:
    """-> [N, 3, size, size] float32; at most `most` tiles, and where there are several the whole picture. ValueError for what is no picture."""
    if most < 1:
        raise ValueError(f"the number of tiles is {most}, expected is at least 1")
    return torch.stack(
        [normalised(np.asarray(tile), MEAN, STD) for tile in tiled(Image.fromarray(as_pixels(picture)), size, most)]
    )
