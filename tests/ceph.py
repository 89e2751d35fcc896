"""A real S3 server for the tests: one monitor, one OSD in memory and one RADOS gateway of Ceph, on loopback ports.

From Debian's packages, without systemd and without Ceph's own keys; everything lies in one folder and ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

from tests.ports import free_ports

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PACKAGES = ("ceph-common", "ceph-mon", "ceph-osd", "radosgw")
KEY, SECRET = "test-key", "test-secret"

CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = v1:127.0.0.1:{monitor}
ms_bind_msgr2 = false
public_addr = 127.0.0.1
public_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}
admin_socket = {folder}/$name.$pid.asok
log_file = {folder}/$name.log
mon_cluster_log_file = {folder}/cluster.log
crash_dir = {folder}
keyring = {folder}/keyring
mon_data = {folder}/mon
mon_data_avail_crit = 1
mon_data_avail_warn = 1
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_class_load_list = *
osd_class_default_list = *
osd_class_update_on_start = false
osd_crush_update_on_start = false
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off

[client]
rgw_frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
rgw_data = {folder}/rgw
rgw_thread_pool_size = 64
rgw_run_sync_thread = false
rgw_enable_usage_log = false
rgw_enable_quota_threads = false
rgw_dynamic_resharding = false
rgw_override_bucket_index_max_shards = 1
"""


class Unavailable(Exception):
    """Why there is no Ceph here."""


def install() -> None:
    """Raises Unavailable where the packages are missing and cannot be had."""
    if all(map(shutil.which, PROGRAMS)):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        raise Unavailable(f"Ceph is not installed, and only root of a Debian can: apt-get install {' '.join(PACKAGES)}")
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command)} took more than five minutes") from None
    if done.returncode or not all(map(shutil.which, PROGRAMS)):
        raise Unavailable(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")


def running(folder: Path) -> Ceph:
    """A node that answers, with its files under `folder`; Unavailable where it cannot be had.

    A monitor that has just started on a busy machine refuses its first questions now and then: begun anew, once.
    """
    install()
    try:
        return Ceph(folder / "0").start()
    except Unavailable:
        return Ceph(folder / "1").start()


class Ceph:
    """One node that answers S3 at `url`; its gateway can be killed and started again."""

    def __init__(self, folder: Path):
        """`folder` does not exist yet; its path must be short, for there are sockets in it."""
        self.folder = folder
        self._monitor, self._gateway = free_ports(2)
        self.url = f"http://127.0.0.1:{self._gateway}"
        self._running: dict[str, subprocess.Popen] = {}

    def start(self) -> Ceph:
        try:
            self._start()
        except Unavailable:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "keyring").touch()
        fsid = str(uuid.uuid4())
        given = {"fsid": fsid, "folder": self.folder, "monitor": self._monitor, "gateway": self._gateway}
        (self.folder / "ceph.conf").write_text(CONFIGURATION.format(**given))
        address = f"[v1:127.0.0.1:{self._monitor}]"
        self._call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(self.folder / "monmap"))
        self._call("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(self.folder / "monmap"))
        self._spawn("mon", "ceph-mon", "-f", "-i", "a")
        osd = str(uuid.uuid4())
        self._call("ceph", "osd", "new", osd)
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._call("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self._spawn("osd", "ceph-osd", "-f", "-i", "0")
        self._until("osd", lambda: " 1 up" in self._call("ceph", "osd", "stat"))
        self.start_gateway()
        user = ("--uid=test", "--display-name=test", f"--access-key={KEY}", f"--secret={SECRET}")
        self._call("radosgw-admin", "user", "create", *user)

    def start_gateway(self) -> None:
        self._spawn("rgw", "radosgw", "-f", "-n", "client.rgw")
        self._until("rgw", self._answers)

    def crash_gateway(self) -> None:
        """kill -9: requests under way get no answer, and later ones are refused."""
        self._kill("rgw")

    def stop(self) -> None:
        for name in ("rgw", "osd", "mon"):
            self._kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._gateway), 5) as asked:
            asked.settimeout(5)
            asked.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return asked.recv(5) == b"HTTP/"
        return False

    def _environment(self) -> dict[str, str]:
        return os.environ | {"CEPH_CONF": str(self.folder / "ceph.conf"), "CEPH_ARGS": "--cluster=ceph"}

    def _call(self, *command: str) -> str:
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def _spawn(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self._running[name] = subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _until(self, name: str, ready) -> None:
        deadline = time.monotonic() + 120
        while not ready():
            if self._running[name].poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"{name} did not start: {(self.folder / f'{name}.out').read_text()[-500:]}")
            time.sleep(0.1)

    def _kill(self, name: str) -> None:
        if process := self._running.pop(name, None):
            process.send_signal(signal.SIGKILL)
            process.wait()
