"""The screenshots of docs/report.md and docs/app.md, in an installed Chromium, of runs on the embedded example.

anomalib-defend example --root quickstart/data
anomalib train --config configs/quickstart.yaml
anomalib-defend benchmark run digits --set root=quickstart/data/VOC2012
python -m measurements.screenshots quickstart/results/Defend/SemanticVOC/three/latest quickstart/data/VOC2012 RESULTS

where RESULTS is the comparison's folder, runs/benchmark/digits.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from anomalib_defend.app.page import serve
from anomalib_defend.benchmark.page import write_report as write_comparison
from anomalib_defend.benchmark.table import Table
from anomalib_defend.reporting.page import write_report

COLOURS = 128  # of a picture's palette, which keeps it small
SHOWN = 6  # images that are dropped


def main() -> None:
    """Take all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("data", type=Path, help="VOC2012 of the scenes")
    parser.add_argument("comparison", type=Path, help="folder of the comparison's results")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pictures")
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1000, "height": 2500})
        page.goto(write_report(options.run, Path(folder) / "report.html").path.as_uri())
        save(page, options.out / "report.png")
        comparison = Path(folder) / "comparison.html"
        write_comparison(Table([options.comparison]), [options.comparison], comparison)
        page.set_viewport_size({"width": 1000, "height": 1400})
        page.goto(comparison.as_uri())
        save(page, options.out / "comparison.png")
        page.set_viewport_size({"width": 1200, "height": 1300})
        app = serve(next(options.run.rglob("model.ckpt")), block=False)
        page.goto(app.local_url)
        names = (options.data / "ImageSets" / "Main" / "val.txt").read_text().split()
        images = [options.data / "JPEGImages" / f"{name}.jpg" for name in names[:SHOWN]]
        page.locator("#files input[type=file]").set_input_files([str(image) for image in images])
        while "called novel" not in page.locator("#verdict textarea").input_value():
            time.sleep(0.1)
        while page.locator("#pictures img").count() < SHOWN:
            time.sleep(0.1)
        time.sleep(1)  # until they are drawn
        save(page, options.out / "app.png")
        app.close()


def save(page: Any, path: Path) -> None:
    """Take a picture of what the window shows."""
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
