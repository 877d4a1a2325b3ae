"""Audits a dataset: duplicates and near-duplicates, contradictory labels, and images that show no face."""

from collections.abc import Mapping
from typing import Any

from fer_jax.data import audit as audit_lib
from fer_jax.data import ferplus, files
from fer_jax.data.load import load_published, load_votes
from fer_jax.system.terminal import Terminal
from fer_jax.workdir import audit_report
from fer_jax.workdir.paths import Workdir


def audit(options: Mapping[str, Any], workdir: Workdir) -> None:
    """Audits the dataset that `options`, a `config.dataset`, describes, in the splits that its files define.

    Prints a table, and writes audit.json and audit.png to the workdir. Raises UserError as `load_published`,
    `ferplus.read` and `ferplus.check` do.
    """
    terminal = Terminal(is_primary=True)
    dataset = load_published(options, terminal)
    terminal.say(f"Data set: {dataset.describe()}")
    is_non_face = None
    if options["ferplus"]:
        votes = load_votes(options)
        terminal.say(f"{ferplus.check(files.all_as(dataset, 'train'), votes)}.")
        is_non_face = ferplus.non_faces(votes.votes)
    findings = audit_lib.audit(
        dataset,
        is_non_face=is_non_face,
        progress=lambda tiles: terminal.progress(tiles, title="Comparing the images", total=len(tiles)),
    )
    summary = audit_lib.summarize(findings)
    # Printed before it is written, so that the findings aren't lost if the workdir can't be written.
    terminal.say("\n" + audit_report.table(summary))
    with workdir.time_limit():
        audit_report.write(summary, findings, workdir.path)
    terminal.say(f"\nAll findings: {workdir.path / 'audit.json'}; the worst as pictures: {workdir.path / 'audit.png'}")
