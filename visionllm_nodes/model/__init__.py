"""VisionLLM v2 as plain torch modules that take ComfyUI's `operations`.

Source: OpenGVLab/VisionLLM, folder VisionLLMv2 (Wu et al. 2024, "VisionLLM v2: An End-to-End Generalist Multimodal
Large Language Model for Hundreds of Vision-Language Tasks", arXiv 2406.08394). `visionllm_files` and
`visionllm_loader` open its files, `perception` and `answers` ask it. Modules have the published names; `keys` holds
what differs.

Oddities of upstream that its weights were trained or are run with, and that are therefore kept, each where it happens:

- pose_groups: attention between keypoint groups is masked in blocks of 68 where the groups have 69 tokens, so neighbors
  leak into each other;
- pose_decoder: the inverse sigmoid cuts at 1e-3 (grounding: 1e-5), and moves are added to hidden states before the norm
  while answers are read from normed ones;
- image_inputs: the grounding decoder's image is resized as OpenCV does and its sides rounded, the pose decoder's as
  Pillow does and its long side cut;
- region_encoder: the map of the mask goes on growing from level to level instead of starting anew at each;
- internimage: the points of a window are numbered column by column;
- prompt_templates: the prompts' spelling; region names with a number in some tasks and without in others;
- llama_tokenizer: white space around added tokens goes, and both behaviors of `legacy`.

Not kept, because they only harm: masks of a batch mixed between samples; coordinates cut to integers behind an empty
region; 2304 random points of a region (all are used); embeddings put at stale positions for a second tool token;
truncation before the image's tokens are there; masks of six layers of which five are thrown away.
"""
