"""Limits on what one input may ask for. Memory and time are bounded by these numbers, never by the input.

They are generous: each is several times what people use, and errors state them.
"""

from __future__ import annotations

MAX_IMAGE_PIXELS = 2**27  # 134 million: of one image, in a file or on a wire (16384 x 8192)
MAX_TEXT_LENGTH = 2**20  # characters of one text input
MAX_JSON_LENGTH = 2**26  # characters of a JSON text or file: a document of detections with masks
MAX_CONDITIONING_BYTES = 2**32  # of a saved conditioning, which is read whole; a prompt of SDXL takes 1 MB
MAX_REMEMBERED_BYTES = 2**29  # of encoded prompts on disk: about 2000 of SD1.5, 500 of SDXL
MAX_FILE_NAME = 255  # bytes of a file name: what most file systems hold
MAX_PROMPT_TOKENS = 150000  # of one prompt or text for MuLan and InternVL
MAX_PROMPT_WINDOWS = 2048  # of one prompt: contexts of 0.8 GB for SD1.5, 2 GB for SDXL
MAX_PROMPTS = 10000  # prompts of one list
MAX_WINDOWS = MAX_PROMPTS + MAX_PROMPT_WINDOWS  # of all of them: contexts of 4.5 GB for SD1.5, 12 GB for SDXL
MAX_NAMES = 2000  # names of objects in one question
MAX_NAME_LENGTH = 1000  # characters of one such name
MAX_REGIONS = 1000  # regions of one image
MAX_ANSWER_PLACES = 10000  # boxes and points that are read from one text of a model
MAX_LABELS = 10000  # labels of a zero-shot classification
MAX_LABEL_SENTENCES = 200000  # labels x templates
MAX_RESULT_PIXELS = 2**29  # pixels of all images that one node reads from files and returns: 6 GB
MAX_SCORES = 2**28  # images x labels: 2 GB with both kinds of score
MAX_MASK_PIXELS = 5 * 2**28  # of all masks made at once, 5.4 GB as float32: 320 frames of 1080p, each with its union
MAX_POSITION = 2**24  # pixels of a keypoint from the corner of its image: drawing counts in whole numbers
MAX_AREAS = 100_000  # boxes around the separate areas of one mask
MAX_QUESTION_TOKENS = 8192  # tokens of a question or conversation, image tokens not counted
MAX_CONTEXT_TOKENS = 2**16  # the same with image tokens: more than twenty large images in one question
PREFILL_TOKENS = 4096  # of them, that a language model reads at a time: its attention mask is so high
