"""Formats the table of options as text for a terminal and as the page docs/options.md."""

from fer_jax.options.table import OPTIONS


def _rows() -> list[tuple[str, str, str, str, str]]:
    """Returns (key, default, allowed values, whether a run must keep its value, note) of each option, as text."""
    return [
        (
            key,
            "unset" if option.default is None else str(option.default),
            f"{option.type.__name__}, {option.check.wanted}",
            "see note" if callable(option.changes_results) else "yes" if option.changes_results else "no",
            option.note,
        )
        for key, option in OPTIONS.items()
    ]


def describe_options() -> str:
    """Returns the table as text for a terminal (--config.help)."""
    lines = [
        "The options of a config and their defaults. Set them in a config file or by --config.KEY=VALUE.",
        "A run may go on with another value of those marked *.",
    ]
    section = None
    for key, default, wanted, fixed, note in _rows():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines.append("")
        lines.append(f"{'* ' if fixed == 'no' else '  '}{key} = {default}  ({wanted})\n      {note}")
    return "\n".join(lines)


def options_page() -> str:
    """Returns the table as Markdown (docs/options.md)."""
    lines = [
        "# Options",
        "",
        "Every option of a config. A file in `configs/` sets some, `--config.KEY=VALUE` sets any, and the rest have",
        "these defaults. A run in a workdir can go on with another value of an option that is not *fixed*; with one of",
        "`dataset` where that gives the same images, labels and targets.",
        "Written by `python -m fer_jax.config > docs/options.md`; `--config.help` prints the same.",
        "",
        "| option | default | value | fixed | |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{key}` | `{default}` | {wanted} | {fixed} | {note} |" for key, default, wanted, fixed, note in _rows()
    ]
    return "\n".join(lines) + "\n"
