"""One module per command of dev.py: its first line is the help text, `add_arguments` and `run` do the rest.

`FORWARDS = True`: arguments that `add_arguments` does not know go to `run` as `options.rest`.
`NEEDS_TINY_MODELS = True`: the tiny models are written into ComfyUI's models folder first.
"""
