"""What `dev.py eval` measures: a module each, whose `evaluation(comfyui, cpu, output, options)` writes a table."""
