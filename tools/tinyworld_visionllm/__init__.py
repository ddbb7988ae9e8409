"""A tiny VisionLLM v2 that sees coloured shapes: the world, its questions, the trainer, the scores."""
