"""Runs Debian's chromium by its driver and selenium (pip install -e '.[browser]'); tests skip if they are missing."""

import pathlib
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

PHOTOGRAPH = pathlib.Path(__file__).parents[1] / "fixtures" / "astronaut.jpg"
# This is not grey, because faces are also searched for in parts of a grey picture.
WALL = (200, 120, 60)


def require() -> None:
    """Skips the module if there is no browser."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install -e '.[browser]'")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium or chromedriver is not installed", allow_module_level=True)


def start(camera_file: pathlib.Path):
    """Returns a browser whose webcam plays `camera_file`, a YUV4MPEG2 video."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1000,900",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera_file}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def write_camera(path: pathlib.Path) -> pathlib.Path:
    """Writes a YUV4MPEG2 video of the photograph."""
    whole = Image.new("RGB", (320, 240), WALL)
    with Image.open(PHOTOGRAPH) as photograph:
        whole.paste(photograph, (60, 20))
    y, *colours = (np.asarray(plane) for plane in whole.convert("YCbCr").split())
    planes = y.tobytes() + b"".join(plane[::2, ::2].tobytes() for plane in colours)
    path.write_bytes(b"YUV4MPEG2 W320 H240 F25:1 Ip A1:1 C420jpeg\n" + (b"FRAME\n" + planes) * 5)
    return path


def write_couple(path: pathlib.Path) -> pathlib.Path:
    """Writes a picture of two faces."""
    with Image.open(PHOTOGRAPH) as photograph:
        both = Image.new("RGB", (2 * photograph.width + 60, photograph.height), WALL)
        both.paste(photograph, (0, 0))
        both.paste(photograph, (photograph.width + 60, 0))
    both.save(path)
    return path


def wait_for_status(page, pattern: str) -> str:
    """Waits until the status on the page matches the regular expression `pattern`, and returns the status."""
    deadline = time.monotonic() + 60
    while not re.search(pattern, text := page.find_element("id", "status").text):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


def upload(page, path: pathlib.Path) -> None:
    page.find_element("id", "file").send_keys(str(path))


def addresses_asked(page) -> list[str]:
    return re.findall(r'"url":"(https?://[^"]+)"', " ".join(entry["message"] for entry in page.get_log("performance")))
