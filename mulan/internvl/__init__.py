"""InternVL-C and -G: images and texts as vectors that can be compared (Chen et al. 2023, arXiv 2312.14238)."""
