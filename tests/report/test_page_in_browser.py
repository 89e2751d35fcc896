"""The page in a real browser: opened from the disk, by the keyboard too, with nothing in the console."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from benchmarks import synthetic_bank
from benchmarks.browser import NoBrowser, browser, colour_scheme, programs
from mcpl.data.bank import Bank, encode, part_name
from mcpl.data.sources import Dataset, write_dataset
from mcpl.data.storage import open_store
from mcpl.orchestration.reporting import write_report

pytestmark = pytest.mark.integration

PICTURES = 130
HOSTILE = "a <img> & </script><script>document.title='owned'</script> \"quoted\" <b>bold</b>"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    try:
        programs()
    except NoBrowser as reason:
        pytest.skip(str(reason))
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """(a folder's page, one file's page, rows) of a bank with a hostile sentence in it."""
    folder = tmp_path_factory.mktemp("page")
    bank, dataset = synthetic_bank.write(folder, PICTURES)
    examples, rows = list(Dataset.open(dataset).examples()), list(Bank.open(bank).rows())
    rows[5] = replace(rows[5], text=HOSTILE, id="<i>5</i>", learned=replace(rows[5].learned, job_id="<i>5</i>"))
    examples[5] = replace(examples[5], text=HOSTILE, id="<i>5</i>")
    write_dataset(examples, folder / "dataset2")
    open_store(folder / "bank2").put(part_name(0), encode(rows))
    for name, single in (("many", False), ("one", True)):
        write_report(str(folder / "bank2"), str(folder / "dataset2"), str(folder / name), single=single)
    return folder / "many" / "index.html", folder / "one" / "index.html", rows


class Opened:
    """What a person does with the page, and sees."""

    def __init__(self, driver, path) -> None:
        self.driver = driver
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get(path.as_uri())
        self.filled()

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments, seconds: float = 30):
        deadline = time.monotonic() + seconds
        while not (value := self.run(f"return {script}", *arguments)):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)
        return value

    def filled(self) -> None:
        """Every card in view has its pictures."""
        self.until(
            "[...document.querySelectorAll('#gallery li')]"
            ".filter(x => x.getBoundingClientRect().top < innerHeight && x.getBoundingClientRect().bottom > 0)"
            ".every(x => x.dataset.filled && [...x.querySelectorAll('img')].every(i => i.complete && i.naturalWidth))"
        )

    def set(self, id: str, value: str) -> None:
        self.run(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('change'));",
            id,
            value,
        )
        time.sleep(0.3)  # the page waits for the end of typing

    def click(self, id: str) -> None:
        self.run("document.getElementById(arguments[0]).click()", id)

    @property
    def ids(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#gallery .id')].map(x => x.textContent)")

    @property
    def found(self) -> str:
        return self.run("return document.getElementById('found').value")

    def complaints(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] != "INFO"]


@pytest.fixture(params=[0, 1], ids=["folder", "one file"])
def opened(request, driver, pages):
    page = Opened(driver, pages[request.param])
    yield page
    assert page.complaints() == []


def test_it_opens_filters_sorts_and_pages(opened, pages):
    rows = pages[2]
    assert opened.found == f"{PICTURES} pictures" and opened.ids == [row.id for row in rows[:48]]

    opened.set("word", "moon")
    with_moon = [row for row in rows if row.learned and "moon" in {w.concept.slug for w in row.learned.concepts}]
    assert opened.found == f"{len(with_moon)} of {PICTURES} pictures"
    opened.set("sort", "attention_iou")
    opened.click("order")
    best = sorted(with_moon, key=lambda row: -row.metrics["attention_iou"])
    assert opened.ids == [row.id for row in best][:48]
    limit = (best[9].metrics["attention_iou"] + best[10].metrics["attention_iou"]) / 2
    opened.set("from", f"{limit:.6f}")
    assert opened.ids == [row.id for row in best[:10]]
    opened.click("reset")
    opened.until("document.getElementById('found').value === arguments[0]", f"{PICTURES} pictures")

    sign = opened.run("return [...document.querySelectorAll('#sign option')].find(o => /collapse/.test(o.text)).value")
    opened.set("sign", sign)
    assert opened.ids == [row.id for row in rows if row.metrics.get("sign_collapse")][:48]
    opened.set("sign", "")
    opened.set("status", "failed")
    assert opened.ids == [row.id for row in rows if row.status == "failed"]
    opened.set("status", "")
    opened.set("find", "striped <moon>")
    assert opened.found.startswith(f"{sum('striped <moon>' in row.text for row in rows)} of")
    opened.set("find", "nothing says this")
    assert opened.ids == [] and opened.found == f"0 of {PICTURES} pictures"
    opened.set("find", "")

    opened.click("next")
    opened.filled()
    assert opened.ids == [row.id for row in rows[48:96]]
    opened.click("last")
    assert opened.ids == [row.id for row in rows[96:]] and not opened.run(
        "return document.getElementById('back').disabled"
    )
    opened.set("each", "24")
    assert opened.ids == [row.id for row in rows[:24]]


def test_a_picture_opens_with_everything_and_closes_by_the_keyboard(opened, pages):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    rows = pages[2]
    card = opened.run("const c = document.querySelectorAll('.card')[1]; c.focus(); return c")
    card.send_keys(Keys.ENTER)
    opened.until("document.getElementById('detail').open")
    text = opened.run("return document.getElementById('detail').innerText")
    row = rows[1]
    for said in (row.id, row.provenance.picture_sha256, "attention IoU", "looks here before", "nearest other words"):
        assert said in text
    assert all(f"<{word.concept.slug}>" in text for word in row.learned.concepts)
    assert opened.run("return document.querySelectorAll('#detail .curve path').length") == 6
    lit = "const c = document.querySelectorAll('#detail .views .look canvas')[2];" \
          "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;" \
          "for (let i = 3; i < d.length; i += 4) n += d[i] === 0; return n / (c.width * c.height)"  # fmt: skip
    half = opened.run(lit)
    opened.run("const s = document.getElementById('threshold'); s.value = 20; s.dispatchEvent(new Event('input'))")
    assert 0 < half < opened.run(lit) <= 1, "a lower threshold lets more through"

    ActionChains(opened.driver).send_keys(Keys.ARROW_RIGHT).perform()
    opened.until(
        "document.getElementById('detail').innerText.includes(arguments[0])", rows[2].provenance.picture_sha256
    )
    near = opened.run("const b = document.querySelector('#detail .near button'); b.click(); return b.title")
    opened.until("document.querySelector('#detail .origin dd').textContent === arguments[0]", near)
    ActionChains(opened.driver).send_keys(Keys.ESCAPE).perform()
    opened.until("!document.getElementById('detail').open")
    assert opened.run("return document.activeElement.className") == "card", "the focus comes back"


def test_what_a_sentence_says_is_text_and_nothing_runs(opened):
    opened.set("find", "</script>")
    assert opened.ids == ["<i>5</i>"]
    opened.filled()
    opened.run("document.querySelector('.card').click()")
    opened.until("document.getElementById('detail').open")
    assert "owned" not in opened.driver.title
    shown = opened.run("return document.getElementById('detail').innerText")
    assert "</script>" in shown and "<i>5</i>" in shown
    assert opened.run("return document.querySelectorAll('#detail b, #detail i, #gallery b, #gallery i').length") == 0
    opened.click("detail")


def test_one_file_works_within_mlflows_page(driver, pages):
    """MLflow shows an HTML artifact as a blob in a sandboxed frame: scripts alone, no storage, no address."""
    driver.get("about:blank")
    driver.get_log("browser")
    driver.execute_script(
        "const frame = document.createElement('iframe'); frame.sandbox = 'allow-scripts';"
        "frame.style = 'width: 1200px; height: 800px';"
        "frame.src = URL.createObjectURL(new Blob([arguments[0]], {type: 'text/html'})); document.body.append(frame);",
        pages[1].read_text(),
    )
    driver.switch_to.frame(0)
    deadline = time.monotonic() + 30
    ready = "return document.querySelectorAll('#gallery li[data-filled] canvas').length > 1"
    while not driver.execute_script(ready):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.execute_script("document.querySelector('.card').click()")
    time.sleep(0.5)
    assert driver.execute_script("return document.getElementById('detail').open")
    driver.switch_to.default_content()
    assert [line["message"] for line in driver.get_log("browser") if line["level"] != "INFO"] == []


def test_everything_has_a_name_and_colours_follow_the_system(opened):
    opened.set("sort", "attention_iou")  # shows the histogram
    unnamed = opened.run(
        "return [...document.querySelectorAll('button, input, select, canvas:not([aria-hidden]), [role=img]')]"
        ".filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.title || e.labels?.length))"
        ".map(e => e.outerHTML.slice(0, 120))"
    )
    assert unnamed == []
    assert opened.run("return [...document.images].every(i => i.hasAttribute('alt'))")
    ground = "return getComputedStyle(document.body).backgroundColor"
    grounds = {}
    for scheme in ("light", "dark"):
        colour_scheme(opened.driver, scheme)
        grounds[scheme] = sum(map(int, opened.run(ground)[4:-1].split(",")))
        assert contrast(opened) >= 4.5
    assert grounds["light"] > 600 > 200 > grounds["dark"]
    opened.click("theme")
    assert sum(map(int, opened.run(ground)[4:-1].split(","))) == grounds["light"], "the button turns it round"
    colour_scheme(opened.driver, "light")


def contrast(opened: Opened) -> float:
    """The least WCAG contrast of the page's muted text with the grounds that it stands on."""
    colours = opened.run(
        "const s = getComputedStyle(document.documentElement);"
        "return ['--muted', '--ink', '--accent', '--paper', '--card'].map(n => s.getPropertyValue(n).trim())"
    )

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lights = list(map(light, colours))
    pairs = [sorted((ink, ground)) for ink in lights[:3] for ground in lights[3:]]
    return min((high + 0.05) / (low + 0.05) for low, high in pairs)
