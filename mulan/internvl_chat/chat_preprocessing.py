"""Images as InternVL's chat models take them: tiles of 448 pixels (the tower's size), with ImageNet's mean and standard
deviation.

Source: OpenGVLab/InternVL's model cards (``load_image``), which resize with PIL; transformers' processor on torchvision
rounds differently.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..images.tiling import ImageLike, normalize_image, split_into_tiles, to_pixels
from ..internvl.preprocessing import MEAN, STD

MAX_TILES = 12  # without the thumbnail, which is added where there are several


def preprocess_tiles(image: ImageLike, size: int, max_tiles: int = MAX_TILES) -> torch.Tensor:
    """Return an image's tiles [N, 3, size, size] float32: at most `max_tiles`, and where there are several a thumbnail
    of the whole image.

    Raises ValueError for what is no image.
    """
    tiles = split_into_tiles(Image.fromarray(to_pixels(image)), size, max_tiles)
    return torch.stack([normalize_image(np.asarray(tile), MEAN, STD) for tile in tiles])
