"""The preview page: what it shows of a row, and that foreign text stays text."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from mcpl.prompts import parse
from mcpl.report.figures import WORD_COLOURS
from mcpl.report.preview import SIDE, PreviewRow, outlined, preview

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'

TAGS = {
    "html",
    "meta",
    "title",
    "style",
    "h1",
    "dl",
    "div",
    "dt",
    "dd",
    "main",
    "article",
    "figure",
    "img",
    "p",
    "span",
    "b",
}


class Page(HTMLParser):
    """Tags with their attributes, and the text in reading order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    @property
    def said(self) -> str:
        return " ".join("".join(self.text).split())


def row(text: str = "a brown <bear>, and a rolling <board>", **changes) -> PreviewRow:
    sentence = changes.pop("sentence") if "sentence" in changes else parse(text)
    known = {"id": "one", "picture": Image.new("RGB", (40, 20), "white")}
    return PreviewRow(text=text, sentence=sentence, **(known | changes))


def test_words_have_their_colours_and_adjectives_their_words():
    page = Page(preview("a set", {"rows": "1"}, [row()]))
    spans = [attributes for tag, attributes in page.tags if tag == "span"]
    assert [span["class"] for span in spans] == ["adjective", "placeholder", "adjective", "placeholder"]
    colours = [re.search("#[0-9A-F]{6}", span["style"])[0] for span in spans]
    assert colours == [WORD_COLOURS[0]] * 2 + [WORD_COLOURS[1]] * 2
    assert "a brown <bear>, and a rolling <board>" in page.said


def test_foreign_text_is_shown_and_never_markup():
    rows = [
        row(id=HOSTILE, text=HOSTILE, sentence=None, faults=[HOSTILE]),
        row(
            f'a <bear> {HOSTILE.replace("<", "").replace(">", "")} "quoted" & more', masks={HOSTILE: np.ones((20, 40))}
        ),
    ]
    page = Page(preview(HOSTILE, {HOSTILE: HOSTILE}, rows))
    assert {tag for tag, _ in page.tags} <= TAGS
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.said.count("<script>alert(1)</script>") == 8, (
        "title twice, fact twice, sentence, id, fault and mask: as text, all of them"
    )


def test_a_bad_row_says_why_and_a_missing_mask_is_told():
    bad = row(id="cut", sentence=None, text="", picture=None, faults=["the picture is cut short", "empty sentence"])
    page = Page(preview("a set", {}, [bad, row(masks={"bear": np.ones((20, 40), bool)})]))
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "article"] == ["bad", None]
    for said in (
        "no picture",
        "(no sentence)",
        "the picture is cut short",
        "empty sentence",
        "no mask of board",
        "40 x 20",
    ):
        assert said in page.said
    (image,) = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))).size == (SIDE, SIDE // 2)
    assert not re.search(r"https?:|src=.(?!data:)|url\(", preview("a set", {}, [bad])), "nothing is fetched"


def test_an_outline_follows_its_mask_and_leaves_the_rest():
    mask = np.zeros((20, 40), bool)
    mask[5:15, 10:30] = True
    shown = np.asarray(outlined(Image.new("RGB", (40, 20), "black"), {"bear": (mask, "#FF0000")}))
    assert shown.shape == (SIDE // 2, SIDE, 3)
    assert shown[80, 80].tolist() == [255, 0, 0] and shown[80, 78].tolist() == [255, 255, 255], "the mask begins at 80"
    assert shown[80, 70].tolist() == [0, 0, 0] and shown[80, 160].tolist() == [0, 0, 0]
    whole = np.asarray(outlined(Image.new("RGB", (40, 20), "black"), {"all": (np.ones((20, 40), bool), "#FF0000")}))
    assert not whole.any(), "a mask of everything has no border"
