"""A real browser without a screen: Chromium and its driver from the system's packages, driven by selenium."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("chromium", "chromium-driver")
"""of Debian"""


class NoBrowser(RuntimeError):
    """There is none, and none can be installed; the message says why."""


def programs() -> tuple[str, str]:
    """Chromium and its driver, installed where that is possible."""
    if not (found := _programs()):
        if not shutil.which("apt-get") or os.geteuid():
            raise NoBrowser("chromium and chromedriver are not installed: apt-get install " + " ".join(PACKAGES))
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            told = subprocess.run(["apt-get", *command], env=quiet, capture_output=True, text=True, timeout=400)
            if told.returncode:
                raise NoBrowser(f"chromium cannot be installed: {(told.stderr.strip().splitlines() or ['?'])[-1]}")
        found = _programs()
    if not found:
        raise NoBrowser("chromium was installed, but is not on the path")
    return found


def _programs() -> tuple[str, str] | None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def browser(profile: Path, width: int = 1440, height: int = 1000, scale: float = 1.0) -> Iterator:
    """A selenium driver whose windows are so many CSS pixels large; its processes end with the block."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    program, driver = programs()
    options = Options()
    options.binary_location = program
    for flag in (
        "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
        f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--force-device-scale-factor={scale}",
        *(["--no-sandbox"] if not os.geteuid() else []),
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        opened.set_page_load_timeout(120)
        opened.set_script_timeout(120)
        yield opened
    finally:
        opened.quit()


def colour_scheme(driver, scheme: str) -> None:
    """What the system prefers: 'light' or 'dark'."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
