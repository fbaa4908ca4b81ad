"""A function in a thread: its result, its error, and that nothing goes on behind a block."""

from __future__ import annotations

import threading

import pytest

from edgevlm.errors import EdgeVLMError
from edgevlm.io.beside import Beside

SECONDS = 30  # of waiting for what comes at once, before a test fails


def test_both_go_on_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=SECONDS)
    beside = Beside(meeting.wait)
    here = meeting.wait()
    assert {here, beside.result()} == {0, 1}
    assert beside.result() == 1 - here


def test_its_error_is_raised_whenever_the_result_is_asked_for() -> None:
    def fail() -> None:
        raise EdgeVLMError("The file is damaged: copy it again.")

    with Beside(fail) as beside:
        pass
    for _ in range(2):
        with pytest.raises(EdgeVLMError, match="damaged"):
            beside.result()


def test_a_block_ends_with_the_function_even_where_it_fails() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        failed.wait(SECONDS)
        ended.set()

    failed = threading.Event()
    with pytest.raises(KeyError), Beside(work):
        assert begun.wait(SECONDS)
        threading.Timer(0.1, failed.set).start()
        raise KeyError
    assert ended.is_set()
