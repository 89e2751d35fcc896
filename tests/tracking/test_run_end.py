"""How a run ends is said once: finished, failed, or killed where a signal stopped the job."""

import pytest

from mcpl.tracking.base import NullRun


class Heard(NullRun):
    def __init__(self):
        self.ends = []

    def finish(self, status="FINISHED"):
        self.ends.append(status)


def test_a_run_ends_once_and_as_it_went():
    finished, stopped, failed = Heard(), Heard(), Heard()
    with finished:
        pass
    with stopped:
        stopped.ends_as = "KILLED"
    with pytest.raises(ValueError), failed:
        raise ValueError
    assert (finished.ends, stopped.ends, failed.ends) == (["FINISHED"], ["KILLED"], ["FAILED"])
