"""Figures of InternVL -> Markdown."""

from __future__ import annotations

from .report import table

TEXTS = {
    "ours": "ours: by length, in batches",
    "one by one": "one by one",
    "padded": "each filled up to 80 tokens, 16 at a time",
}
SENTENCES = {
    "ours": "ours: the sentences of all labels together",
    "padded": "label by label, each sentence filled up to 80 tokens",
}
PICTURES = {"ours": "ours: in batches", "one by one": "one by one"}
RANKING = {
    "ours": "ours, the best 10",
    "all": "ours, all of them",
    "topk": "torch's `topk`, the best 10",
    "loop": "a Python loop over the vectors, then `sorted`",
}
HEADS = ["seconds of CPU time", "ours / this", "by the wall clock"]


def markdown(results: dict) -> str:
    """What is measured so far, as a page's part."""
    sections = {
        "sizes": _about,
        "texts": _texts,
        "zeroshot": _zeroshot,
        "pictures": _pictures,
        "ranking": _ranking,
        "folder": _folder,
        "profiles": _profiles,
    }
    return "\n\n".join(section(results) for needed, section in sections.items() if needed in results) + "\n"


def ratio(ways: dict, name: str, clock: str = "cpu") -> float:
    """Ours / another way."""
    return ways["ours"][clock] / ways[name][clock]


def anew(folder: dict, clock: str = "cpu") -> float:
    """Seconds that embedding all pictures of the folder seen before would take, by those that were embedded."""
    return folder["new"][clock] / folder["new"]["pictures"] * folder["seen"]["pictures"]


def _compared(ways: dict, name: str) -> list[str]:
    """The cells under `HEADS`."""
    seconds = ways[name]["cpu"]
    ratios = ["", ""] if name == "ours" else [f"**{ratio(ways, name):.3f}**", f"{ratio(ways, name, 'wall'):.3f}"]
    return [f"{seconds:.2f}" if seconds >= 1 else f"{seconds:.4f}", *ratios]


def _differ(way: dict) -> str:
    return f"{way['differ']:.1e}" if way["differ"] else "0"


def _encoded(ways: dict, titles: dict[str, str]) -> str:
    rows = [
        [title, str(ways[name]["rows"]), *_compared(ways, name), _differ(ways[name])] for name, title in titles.items()
    ]
    return table(["what", "rows of the LLaMA", *HEADS, "vectors differ by"], rows, 1)


def _about(results: dict) -> str:
    machine, sizes, whole = results["machine"], results["sizes"], results["whole"]
    return (
        f"Measured on {machine['processor']}, {results['threads']} thread{'s' if results['threads'] > 1 else ''}, "
        f"{machine['memory'] / 2**30:.0f} GiB of memory, {machine['system']}, Python {machine['python']}, torch "
        f"{machine['torch']}; "
        f"medians of {results['repeat']} rounds. Random weights in float32: a LLaMA of {sizes['text_layers']} "
        f"layers, {sizes['text_width']} wide "
        f"(the published one: {whole['text_layers']}, {whole['text_width']}), and a tower of {sizes['layers']} "
        f"layers, {sizes['width']} wide "
        f"({whole['layers']}, {whole['width']})."
    )


def _texts(results: dict) -> str:
    of = results["texts"]
    return (
        f"### {results['amounts']['texts']} labels\n\nOf one to six words in fourteen languages, {of['tokens']} "
        "tokens with the prefix and both "
        "ends.\n\n" + _encoded(of["ways"], TEXTS)
    )


def _zeroshot(results: dict) -> str:
    of, labels = results["zeroshot"], results["amounts"]["labels"]
    return (
        f"### Labels in {of['templates']} templates\n\n{labels} labels, {labels * of['templates']} sentences, "
        f"{of['tokens']} tokens; the vector "
        f"of a label is the mean of its sentences'. Asked for once more, ours takes {of['ways']['again']['cpu']:.4f} "
        "seconds: the last labels' "
        "vectors are kept.\n\n" + _encoded(of["ways"], SENTENCES)
    )


def _pictures(results: dict) -> str:
    amounts, modes = results["amounts"], results["pictures"]
    rows = [
        [
            mode,
            title,
            *_compared(ways, name),
            f"{amounts['pictures'] / ways[name]['cpu']:.1f}",
            f"{ways[name]['peak'] / 1e6:.0f}",
            _differ(ways[name]),
        ]
        for mode, ways in modes.items()
        for name, title in PICTURES.items()
    ]
    more = {clock: modes["G"]["ours"][clock] / modes["C"]["ours"][clock] for clock in ("cpu", "wall")}
    return (
        f"### {amounts['pictures']} pictures\n\nOf {amounts['size'][1]} x {amounts['size'][0]}, in memory. Mode G "
        f"takes **{more['cpu']:.2f}** "
        f"times as long as mode C here ({more['wall']:.2f} by the wall clock). The peak is what torch holds beside "
        "weights and pictures, in MB."
        "\n\n" + table(["mode", "what", *HEADS, "pictures/s of CPU time", "peak", "vectors differ by"], rows, 2)
    )


def _ranking(results: dict) -> str:
    amounts = results["amounts"]
    rows = [[title, *_compared(results["ranking"], name)] for name, title in RANKING.items()]
    return (
        f"### The order of {amounts['vectors']} vectors\n\nOf {amounts['width']} numbers each, by their likeness to "
        "one; they are in memory. All "
        "ways find the same ten.\n\n" + table(["what", *HEADS], rows, 1)
    )


def _folder(results: dict) -> str:
    of = results["folder"]
    seen, new = of["seen"], of["new"]
    rows = [
        [what, str(pictures), f"{cpu:.1f}", f"{wall:.1f}"]
        for what, pictures, cpu, wall in (
            ("seen before: names, times and vectors are read", seen["pictures"], seen["cpu"], seen["wall"]),
            ("new: files are read and pictures embedded, mode C", new["pictures"], new["cpu"], new["wall"]),
            ("so many new ones, by arithmetic", seen["pictures"], anew(of), anew(of, "wall")),
        )
    ]
    return (
        f"### A folder of {seen['pictures']} pictures that was seen before\n\nSeen before / new: "
        f"**{seen['cpu'] / anew(of):.5f}** "
        f"({seen['wall'] / anew(of, 'wall'):.5f} by the wall clock). The vectors take {of['bytes'] / 1e6:.0f} MB on "
        "the disk.\n\n" + table(["what", "pictures", "seconds of CPU time", "by the wall clock"], rows, 1)
    )


def _profiles(results: dict) -> str:
    def operations(title: str, profile: list[dict]) -> str:
        rows = [
            [f"`{row['operation']}`", str(row["calls"]), f"{row['seconds']:.2f}", f"{row['share']:.0%}"]
            for row in profile
        ]
        return f"Ours, {title}:\n\n" + table(["operation", "calls", "seconds", "share"], rows, 1)

    return (
        "### Where the time goes\n\nBy the wall clock, with the profiler running, which takes time itself.\n\n"
        + "\n\n".join(operations(title, profile) for title, profile in results["profiles"].items())
    )
