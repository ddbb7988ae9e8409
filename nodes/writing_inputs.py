"""The inputs of nodes whose model writes an answer."""
from __future__ import annotations

from comfy_api.latest import io


def writing_inputs(limit: int, most: int) -> list[io.Input]:
    """`limit`: the default of max_tokens, `most`: its maximum."""
    return [
        io.Int.Input("max_tokens", default=limit, min=1, max=most, optional=True,
                     tooltip="The answer is cut after so many tokens; one is about a short word."),
        io.Float.Input("temperature", default=0.0, min=0.0, max=2.0, step=0.05, optional=True, advanced=True,
                       tooltip="0: the likeliest answer, always the same. More: freer."),
        io.Float.Input("top_p", default=0.9, min=0.01, max=1.0, step=0.01, optional=True, advanced=True,
                       tooltip="With a temperature: words are drawn from the likeliest that together have this probability."),
        io.Int.Input("seed", default=0, min=0, max=2 ** 64 - 1, control_after_generate=True, optional=True, advanced=True,
                     tooltip="With a temperature: the same seed, the same answer."),
    ]
