"""Facts about this machine that are read without a library."""

import pytest

from fer_jax import machine


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16", {"fpu", "avx2", "avx512_bf16"}),
        ("Features\t: fp asimd bf16", {"fp", "asimd", "bf16"}),
        ("vmx flags\t: vnmi", set()),
    ],
)
def test_a_processor_s_flags_are_those_alone(line, expected, tmp_path):
    # The clock speed differs at each read. If it were a flag, what is cached by the flags would not be found again.
    cpu = f"processor\t: 0\nmodel name\t: A CPU with avx2\ncpu MHz\t\t: 2599.998\n{line}\n"
    (tmp_path / "cpuinfo").write_text(cpu + "\n" + cpu)
    assert machine.processor_flags(tmp_path / "cpuinfo") == expected


def test_without_linux_a_processor_has_no_flags(tmp_path):
    assert machine.processor_flags(tmp_path / "absent") == set()
