"""Takes the picture of `sasa demo` that README and documentation show: python docs/screenshot.py (needs chromium)."""

from __future__ import annotations

import shutil
from pathlib import Path

from pictures import PROMPT, SEED, TOKENS
from playwright.sync_api import sync_playwright

import sasa
from sasa.core.settings import DEFAULT_MODEL
from sasa.demo.page import launch
from sasa.demo.studio import Studio

SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]

if __name__ == "__main__":
    page_, address = launch(
        Studio(*sasa.load()), DEFAULT_MODEL, "127.0.0.1", None, share=False, open_=False, wait=False
    )
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=SWITCHES)
        page = browser.new_page(viewport={"width": 1180, "height": 640})
        page.goto(address)
        page.fill("#prompt textarea", PROMPT)
        page.fill("#seed input", str(SEED))
        tokens = page.locator("#tokens input[type=number]")
        tokens.fill(str(TOKENS))
        tokens.press("Tab")
        page.click("#write")
        page.wait_for_selector("#steered .sasa-card", state="attached", timeout=180_000)
        page.evaluate("window.scrollTo(0, 0)")
        page.locator("#steered .sasa-token").nth(3).hover()
        page.wait_for_timeout(500)
        page.screenshot(path=str(Path(__file__).parent / "pictures" / "demo.png"))
        browser.close()
    page_.close()
