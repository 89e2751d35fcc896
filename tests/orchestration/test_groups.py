"""MCPL-diverse from dataset to bank: a group is one job and one row, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mcpl.config import Placement, Recipe, RunConfig
from mcpl.data import concepts
from mcpl.data.bank import BANK_VERSION, Bank, decode, encode
from mcpl.data.dataset import Dataset
from mcpl.data.schema import BANK, VERSION_KEY
from mcpl.data.storage import open_store
from mcpl.data.writing import encode_examples
from mcpl.generation.words import gather
from mcpl.orchestration import estimate, fanout
from mcpl.orchestration import plan as plans
from mcpl.orchestration.compaction import compact
from mcpl.orchestration.job import Runner
from mcpl.orchestration.looking import ids_of
from mcpl.orchestration.reporting import write_report
from mcpl.orchestration.showing import sentence_of, shown_rows
from mcpl.types import Example, Group
from tests.orchestration import stub
from tests.orchestration.scenario import Scenario

RECIPE = Recipe(name="test", precision="float64", steps=3, batch=2, probe_every=2, probe_timesteps=2, lr=0.05)
PAIR = ("a red <star> <near:above> a <box>", "a <ring> <under:below> a blue <star>")


def png(seed: int, shape=(16, 16, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def half(left: bool) -> bytes:
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :8] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask if left else 255 - mask).save(buffer, "PNG")
    return buffer.getvalue()


def picture(number: int, text: str = "a red <star> by a <ring>", group: str | None = None, **more) -> Example:
    return Example(f"p{number}", png(number), text, group=group, **more)


def pair(name: str = "pair", first: int = 10) -> Group:
    return Group(name, tuple(picture(first + i, text, name) for i, text in enumerate(PAIR)))


def vectors(row) -> dict[str, torch.Tensor]:
    return {word.concept.slug: word.vectors for word in row.learned.concepts}


def alike(first, second) -> bool:
    ours, theirs = vectors(first), vectors(second)
    return list(ours) == list(theirs) and all((ours[slug] - theirs[slug]).abs().max() < 1e-9 for slug in ours)


def runner(tiny, **placement) -> Runner:
    return Runner(RECIPE, Placement(**placement), model=tiny)


def test_a_groups_words_are_one_set_in_one_row(tiny):
    (row,) = runner(tiny)([pair()])
    assert (row.id, row.status, row.text, row.reason) == ("pair", "learned", PAIR[0], None)
    assert list(vectors(row)) == ["star", "near", "box", "ring", "under"], "<star> of both sentences is one word"
    assert [(p.id, p.words, p.reason) for p in row.pictures] == [
        ("p10", ("star", "near", "box"), None),
        ("p11", ("star", "ring", "under"), None),
    ]
    (back,) = decode(encode([row]))
    assert back.pictures == row.pictures and back.provenance == row.provenance
    assert [row.picture_of(slug) for slug in vectors(row)] == ["p10", "p10", "p10", "p11", "p11"]
    assert row.told_of("ring") == PAIR[1]


def test_the_key_is_of_all_pictures_and_sentences(tiny):
    group = pair()
    swapped = dataclasses.replace(group, pictures=group.pictures[::-1])
    fewer = dataclasses.replace(group, pictures=group.pictures[:1])
    keys = {row.provenance.key for row in runner(tiny)([group, swapped, fewer])}
    assert len(keys) == 3
    assert runner(tiny)([fewer])[0].provenance.key == runner(tiny)([group.pictures[0]])[0].provenance.key


def test_a_group_packed_learns_what_it_learns_alone(tiny):
    jobs = [picture(0), pair(), picture(1, "a <box>"), pair("other", 20)]
    packed = runner(tiny, pack=4)(jobs)
    for ours, job in zip(packed, jobs, strict=True):
        assert alike(ours, *runner(tiny, pack=1)([job])), job.id


def test_a_bad_picture_of_a_group_is_left_out_with_its_reason(tiny):
    good = pair()
    broken = Example("broken", b"not a picture", "a <star>", group="pair")
    wordless = picture(12, "no mark here", "pair")
    (row,) = runner(tiny)([Group("pair", (broken, *good.pictures, wordless))])
    assert row.status == "learned" and row.text == PAIR[0]
    assert alike(row, *runner(tiny)([good])), "what is left out changes nothing"
    reasons = {p.id: p.reason for p in row.pictures}
    assert reasons["p10"] is reasons["p11"] is None
    assert "not a picture" in reasons["broken"] and "no placeholder" in reasons["p12"]
    assert "picture 'broken' is left out" in row.reason and "\n" not in row.reason
    (failed,) = runner(tiny)([Group("bad", (broken, wordless))])
    assert failed.status == "failed" and all(p.reason for p in failed.pictures)
    listed = Runner(RECIPE.model_copy(update={"words": "list:moon"}), Placement(), model=tiny)
    (skipped,) = listed([Group("none", (picture(1, "a disc"), picture(2, "a square")))])
    assert skipped.status == "skipped"


def test_scores_are_of_all_pictures_of_the_group(tiny):
    """Masks of both pictures: the group's score is the mean of what each picture says."""
    masks = {"star": half(True), "ring": half(False)}
    text = "a red <star> by a <ring>"
    both = tuple(picture(n, text, "g", masks=masks) for n in (1, 2))
    group, first, second = (
        Group("g", tuple(dataclasses.replace(p, masks=masks if n in kept else {}) for n, p in enumerate(both)))
        for kept in ((0, 1), (0,), (1,))
    )
    scores = [row.metrics for row in runner(tiny)([group, first, second])]
    for name in ("attention_iou", "assignment", "pointing_game", "attention_iou_step0"):
        assert scores[0][name] == pytest.approx((scores[1][name] + scores[2][name]) / 2), name
    assert scores[0]["fixed_noise_loss"] == pytest.approx(scores[1]["fixed_noise_loss"], rel=1e-12)  # sums of one pack
    assert all(value in (0, 1) for name, value in scores[0].items() if name.startswith("sign_"))


@pytest.fixture
def config(tmp_path, tiny_base_dir):
    """Three groups of two among single pictures, whose rows lie apart; shards of three rows."""
    groups = [pair(name, first).pictures for name, first in (("x", 10), ("y", 20), ("z", 30))]
    rows = [groups[0][0], picture(0), groups[1][0], groups[0][1], *groups[2], picture(1), groups[1][1]]
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "part-0.parquet").write_bytes(encode_examples(rows[:5], 2))
    (tmp_path / "dataset" / "part-1.parquet").write_bytes(encode_examples(rows[5:], 2))

    def make(output: str) -> RunConfig:
        recipe = RECIPE.model_copy(update={"base": str(tiny_base_dir)})
        placement = Placement(shard_size=2, pack=2, device="cpu")
        return RunConfig(
            dataset=str(tmp_path / "dataset"), output=str(tmp_path / output), recipe=recipe, placement=placement
        )

    return make


class Dying(Runner):
    """Is killed after its first shard."""

    shards = 0

    def __call__(self, jobs, on_done=None):
        if type(self).shards:
            raise RuntimeError("the machine is gone")
        type(self).shards += 1
        return super().__call__(jobs, on_done)


def test_a_resumed_run_ends_as_an_uninterrupted_one(config, tmp_path):
    whole = fanout.run(config("whole"), inline=True)
    assert (whole.rows, whole.learned) == (5, 5) and "3 groups" in " ".join(whole.notes)
    with pytest.raises(RuntimeError, match="gone"):
        fanout.run(config("cut"), "tests.orchestration.test_groups:Dying", inline=True)
    resumed = fanout.run(config("cut"), inline=True)
    assert 0 < resumed.resumed < 5 and resumed.new == 5 - resumed.resumed
    scenario = Scenario(tmp_path)
    assert scenario.compared("cut").equals(scenario.compared("whole"))
    assert fanout.run(config("cut"), inline=True).new == 0
    for name in ("x", "y", "z"):
        row = Bank.open(tmp_path / "whole").row(name)
        assert len(row.pictures) == 2 and len(row.learned.concepts) == 5


def test_a_groups_words_are_found_by_each_of_its_pictures(config, tmp_path):
    fanout.run(config("bank"), inline=True)
    bank = Bank.open(tmp_path / "bank")
    assert sorted(bank.ids()) == ["p0", "p1", "x", "y", "z"] and bank.summary().groups == 3
    assert bank.row("p11").id == bank.row("x").id == "x" and bank.row("p0").id == "p0"
    assert [hit.id for hit in bank.search("star", "p20")] == ["y"]
    told = {hit.text for hit in bank.search("ring")}
    assert PAIR[1] in told and PAIR[0] not in told, "the sentence that names it"
    assert bank.row_id("nobody") is None and bank.search("star", "nobody") == []
    assert ids_of(png(31), [tmp_path / "bank"]) == ["z"] and ids_of(png(1), [tmp_path / "bank"]) == ["p1"]
    words, notes = gather(("star", "under"), [tmp_path / "bank"], ids=["p30", "p31"])
    assert {word.picture for word in words.values()} == {"z"} and not notes
    written = concepts.export(bank, tmp_path / "out", ["p10", "p11"])
    assert len(written) == 5, "one set of words, whichever picture asks"


def test_compaction_keeps_groups(config, tmp_path):
    fanout.run(config("bank"), inline=True)
    before = Scenario(tmp_path).compared("bank")
    assert compact(str(tmp_path / "bank")).files
    assert Scenario(tmp_path).compared("bank").equals(before)
    assert fanout.run(config("bank"), inline=True).new == 0


def test_rows_of_the_format_before_groups_are_read(tiny):
    table = pq.read_table(io.BytesIO(encode(runner(tiny)([picture(0)]))))
    old = table.drop_columns(["pictures"]).replace_schema_metadata(BANK.metadata | {VERSION_KEY: b"1"})
    buffer = io.BytesIO()
    pq.write_table(old, buffer)
    (row,) = decode(buffer.getvalue())
    assert BANK_VERSION == 2 and row.pictures == () and row.shown == "p0"


def test_a_group_that_failed_is_tried_again_as_a_whole(tmp_path):
    rows = [picture(n, group="pair" if n < 2 else None) for n in range(4)]
    scenario = Scenario(tmp_path)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "part-0.parquet").write_bytes(encode_examples(rows))
    scenario.tell(fail=["pair"])
    first = scenario.run(scenario.config())
    assert (first.rows, first.learned, first.failed) == (3, 2, 1)
    scenario.tell()
    again = scenario.run(scenario.config(retry_failed=True))
    assert (again.rows, again.learned, again.failed) == (3, 3, 0)
    assert scenario.times_learned() == {"pair": 2, "p2": 1, "p3": 1}


def test_rows_that_moved_since_they_were_planned_stay_whole_groups(tmp_path):
    """A file is added before the planned ones: what the plan points at is now half of a group."""
    scenario = Scenario(tmp_path)
    (tmp_path / "dataset").mkdir()
    rows = [picture(n, group=f"g{n // 2}") for n in range(8)]
    (tmp_path / "dataset" / "part-1.parquet").write_bytes(encode_examples(rows))
    config = scenario.config()
    plans.open_plan(open_store(config.output), Dataset.open(config.dataset), config.recipe, 2)
    (tmp_path / "dataset" / "part-1.parquet").write_bytes(encode_examples([picture(99), *rows]))
    assert scenario.run(config).rows == 5
    assert set(stub.PICTURES) >= {f"g{n}:2" for n in range(4)} and not any(":1" in p for p in stub.PICTURES if "g" in p)


def test_an_estimate_counts_groups(config, tmp_path, tiny):
    made = config("bank")
    found = estimate.estimate(made.dataset, made.recipe, made.placement, 2, [1])
    assert found.rows == 5 and found.measured.failed == 0


def test_a_report_shows_every_word_on_its_own_picture(config, tmp_path):
    made = config("bank")
    fanout.run(made, inline=True)
    shown = {one.id: one for one in shown_rows(Bank.open(made.output), Dataset.open(made.dataset), 9)}
    assert set(shown) == {"p0", "p1", "x", "y", "z"}
    on = [np.asarray(word.picture) for word in shown["x"].words]
    for place, number in enumerate((10, 10, 10, 11, 11)):
        assert (on[place] == np.asarray(Image.open(io.BytesIO(png(number))))).all(), place
    sentence = sentence_of(Bank.open(made.output).row("x"))
    assert sentence.text == PAIR[0] and [c.slug for c in sentence.concepts] == ["star", "near", "box", "ring", "under"]
    written = write_report(made.output, made.dataset, str(tmp_path / "page"))
    assert written.pictures == 5
    rows = json.loads((tmp_path / "page/data/0000.js").read_text().partition(", ")[2].rstrip(");\n"))
    own = {row["provenance"].get("pictures", ""): row for row in rows}
    group = next(row for told, row in own.items() if "p10" in told and "p11" in told)
    assert group["picture"] and ["picture" in word for word in group["words"]] == [False] * 3 + [True] * 2
