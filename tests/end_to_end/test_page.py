"""The page of `fer-jax serve` in a real browser."""

import re
import subprocess
import sys

import pytest
from PIL import Image

from tests.support import browser as browser_lib
from tests.support.browser import PHOTOGRAPH, WALL, upload, wait_for_status

browser_lib.require()


@pytest.fixture(scope="module")
def address():
    """Yields the address of `fer-jax serve` with the packaged network, run in a separate process."""
    command = [sys.executable, "-m", "fer_jax", "serve", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield re.match(r"(http://\S+) shows the page", process.stdout.readline())[1]
        process.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = browser_lib.start(browser_lib.write_camera(tmp_path_factory.mktemp("camera") / "camera.y4m"))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    return browser


def test_a_picture_gets_a_box_and_seven_bars(page):
    upload(page, PHOTOGRAPH)
    assert "happy" in wait_for_status(page, "One face")
    assert len(page.find_elements("css selector", "#stage rect")) == 2  # a light one on a dark one
    assert len(page.find_elements("css selector", ".face progress")) == 7
    box = page.find_elements("css selector", "#stage rect")[1]
    # The box is in pixels of the picture, whatever its size on the screen.
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
    upload(page, browser_lib.write_couple(tmp_path / "both.png"))
    wait_for_status(page, "2 faces: .*, ")
    titles = [title.text for title in page.find_elements("css selector", ".face h2")]
    assert [title.partition(":")[0] for title in titles] == ["Face 1", "Face 2"]


def test_a_picture_without_a_face_and_a_file_that_is_none_are_said(page, tmp_path):
    Image.new("RGB", (100, 80), WALL).save(tmp_path / "wall.png")
    upload(page, tmp_path / "wall.png")
    wait_for_status(page, "No face found")
    (tmp_path / "text.png").write_text("no picture")
    upload(page, tmp_path / "text.png")
    wait_for_status(page, "not a picture that can be read")
    assert page.find_element("id", "status").get_attribute("class") == "bad"
    (tmp_path / "large.jpg").write_bytes(PHOTOGRAPH.read_bytes() + bytes(21_000_000))
    upload(page, tmp_path / "large.jpg")
    wait_for_status(page, "The picture has 21 MB; 20 MB are taken at most")


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
    asked = browser_lib.addresses_asked(page)
    assert asked
    assert all(url.startswith(f"http://{host}/") for url in asked), asked
    complaints = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    # The only complaints are about the file that is no picture and the icon that browsers request on their own.
    assert all("400" in line or "favicon" in line for line in complaints), complaints
