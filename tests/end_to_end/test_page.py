"""The page in a real browser: Debian's chromium and chromium-driver, by selenium (pip install -e '.[browser]')."""

import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[browser]'")
pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="chromium or chromedriver is not installed"
)

PHOTOGRAPH = pathlib.Path(__file__).parents[1] / "fixtures" / "astronaut.jpg"


@pytest.fixture(scope="module")
def address():
    """The address of `fer-jax serve` with the packaged network, in a process of its own."""
    command = [sys.executable, "-m", "fer_jax", "serve", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield re.match(r"(http://\S+) shows the page", process.stdout.readline())[1]
        process.terminate()


@pytest.fixture(scope="module")
def camera_file(tmp_path_factory) -> pathlib.Path:
    """A film of the photograph, which chromium takes for a webcam."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    whole = Image.new("RGB", (320, 240), (200, 120, 60))
    with Image.open(PHOTOGRAPH) as photograph:
        whole.paste(photograph, (60, 20))
    y, *colours = (np.asarray(plane) for plane in whole.convert("YCbCr").split())
    planes = y.tobytes() + b"".join(plane[::2, ::2].tobytes() for plane in colours)
    path.write_bytes(b"YUV4MPEG2 W320 H240 F25:1 Ip A1:1 C420jpeg\n" + (b"FRAME\n" + planes) * 5)
    return path


@pytest.fixture(scope="module")
def browser(camera_file):
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
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    return browser


def wait_for_status(page, pattern: str) -> str:
    deadline = time.monotonic() + 60
    while not re.search(pattern, text := page.find_element("id", "status").text):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


def upload(page, path: pathlib.Path) -> None:
    page.find_element("id", "file").send_keys(str(path))


def test_a_picture_gets_a_box_and_seven_bars(page):
    upload(page, PHOTOGRAPH)
    assert "happy" in wait_for_status(page, "One face")
    assert len(page.find_elements("css selector", "#stage rect")) == 2  # light on dark
    assert len(page.find_elements("css selector", ".face progress")) == 7
    box = page.find_elements("css selector", "#stage rect")[1]
    # In pixels of the picture, whatever its size on the screen.
    assert abs(int(box.get_attribute("x")) - 51) < 8
    assert abs(int(box.get_attribute("width")) - 92) < 12
    assert not page.find_elements("css selector", ".face img")


def test_what_it_looked_at_is_shown_on_demand_by_the_keyboard(page):
    upload(page, PHOTOGRAPH)
    wait_for_status(page, "One face")
    page.find_element("id", "explain").send_keys(" ")
    wait_for_status(page, "Looking")
    wait_for_status(page, "One face")
    image = page.find_element("css selector", ".face img")
    assert image.get_attribute("src").startswith("data:image/png")
    assert "happy" in image.get_attribute("alt")
    assert int(image.get_property("naturalWidth")) == 192


def test_two_faces_are_told_apart(page, tmp_path):
    with Image.open(PHOTOGRAPH) as photograph:
        both = Image.new("RGB", (2 * photograph.width + 60, photograph.height), (200, 120, 60))
        both.paste(photograph, (0, 0))
        both.paste(photograph, (photograph.width + 60, 0))
    both.save(tmp_path / "both.png")
    upload(page, tmp_path / "both.png")
    wait_for_status(page, "2 faces: .*, ")
    titles = [title.text for title in page.find_elements("css selector", ".face h2")]
    assert [title.partition(":")[0] for title in titles] == ["Face 1", "Face 2"]


def test_a_picture_without_a_face_and_a_file_that_is_none_are_said(page, tmp_path):
    Image.new("RGB", (100, 80), (200, 120, 60)).save(tmp_path / "wall.png")
    upload(page, tmp_path / "wall.png")
    wait_for_status(page, "No face found")
    (tmp_path / "text.png").write_text("no picture")
    upload(page, tmp_path / "text.png")
    wait_for_status(page, "no picture that can be read")
    assert page.find_element("id", "status").get_attribute("class") == "bad"


def test_the_webcam_is_looked_at_until_it_is_stopped(page):
    button = page.find_element("id", "camera")
    button.click()
    wait_for_status(page, "One face: happy")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.find_elements("css selector", "#stage video")
    button.click()
    wait_for_status(page, "off")
    assert button.text == "Start the webcam"


def test_a_phone_s_width_needs_no_scrolling_sideways(page):
    page.set_window_size(390, 800)
    upload(page, PHOTOGRAPH)
    wait_for_status(page, "One face")
    widths = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    page.set_window_size(1000, 900)
    assert widths[0] <= widths[1]


def test_controls_have_names_and_nothing_is_asked_elsewhere_or_complained_of(page, address):
    for control in page.find_elements("css selector", "button, input"):
        assert control.accessible_name
    upload(page, PHOTOGRAPH)
    wait_for_status(page, "One face")
    host = address.removeprefix("http://").rstrip("/")
    asked = re.findall(r'"url":"(https?://[^"]+)"', " ".join(entry["message"] for entry in page.get_log("performance")))
    assert asked
    assert all(url.startswith(f"http://{host}/") for url in asked), asked
    complaints = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    # The one of the file that is no picture, and the icon that a browser asks for unasked.
    assert all("400" in line or "favicon" in line for line in complaints), complaints
