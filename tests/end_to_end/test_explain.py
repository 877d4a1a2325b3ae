"""--explain: the errors of which a network was most certain, drawn beside its report."""

import numpy as np
import pytest
from PIL import Image

from fer_jax import evaluate, explain
from fer_jax.system.signals import StopRequest
from fer_jax.workdir.paths import Workdir
from tests.support import commands


def test_the_errors_of_each_class_come_by_certainty():
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.7, 0], [0.1, 0.9, 0], [0.3, 0.6, 0.1]])
    rows = explain.most_certain_errors(probabilities, np.array([0, 0, 0, 1, 2]), 5)
    assert {label: found.tolist() for label, found in rows.items()} == {0: [1, 2], 1: [], 2: [4]}
    rows = explain.most_certain_errors(probabilities, np.array([0, 0, 0, 1, 2]), 1)
    assert rows[0].tolist() == [1]


def test_a_sheet_of_errors_is_written_beside_the_report(finished, capsys):
    asked = {"split": "validation", "checkpoint": "best", "strict": False, "stop": StopRequest()}
    evaluated = evaluate.evaluate(None, Workdir(finished), **asked)
    explain.draw_errors(evaluated, number=2, workdir=Workdir(finished))
    picture = Image.open(finished / "report" / "errors_validation.png")
    assert picture.width > 400
    assert "most certain errors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=resnet50", "--explain=3"], "--explain goes with --mode=evaluate"),
        (["--mode=evaluate", "--weights=a.safetensors", "--explain=3"], "--workdir is missing: where is the sheet"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, message):
    status, _, err = commands.run(commands.main(*arguments))
    assert status == 2
    assert message in err
