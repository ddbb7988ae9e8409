"""Images without a model: tiling, files, video frames, and text drawn in any script."""
