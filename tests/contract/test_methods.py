"""Every promise of harness/contract, of every method that is installed: what `harness check` reports of each."""

from __future__ import annotations

import pytest

from harness.contract.promises import PROMISES, check


@pytest.mark.parametrize("promise", PROMISES)
def test_a_method_keeps_its_promise(subject, promise):
    outcome = check(PROMISES[promise], subject)
    if outcome.state == "skipped":
        pytest.skip(outcome.found)
    assert outcome.state == "kept", f"{outcome.found}\nchange: {outcome.change}"
