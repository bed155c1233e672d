"""The page of `sweettok demo` in a real browser: headless Chromium, driven by selenium; skips where one is missing."""

import os
import shutil
import socket

import pytest
from test_demo import LIMITS, make_models, write_uploads

from sweettok.demo.clips import examples
from sweettok.demo.page import Page, serving

pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[demo]'")
pytest.importorskip("selenium", reason="the browser is driven by selenium: pip install selenium")
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (Debian's packages)")
PATIENCE = 120


@pytest.fixture
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1400"):
        options.add_argument(switch)
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_the_page_in_a_browser(browser, tmp_path, monkeypatch):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # so that what the page sets is undone

    until = WebDriverWait(browser, PATIENCE).until

    def wait_for(place: str, text: str) -> str:
        return until(lambda page: text in (found := page.find_element(By.ID, place).text) and found, repr(text))

    def find(selector: str, number: int = 0):
        found = until(lambda page: page.find_elements(By.CSS_SELECTOR, selector)[number:], selector)
        return found[0]

    def upload(place: str, name: str) -> None:
        find(f"#{place} input[type=file]").send_keys(str(tmp_path / name))

    def click(selector: str, number: int = 0) -> None:
        find(selector, number).click()

    write_uploads(tmp_path)
    models = make_models()
    with serving(Page(models, examples(models.tokenizer), LIMITS), port=free_port()) as address:
        browser.get(address)
        folder = os.environ["GRADIO_TEMP_DIR"]
        click("#clip-examples button", 1)
        assert "bits per pixel" in wait_for("clip-result", "Synthetic clip")
        words = wait_for("clip-words", "different verbs")
        assert all(f"different {kind}" in words for kind in ("adverb", "noun", "adjective"))
        upload("clip-upload", "clip.mp4")
        assert "PSNR of the reconstruction" in wait_for("clip-result", "clip.mp4: all of its 9 frames")
        video = find("#clip-result video")
        until(lambda _: video.get_property("videoWidth") == 2 * 384 + 8)
        assert video.get_property("loop") and not video.get_property("paused")
        click("#clip-upload button[aria-label=Clear]")
        upload("clip-upload", "notes.mp4")
        line = wait_for("clip-result", "notes.mp4: not a video that can be read")
        assert "\n" not in line and os.sep not in line

        click("button[role=tab]", 1)
        click("#swap")
        wait_for("swap-result", "choose an example or upload a clip first")
        click("#clip1-examples button", 2)
        upload("clip2-upload", "clip.mp4")
        wait_for("clip2-upload", ".mp4")  # Gradio shows the name in two parts
        click("#swap")
        assert "Motion of the other" in wait_for("swap-result", "Above: rise. Below: clip.mp4.")
        click("button[role=tab]", 2)
        click("#generate")
        wait_for("generate-result", "4 clips of the class rise, seed 0")
        outside = (
            "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(arguments[0]))"
        )
        assert browser.execute_script(outside, address) == []
    assert not os.path.exists(folder)
