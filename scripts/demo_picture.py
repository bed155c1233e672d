"""Write the manual's picture of `sweettok demo`: python scripts/demo_picture.py --checkpoint MODEL

Needs Chromium and its driver (Debian: chromium, chromium-driver) and selenium. The clip shown is synthetic.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sweettok.demo.clips import examples
from sweettok.demo.models import load
from sweettok.demo.page import Page, serving
from sweettok.store import COMMENT, check_output, write_aside

ROOT = Path(__file__).resolve().parent.parent
SIZE, COLORS = (1280, 1880), 256
# All videos stand still at the same moment, without the controls that Chromium shows on paused videos.
HOLD = (
    "document.querySelectorAll('video').forEach(v => {v.pause(); v.controls = false; v.currentTime = v.duration / 2})"
)
READY = "return [...document.querySelectorAll('video')].filter(v => v.readyState > 2 && !v.seeking).length"


def photograph(address: str, example: int) -> bytes:
    """PNG of the page with the result of an example."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for switch in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size={},{}".format(*SIZE)):
        options.add_argument(switch)
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        until = WebDriverWait(browser, 120).until
        browser.get(address)
        until(lambda page: page.find_elements(By.CSS_SELECTOR, "#clip-examples button")[example:])[0].click()
        until(lambda page: "different verbs" in page.find_element(By.ID, "clip-words").text)
        until(lambda page: page.execute_script(READY) == 3)
        browser.execute_script(HOLD)
        until(lambda page: page.execute_script(READY) == 3)
        return browser.get_screenshot_as_png()
    finally:
        browser.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description="The manual's picture of the demo.")
    parser.add_argument("--checkpoint", default=ROOT / "outputs/tiny/stage2/final", help="the tokenizer")
    parser.add_argument("--generator", help="a generator, so that the page has all its parts")
    parser.add_argument("--example", type=int, default=5, help="number of the example, from 0")
    parser.add_argument("--port", type=int, default=7861)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/demo.png")
    args = parser.parse_args()
    check_output(args.out, (".png",))
    models = load(args.checkpoint, args.generator)
    with serving(Page(models, examples(models.tokenizer)), port=args.port) as address:
        picture = Image.open(io.BytesIO(photograph(address, args.example))).convert("RGB")
    info = PngInfo()
    info.add_text("Comment", COMMENT)  # it may be replaced
    with write_aside(args.out) as aside:
        picture.quantize(COLORS, dither=Image.Dither.NONE).save(aside, format="PNG", optimize=True, pnginfo=info)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
