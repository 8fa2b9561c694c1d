"""The page of an analysis in a browser: nothing fails, filters and layers change what is shown, keys work.

Needs the extra `browser` (selenium), Chromium and its driver.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.analysis import planted
from tests.engine.analysis.test_report import page_of

webdriver: Any = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -e '.[browser]'")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="no browser with its driver: apt-get install chromium chromium-driver"
)
WIDTHS = (390, 1024, 1440)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of six images with every cause."""
    images = planted.simulate(4, images=6, objects=30, budget=25)
    faults: list[Callable[..., Any]] = [planted.shifted, planted.permuted, planted.halved]
    for place, fault in enumerate(faults):
        images[place] = (fault(images[place][0]), images[place][1])
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(images), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(driver: Any, address: str) -> Any:
    resized(driver, 1440)
    driver.get(address)
    return driver


def resized(driver: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def value(page: Any, expression: str) -> Any:
    return page.execute_script(f"return {expression}")


def choose(page: Any, name: str, option: str) -> None:
    page.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('change', {bubbles: true}))",
        name,
        option,
    )


def pixels(page: Any) -> str:
    """The drawings on the first and the last image."""
    page.execute_script("document.querySelector('.card').scrollIntoView()")
    script = """const done = arguments[0], until = Date.now() + 5000;
        const look = () => {
            const [first, last] = ['first', 'last'].map((e) => document.querySelector(`.card:${e}-child canvas`));
            const drawn = first.width !== 300 && last.width !== 300;  // 300: not drawn yet
            if (!drawn && Date.now() < until) setTimeout(look, 50);
            else requestAnimationFrame(() => done(first.toDataURL() + last.toDataURL()));
        };
        setTimeout(look, 100)"""
    return str(page.execute_async_script(script))


SHIFT = """const done = arguments[0];
    new PerformanceObserver((list) => done(list.getEntries().reduce((sum, each) => sum + each.value, 0)))
        .observe({type: 'layout-shift', buffered: true});
    setTimeout(() => done(0), 500)"""


@pytest.mark.parametrize("width", WIDTHS)
def test_no_error_no_overflow_no_shift(page: Any, address: str, width: int) -> None:
    resized(page, width)
    page.get(address)
    page.execute_script("window.scrollTo(0, document.documentElement.scrollHeight)")
    assert pixels(page)
    assert page.execute_async_script(SHIFT) < 0.02
    assert value(page, "document.documentElement.scrollWidth") <= width
    assert [entry["message"] for entry in page.get_log("browser")] == []
    assert value(page, "performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    loaded = value(page, "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert loaded < 10_000  # 0.7 s on two free cores; a busy machine takes longer


def test_filters_change_what_is_shown(page: Any) -> None:
    assert value(page, "document.querySelectorAll('.card').length") == 6
    before = pixels(page)
    choose(page, "cause", "class")
    few = value(page, "document.querySelectorAll('.card').length")
    assert 1 <= few < 6
    assert value(page, "document.getElementById('shown').textContent") == f"{few} of 6 images"
    choose(page, "cause", "")
    choose(page, "class", "2")
    assert pixels(page) != before
    choose(page, "class", "")
    choose(page, "sort", "name")
    names = value(page, "[...document.querySelectorAll('.card b')].map(e => e.textContent)")
    assert names == [f"<i>{number}</i>.png" for number in range(1, 7)]


def test_layers_can_be_switched_by_click_and_by_key(page: Any) -> None:
    drawings = [pixels(page)]
    for layer in ("hits", "misses", "alarms", "starts", "density"):
        toggle = page.find_element("css selector", f"[data-layer={layer}]")
        pressed = toggle.get_attribute("aria-pressed")
        page.execute_script("arguments[0].click()", toggle)
        assert toggle.get_attribute("aria-pressed") != pressed
        drawings.append(pixels(page))
    assert len(set(drawings)) == 6
    page.find_element("tag name", "body").send_keys("d")
    assert pixels(page) == drawings[-2]


def test_an_image_is_enlarged_and_the_arrows_go_on(page: Any) -> None:
    card = page.find_element("css selector", ".card")
    page.execute_script("arguments[0].click()", card)
    assert value(page, "document.getElementById('large').open")
    first = value(page, "document.getElementById('large-name').textContent")
    body = page.find_element("tag name", "body")
    body.send_keys("\ue014")  # right
    pixels(page)
    assert value(page, "document.getElementById('large-name').textContent") != first
    width = value(page, "document.querySelector('.stage canvas').clientWidth")
    body.send_keys("+")
    assert value(page, "document.querySelector('.stage canvas').clientWidth") == pytest.approx(1.5 * width, abs=2)
    body.send_keys("\ue00c")  # escape
    assert not value(page, "document.getElementById('large').open")
    assert value(page, "document.activeElement.className") == "card"


def test_everything_is_reached_by_tab(page: Any) -> None:
    reached = set()
    for _ in range(60):
        page.switch_to.active_element.send_keys("\ue004")  # tab
        reached.add(value(page, "document.activeElement.id || document.activeElement.className"))
    assert {"theme", "sort", "class", "cause", "card", "scroll"} <= reached


def test_the_theme_can_be_switched_and_tables_sort(page: Any) -> None:
    colour = value(page, "getComputedStyle(document.body).backgroundColor")
    page.execute_script("document.getElementById('theme').click()")
    assert value(page, "getComputedStyle(document.body).backgroundColor") != colour
    page.execute_script("document.querySelectorAll('.sortable thead button')[1].click()")
    counts = value(page, "[...document.querySelectorAll('.sortable tbody tr')].map(r => +r.children[1].textContent)")
    assert counts == sorted(counts, reverse=True)
