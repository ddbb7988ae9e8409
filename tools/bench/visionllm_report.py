"""Figures of VisionLLM v2 -> goals and Markdown."""

from __future__ import annotations

from .report import goal, table

SECOND_GOAL, MASKS_GOAL = 0.1, 0.05
GOAL_VIEWS = "5"
PARTS = {
    "deformable": "deformable attention, one layer",
    "masks": "masks",
    "masks_with_features": "masks, and the convolutions before them",
}
PROFILES = {"second": "The second question, 5 views, with everything around it", "answer": "An answer in words"}


def second_ratio(results: dict, views: str, clock: str = "cpu") -> float:
    """Of the language model: the second question / the first."""
    of = results["asking"][views]
    return of["second"]["language"][clock] / of["first"]["language"][clock]


def markdown(results: dict) -> str:
    """What is measured so far, as a page's part."""
    sections = (
        (_about, "sizes"),
        (_asking, "asking"),
        (_whole, "asking"),
        (_writing, "writing"),
        (_parts, "parts"),
        (_profiles, "profiles"),
    )
    return "\n\n".join(section(results) for section, needed in sections if needed in results) + "\n"


def _about(results: dict) -> str:
    machine, sizes, whole = results["machine"], results["sizes"], results["whole"]
    return (
        f"Measured on {machine['processor']}, {results['threads']} thread{'s' if results['threads'] > 1 else ''}, "
        f"{machine['memory'] / 2**30:.0f} GiB of memory, {machine['system']}, Python {machine['python']}, torch "
        f"{machine['torch']}; "
        f"medians of {results['repeat']} rounds. Random weights in float32: the language model is {sizes['width']} "
        "wide "
        f"(feed-forward {sizes['feed_forward']}) and has {sizes['layers']} of {whole['language']} layers, the vision "
        "tower "
        f"{sizes['tower_layers']} of {whole['tower']}; the grounding decoder is whole "
        f"({sizes['decoder_layers']} layers, {sizes['queries']} queries)."
    )


def _asking(results: dict) -> str:
    rows = []
    for views, of in results["asking"].items():
        rows.append(
            [
                views,
                str(of["tokens"]["begin"]),
                str(of["tokens"]["question"]),
                *(f"{of[order]['language']['cpu']:.2f}" for order in ("first", "second")),
                f"**{second_ratio(results, views):.3f}**",
                f"{second_ratio(results, views, 'wall'):.3f}",
                goal(second_ratio(results, views), SECOND_GOAL) if views == GOAL_VIEWS else "",
                f"{of['differ']:.1e}",
            ]
        )
    heads = [
        "views",
        "tokens up to the picture's end",
        "of the question",
        "first",
        "second",
        "second / first",
        "by the wall clock",
        "goal",
        "states differ by",
    ]
    return (
        "### The second question about a picture: the language model\n\nSeconds of CPU time in the language model. "
        "The first question passes "
        "over system and picture and over its own words, the second over its own words alone.\n\n"
        + table(heads, rows, 0)
    )


def _whole(results: dict) -> str:
    sizes, whole = results["sizes"], results["whole"]
    deeper = {
        "tower": whole["tower"] / sizes["tower_layers"],
        "language": whole["language"] / sizes["layers"],
        "grounding": 1,
    }
    rows = []
    for views, of in results["asking"].items():
        if not of["second"]["grounding"]["wall"]:  # asked without the decoder
            continue
        full = {}
        for order in ("first", "second"):
            parts = {part: of[order][part]["cpu"] for part in deeper}
            all_of_it = of[order]["whole"]["cpu"]
            rest = all_of_it - sum(parts.values())
            full[order] = rest + sum(seconds * deeper[part] for part, seconds in parts.items())
            rows.append(
                [
                    views,
                    order,
                    *(f"{seconds:.2f}" for seconds in (*parts.values(), rest, all_of_it)),
                    f"{of[order]['whole']['wall']:.2f}",
                    f"{full[order]:.0f}",
                    f"{full[order] / full['first']:.2f}",
                ]
            )
    heads = [
        "views",
        "question",
        "vision tower",
        "language model",
        "decoder",
        "rest",
        "whole",
        "by the wall clock",
        f"with {whole['language']} and {whole['tower']} layers",
        "/ the first",
    ]
    return (
        "### The same, with everything around it\n\n`ground` with a mask, as the node calls it; seconds of CPU time. "
        "The last two columns are by "
        "arithmetic: what was measured, and the layers left out.\n\n" + table(heads, rows, 0)
    )


def _writing(results: dict) -> str:
    writing = results["writing"]
    limit, naive, count = writing["limit"], writing["naive_limit"], writing["questions"]

    def speed(name: str, tokens: int, clock: str) -> float:
        return tokens / writing[name][clock]

    def row(what: str, name: str, tokens: int, beside: tuple[str, int] | None = None, same: str = "") -> list[str]:
        faster = [speed(name, tokens, clock) / speed(*beside, clock) if beside else None for clock in ("cpu", "wall")]
        return [
            what,
            *(f"{speed(name, tokens, clock):.2f}" for clock in ("cpu", "wall")),
            f"**{faster[0]:.1f}**" if beside else "",
            f"{faster[1]:.1f}" if beside else "",
            same,
        ]

    rows = [
        row("no cache: a pass over everything for each token", "naive", naive),
        row("with the cache", "cached", limit, ("naive", naive), "yes" if writing["same_text"] else "**no**"),
        row(f"{count} questions, one by one", "apart", count * limit),
        row(
            f"{count} questions side by side",
            "together",
            count * limit,
            ("apart", count * limit),
            f"{writing['same_texts']} of {count}",
        ),
    ]
    return (
        f"### Answers in words\n\nAbout a picture of one view that is remembered, {limit} tokens an answer, the pass "
        "over the question included; "
        f"the loop without a cache writes {naive}. The second row is beside the first, the fourth beside the third.\n\n"
        + table(
            ["what", "tokens/s of CPU time", "by the wall clock", "times faster", "by the wall clock", "same text"],
            rows,
            1,
        )
    )


def _parts(results: dict) -> str:
    rows, levels = [], results["canvas"]["levels"]
    for name, part in results["parts"].items():
        ours, theirs = part["ours"], part["theirs"]
        held = ours["peak"] / theirs["peak"]
        rows.append(
            [
                PARTS[name],
                f"{theirs['cpu']:.2f}",
                f"{ours['cpu']:.2f}",
                f"**{ours['cpu'] / theirs['cpu']:.2f}**",
                f"{ours['wall'] / theirs['wall']:.2f}",
                f"{theirs['peak'] / 1e6:.0f}",
                f"{ours['peak'] / 1e6:.0f}",
                f"**{held:.3f}**",
                goal(held, MASKS_GOAL) if name == "masks" else "",
                f"{part['differ']:.1e}",
            ]
        )
    high, wide = levels[0]
    cells = sum(rows * columns for rows, columns in levels)
    heads = [
        "what",
        "theirs",
        "ours",
        "ours / theirs",
        "by the wall clock",
        "their peak",
        "our peak",
        "ours / theirs",
        "goal",
        "results differ by",
    ]
    return (
        f"### Parts of the decoder\n\nA canvas of {8 * high} x {8 * wide}: {cells} cells in {len(levels)} levels, "
        "masks of "
        f"{2 * high} x {2 * wide}. Seconds of CPU time; the peak is what torch holds beyond the inputs, in MB.\n\n"
        + table(heads, rows, 1)
    )


def _profiles(results: dict) -> str:
    def operations(name: str, title: str) -> str:
        rows = [
            [f"`{row['operation']}`", str(row["calls"]), f"{row['seconds']:.2f}", f"{row['share']:.0%}"]
            for row in results["profiles"][name]
        ]
        return f"{title}:\n\n" + table(["operation", "calls", "seconds", "share"], rows, 1)

    return (
        "### Where the time goes\n\nBy the wall clock, with the profiler running, which takes time itself.\n\n"
        + "\n\n".join(operations(name, title) for name, title in PROFILES.items())
    )
