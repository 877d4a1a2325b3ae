"""Writes the findings of an audit: a table, audit.json with each image, and audit.png with the worst of them."""

import json

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from fer_jax.data.audit import Findings
from fer_jax.data.dataset import CLASS_NAMES

# Images per class of FER-2013 as it was published, in the order of CLASS_NAMES.
_OFFICIAL = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "validation": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}
_COLUMNS = 12  # images side by side in audit.png
_ROWS = 2  # rows of images for each kind of finding, at most


def table(summary: dict) -> str:
    """Returns the summary of an audit (see `data.audit.summarize`) as a table for people to read."""
    equal, near = summary["equal"], summary["near"]
    more = "" if near["is_complete"] else "more than "
    lines = _class_counts(summary)
    lines += [
        "",
        f"  Equal images: {equal['images']:,} in {equal['groups']:,} groups",
        f"    across splits            {equal['groups_across_splits']:>7,} groups",
        f"    with different labels    {equal['groups_with_different_labels']:>7,} groups",
        f"  Nearly equal images (correlation {near['least_correlation']} or more): {more}{near['pairs']:,} pairs in "
        f"{near['groups']:,} groups",
        f"    across splits            {near['pairs_across_splits']:>7,} pairs",
        f"    with different labels    {near['pairs_with_different_labels']:>7,} pairs",
        f"    mirrored                 {near['mirrored_pairs']:>7,} pairs",
    ]
    if summary["also_in_train"]:
        lines.append("  Images that are also in train")
    for split, counts in summary["also_in_train"].items():
        lines.append(
            f"    {split:<10} {counts['equal']:>6,} equal, {counts['near']:,} more nearly equal: {counts['share']:.1%}"
        )
    lines.append(f"  Images of one grey value: {_by_split(summary['constant'])}")
    if summary["non_faces"] is not None:
        lines.append(f"  No faces to over half of FER+'s ten people: {_by_split(summary['non_faces'])}")
    return "\n".join(lines)


def _class_counts(summary: dict) -> list[str]:
    counts, names = summary["class_counts"], summary["class_names"]
    is_fer2013 = tuple(names) == CLASS_NAMES and counts.keys() <= _OFFICIAL.keys()
    width = max(10, 1 + max(map(len, names)))
    lines = [f"  {'class':<{width}}" + "".join(f"{s:>12}{'FER-2013' if is_fer2013 else '':>10}" for s in counts)]
    for label, name in enumerate(names):
        cells = [
            f"{of_split[label]:>12,}" + (f"{_OFFICIAL[split][label]:>10,}" if is_fer2013 else " " * 10)
            for split, of_split in counts.items()
        ]
        lines.append(f"  {name:<{width}}" + "".join(cells))
    totals = [
        f"{sum(of_split):>12,}" + (f"{sum(_OFFICIAL[split]):>10,}" if is_fer2013 else " " * 10)
        for split, of_split in counts.items()
    ]
    return [line.rstrip() for line in [*lines, f"  {'all':<{width}}" + "".join(totals)]]


def _by_split(images: list[dict]) -> str:
    counts = {}
    for image in images:
        counts[image["split"]] = counts.get(image["split"], 0) + 1
    listed = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    return f"{len(images):,}{f' ({listed})' if images else ''}"


def write(summary: dict, findings: Findings, folder: epath.Path) -> None:
    """Writes audit.png and audit.json into `folder`, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "audit.png").open("wb") as file:
        _draw(summary, findings).savefig(file, format="png", dpi=110)
    official = {split: list(counts) for split, counts in _OFFICIAL.items()}
    text = json.dumps({**summary, "class_counts_of_fer2013": official}, indent=1)
    (folder / "audit.json").write_text(text + "\n")


def _draw(summary: dict, findings: Findings) -> Figure:
    """Returns a figure of the worst findings of each kind: pairs side by side, those across splits first."""
    kinds = [
        ("Equal images with different labels", "pairs", _different_labels(findings)),
        ("Nearly equal images with different labels", "pairs", _nearly_equal_with_different_labels(findings)),
        ("Images of one grey value", "images", findings.constant),
    ]
    if findings.non_faces is not None:
        # Images of one grey value are already shown above.
        kinds.append(("No faces to FER+'s people", "images", np.setdiff1d(findings.non_faces, findings.constant)))
    heights = [min(max(-(-len(positions) // _COLUMNS), 1), _ROWS) for *_, positions in kinds]
    figure = Figure(figsize=(_COLUMNS * 1.05, sum(heights) * 1.25 + len(kinds) * 0.3 + 0.3), layout="constrained")
    figure.suptitle(f"{summary['dataset']} ({summary['dataset_fingerprint']})", fontsize=11)
    parts = figure.subfigures(len(kinds), 1, height_ratios=[height * 1.25 + 0.3 for height in heights])
    for part, height, (title, unit, positions) in zip(parts, heights, kinds, strict=True):
        shown, of_a_unit = positions[: _COLUMNS * height], 2 if unit == "pairs" else 1
        how_many = f"{len(shown) // of_a_unit} of {len(positions) // of_a_unit:,} {unit}" if len(shown) else "none"
        part.suptitle(f"{title}: {how_many}", fontsize=10)
        axes = part.subplots(height, _COLUMNS, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, position in zip(axes.flat, shown, strict=False):
            axis.imshow(findings.images[position].mean(axis=2), cmap="gray", vmin=0, vmax=255)
            split, label = findings.split_names[findings.splits[position]], findings.labels[position]
            # The split's name is shortened, so that it doesn't run into the next image's title.
            axis.set_title(
                f"{split[:5]} {findings.rows[position]}\n{findings.dataset.class_names[label]}", fontsize=6.5, pad=2
            )
    return figure


def _different_labels(findings: Findings) -> np.ndarray:
    """Returns the positions of two images with different labels from each contradictory group, one after the other."""
    pairs = []
    for group in findings.equal:
        other = group[findings.labels[group] != findings.labels[group[0]]]
        if len(other):
            pairs.append((group[0], other[-1]))
    # Pairs across splits come first: a wrong label in train does less harm than one that can't be predicted.
    pairs.sort(key=lambda pair: findings.splits[pair[0]] == findings.splits[pair[1]])
    return np.array(pairs, np.int64).reshape(-1)


def _nearly_equal_with_different_labels(findings: Findings) -> np.ndarray:
    near = findings.near
    differ = findings.labels[near.first] != findings.labels[near.second]
    # The pairs are already sorted by their correlation.
    return np.stack([near.first[differ], near.second[differ]], axis=1).reshape(-1)
