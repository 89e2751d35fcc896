"""What the driver's machine is doing, as MLflow's own monitors see it: the "System metrics" of a run's page."""

from __future__ import annotations

import contextlib

from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor


class Machine:
    """Looked at now and then by whoever tells the run; MLflow's own thread would not survive a server that is away."""

    def __init__(self) -> None:
        self._monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError, MlflowException):  # no GPU, or no library that asks it
            self._monitors.append(GPUMonitor())

    def look(self) -> dict[str, float]:
        """Name -> value, named as MLflow's page looks for them."""
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"system/{name}": value for name, value in found.items()}
