"""Ray Train's side of a lost worker: replace only that one, count what was lost, and know when to give up.

Nothing here imports what only workers need, because Ray Train's controller loads it.
"""

from __future__ import annotations

import math
import time

import ray
from ray.exceptions import RayActorError
from ray.train import BackendConfig, UserCallback
from ray.train.backend import Backend
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from mcpl.errors import MCPLError
from mcpl.orchestration.queue import RemoteBoard


class NoProgress(MCPLError):
    """Workers keep failing and no shard gets finished; names the last failure."""


class _ReplicaBackend(Backend):
    """Makes Ray Train replace only the worker that died. Made for TorchFT; Ray is pinned, and a test watches it."""

    has_replica_groups = True


class ReplicaGroups(BackendConfig):
    """Every worker a replica group of its own."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _ReplicaBackend


class Strikes(UserCallback):
    """Runs in Ray Train's controller: tells the board of each lost worker, ends the run when the board gives up."""

    def __init__(self, handle):
        self._handle = handle

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """One strike, however many workers a look finds dead: a reclaimed spot pool takes many at once."""
        causes = {rank: getattr(error, "health_check_failure", error) for rank, error in worker_exceptions.items()}
        ranks = sorted(causes, key=lambda rank: isinstance(causes[rank], RayActorError))  # errors first: they are told
        cause = causes[ranks[0]]
        kind = "death" if isinstance(cause, RayActorError) else "error"
        if RemoteBoard(self._handle).strike(kind, one_line(cause), ranks):
            raise NoProgress(one_line(cause))


def drain_notice() -> float | None:
    """Seconds until the node of this process is taken away (a spot node, a scaled-down one); None while it stays.

    Ray Train's own watcher does not run beside replica groups. Without a deadline Ray says 0: then there is time.
    """
    try:
        deadline = ray._private.state.state.get_draining_nodes().get(ray.get_runtime_context().get_node_id())
    except Exception:  # Ray's head does not answer just now: no reason to stop learning
        return None
    if deadline is None:
        return None
    return deadline / 1000 - time.time() if deadline else math.inf


def reservations() -> set[str]:
    """Hexadecimal ids of this job's placement groups that still hold, or wait for, a part of the cluster."""
    job = ray.get_runtime_context().get_job_id()  # an id ends with its job's
    return {id for id, group in placement_group_table().items() if id.endswith(job) and group["state"] != "REMOVED"}


def release(ids: set[str]) -> None:
    """Free what a killed controller had reserved for its workers, and end them with it.

    Ray Train's own cleaner asks the dashboard whether the controller lives; a cluster without one keeps the
    reservation for good, and where it is the whole cluster, nothing could ever start again.
    """
    for id in ids:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(id)))


def one_line(error: BaseException) -> str:
    """The error's class and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
