"""InternVL 2.5, 3 and 3.5: a language model that is shown pictures, as a CLIP that generates text."""
