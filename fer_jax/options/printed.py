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
        "Options marked * may have another value when a run is resumed.",
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
        "These are all the options of a config. A file in `configs/` or `--config.KEY=VALUE` sets an option; others",
        "have their defaults. When a run is resumed, options that are not *fixed* may have another value, those of",
        "`dataset` if the images, labels and targets stay the same.",
        "",
        "This page is the output of `python -m fer_jax.config`; `--config.help` prints the same table.",
        "",
        "| option | default | value | fixed | |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{key}` | `{default}` | {wanted} | {fixed} | {note} |" for key, default, wanted, fixed, note in _rows()
    ]
    return "\n".join(lines) + "\n"
