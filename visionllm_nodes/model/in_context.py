"""In-context tasks: an image is asked for what other images mark.

Source: upstream's mmic_mask.py and `num_splits` of modeling_visionllmv2.py. Region k is read in image k, the decoder
looks at the last image. Upstream only trained this: it publishes neither its words (see `prompt_templates.in_context`)
nor an evaluation. Its masks are padded to a square also where images are squeezed into one; here they are squeezed as
the images are, which is the same for square images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..detections.results import Detections
from . import decoding, prompt_templates
from .image_inputs import ImageLike
from .prefill import ImageView, count_image_tokens, layer_progress, load_weights, tokenize_prompt
from .selection import Limits
from .special_tokens import PATCH, REGION
from .super_link import gather_queries
from .visionllm import Prompt
from .visionllm_loader import LoadedVisionLLM

LABEL = "example"


@torch.no_grad()
def detect_like_examples(
    loaded: LoadedVisionLLM,
    image: ImageLike,
    examples: Sequence[ImageLike],
    region_masks: torch.Tensor,
    limits: Limits,
    *,
    masks: bool = True,
) -> Detections:
    """Detect what the examples mark, one region each: bool [examples, S, S] at the tower's size, see regions.py.

    All regions together are one question; upstream asks for a single object (`Limits(max_detections=1)`). Raises
    ValueError for no example, and for more images than are read together.
    """
    for name in ("grounding", "region_encoder"):
        decoding.require_part(loaded, name)
    views = [ImageView(loaded, each) for each in (*examples, image)]
    canvas = decoding.grounding_canvas(loaded, views[-1])
    turn = prompt_templates.in_context(len(examples))
    input_ids = tokenize_prompt(loaded, [turn], [count_image_tokens(loaded, view) for view in views])
    load_weights(loaded, views, len(input_ids), canvas.memory)
    features = [loaded.model.encode_images(view.views.to(loaded.device, loaded.dtype)) for view in views]
    regions = [
        loaded.model.encode_regions(view.views[-1].to(loaded.device, loaded.dtype), seen, mask[None].to(loaded.device))
        for view, seen, mask in zip(views[:-1], features[:-1], region_masks, strict=True)
    ]
    links = loaded.model.super_link.links(input_ids, loaded.token_ids)
    end = links[-1].start + links[-1].count
    prompt = Prompt(input_ids[:end], [of_image.tokens for of_image in features], torch.cat(regions), links)
    (states,), _ = loaded.model.prefill(
        [prompt],
        loaded.token_ids[PATCH],
        loaded.token_ids[REGION],
        dtype=loaded.dtype,
        device=loaded.device,
        after_layer=layer_progress(loaded, 1),
    )
    queries = gather_queries(loaded.check_finite(states, "hidden states"), links)
    return decoding.detect(loaded, canvas, queries, [LABEL], limits, masks=masks)
