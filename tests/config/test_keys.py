"""Keys depend on every input and on the protocol numbers of the steps that they name, and on nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tempertilt.config.keys import PROTOCOLS, key_of


def test_a_key_is_32_hex_digits_and_the_same_in_another_process() -> None:
    key = key_of("examples", "head", b=[1, 2], a={"x": 1.5})
    code = 'from tempertilt.config.keys import key_of; print(key_of("head", "examples", a={"x": 1.5}, b=[1, 2]))'
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert again == key and len(key) == 32 and int(key, 16) >= 0


def test_every_part_of_the_content_counts() -> None:
    contents = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"b": 1}, {"a": 1, "b": 1}, {"a": [1]}]
    assert len({key_of("head", **content) for content in contents}) == len(contents)


@pytest.mark.parametrize("step", sorted(PROTOCOLS))
def test_a_raised_protocol_number_changes_the_keys_of_its_step_alone(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: key_of(name, a=1) for name in PROTOCOLS}
    monkeypatch.setitem(PROTOCOLS, step, PROTOCOLS[step] + 1)
    changed = [name for name in PROTOCOLS if key_of(name, a=1) != before[name]]
    assert changed == [step]


def test_a_step_that_there_is_not_is_refused() -> None:
    with pytest.raises(KeyError, match="cooking"):
        key_of("cooking", a=1)
