"""The emoji world: 130 drawn things with their names in 113 languages; tiny models learn to draw and to name them."""
