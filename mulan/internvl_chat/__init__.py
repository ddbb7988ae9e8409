"""InternVL 2.5, 3 and 3.5: chat models that see images, as a CLIP that generates text."""
