"""Scores of a bank, found later: resumable, beside the bank, compared. The tiny base's pictures mean nothing."""

from __future__ import annotations

import io
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from mcpl.cli import app
from mcpl.config import Placement, RunConfig
from mcpl.data import scores
from mcpl.data.bank import Bank, decode, encode, members
from mcpl.data.schema import BANK, VERSION_KEY
from mcpl.data.scores import PICTURE, TEXT, TOGETHER, ScoredBank
from mcpl.data.sources import Dataset, scenes, write_dataset
from mcpl.data.storage import open_store
from mcpl.errors import BankMismatch, ConfigError
from mcpl.evaluation.metrics import Scored, score
from mcpl.evaluation.sampling import Sampling
from mcpl.models.stable_diffusion import files_digest
from mcpl.orchestration import comparing, evaluating, fanout, record
from mcpl.orchestration.compaction import compact
from mcpl.orchestration.evaluating import Asked, evaluate_bank, evaluate_banks, scoring_of
from mcpl.orchestration.job import masks_of
from mcpl.recipes import adjust, load
from tests.orchestration import invented

QUICK = Sampling(steps=1)
PLACED = Placement(shard_size=2, device="cpu")
PICTURES = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base_dir):
    """A dataset of scenes, and banks of invented words: two recipes, one with two seeds, and a ground truth."""
    root = tmp_path_factory.mktemp("banks")
    write_dataset(scenes(PICTURES, seed=5).examples(), str(root / "dataset"))

    def learn(name: str, recipe: str, **changes: object) -> str:
        config = RunConfig(
            dataset=str(root / "dataset"),
            output=str(root / name),
            recipe=adjust(load(recipe), base=str(tiny_base_dir), **changes),
            placement=PLACED,
        )
        assert fanout.run(config, invented.NAME, inline=True).learned == PICTURES
        return config.output

    return SimpleNamespace(
        dataset=str(root / "dataset"),
        plain=learn("plain", "plain"),
        other=learn("plain-again", "plain", seed=1),
        paper=learn("paper", "paper"),
        truth=learn("truth", "masked-inversion"),
    )


@pytest.fixture
def bank(made, tmp_path):
    """A copy of one bank, to be scored."""
    return shutil.copytree(made.plain, tmp_path / "bank").as_posix()


class Died(BaseException):
    """A worker's end: no error of a picture, which would only cost its row."""


@pytest.fixture
def scored(monkeypatch):
    """Ids that a runner scored, in order; one that `broken` holds ends the worker the first time."""
    seen = SimpleNamespace(ids=[], broken=set())
    original = evaluating.Runner._row

    def row(self, row):
        if row.id in seen.broken:
            seen.broken.discard(row.id)
            raise Died
        seen.ids.append(row.id)
        return original(self, row)

    monkeypatch.setattr(evaluating.Runner, "_row", row)
    return seen


def evaluated(bank: str, dataset: str | None = None, samples: int = 1, spaces=("judge",), placed=PLACED):
    return evaluate_bank(bank, scoring_of(bank, dataset, spaces, samples, 0, QUICK), placed, inline=True)


def files(bank: str) -> dict[str, bytes]:
    store = open_store(bank)
    return {entry.name: store.get(entry.name) for entry in store.list("part-")}


def test_scores_lie_beside_the_bank_and_nothing_is_done_twice(bank, made, scored):
    before = files(bank)
    found, summary = evaluated(bank, made.dataset)
    ids = Bank.open(bank).ids()
    assert scored.ids == ids and (summary.new, summary.learned, summary.failed) == (PICTURES, PICTURES, 0)
    metrics = found.metrics()[ids[0]]
    assert {
        "attention_iou", "assignment", "pointing_game", "right_object", "right_object_step0", "leak", "composition",
        "word_similarity", "fixed_noise_loss",
    } <= metrics.keys()  # fmt: skip
    assert files(bank) == before, "the bank itself stays as it is"
    again, summary = evaluated(bank, made.dataset)
    assert (summary.new, summary.resumed) == (0, PICTURES) and len(scored.ids) == PICTURES
    again.scores.store.delete("part-00000001.parquet")
    evaluated(bank, made.dataset)
    assert scored.ids[PICTURES:] == ids[2:4], "what is missing, and nothing else"
    rows = {row.id: row for row in again.rows()}
    words = [word.concept.slug for word in Bank.open(bank).row(ids[0]).learned.concepts]
    kept = rows[ids[0]].features
    assert {(w, s) for w in words for s in (TEXT, "text_step0", "judge", "judge_step0")} <= kept.keys()
    assert kept[TOGETHER, "judge"].shape == kept[PICTURE, "judge"].shape == (1, 128)


def test_a_worker_that_dies_loses_its_shard_alone(bank, scored):
    scored.broken = {Bank.open(bank).ids()[3]}
    with pytest.raises(Died):
        evaluated(bank)
    done = list(scored.ids)
    evaluated(bank)
    ids = Bank.open(bank).ids()
    assert done == ids[:3] and scored.ids[3:] == ids[2:], "the shard in hand is begun anew"


def test_what_changes_a_score_is_another_evaluation(bank, made):
    bare, same = scoring_of(bank), scoring_of(bank, samples=4)
    others = [scoring_of(bank, made.dataset), scoring_of(bank, samples=5), scoring_of(bank, seed=1),
              scoring_of(bank, spaces=()), scoring_of(bank, sampling=QUICK)]  # fmt: skip
    assert bare.fingerprint == same.fingerprint
    assert len({bare.fingerprint, *(other.fingerprint for other in others)}) == 6
    moved = scoring_of(bank, made.dataset).model_copy(update={"dataset": "elsewhere", "base": "renamed"})
    assert moved.fingerprint == others[0].fingerprint, "where things lie decides nothing"


def test_a_bank_that_grew_scores_its_new_rows_only(bank, scored):
    store, parts = open_store(bank), files(bank)
    last = max(parts)
    store.delete(last)
    evaluated(bank)
    first = list(scored.ids)
    store.put(last, parts[last])
    _, summary = evaluated(bank)
    assert scored.ids == first + [row.id for row in decode(parts[last])] and summary.rows == PICTURES


def test_parts_that_are_joined_meanwhile_are_found(bank, scored):
    scored.broken = {Bank.open(bank).ids()[2]}
    with pytest.raises(Died):
        evaluated(bank)
    compact(bank)
    _, summary = evaluated(bank)
    assert sorted(scored.ids) == sorted(Bank.open(bank).ids()) and summary.new == PICTURES - 2


def test_what_is_learned_again_has_none_of_its_earlier_scores(bank, made, scored):
    """Its id stays, and its words are others: with another seed here."""
    before, _ = evaluated(bank, samples=0, spaces=())
    ids, store, other = Bank.open(bank).ids(), open_store(bank), open_store(made.other)
    first = min(files(bank))
    store.put(first, other.get(first))
    shown = ScoredBank.open(bank)
    assert shown.row(ids[0]).metrics == Bank.open(bank).row(ids[0]).metrics, "not those of the words before"
    assert "word_similarity" in shown.row(ids[2]).metrics
    assert ids[:2] == [row.id for row in shown.rows() if "word_similarity" not in row.metrics]
    assert [row.id for row in evaluating.Evaluated(bank, before.scores).rows()] == ids[2:]
    mean = np.mean([before.metrics()[id]["word_similarity"] for id in ids[2:]])
    assert shown.summary().metrics["word_similarity"] == pytest.approx(mean)

    after, summary = evaluated(bank, samples=0, spaces=())
    assert scored.ids[PICTURES:] == ids[:2] and (summary.new, summary.resumed) == (2, PICTURES - 2)
    assert [row.id for row in after.rows()] == ids
    evaluated(bank, samples=0, spaces=())
    assert len(scored.ids) == PICTURES + 2, "and then nothing is to be done"


@pytest.mark.parametrize("when", ["scored", "not scored yet"])
def test_what_the_bank_lost_is_no_longer_to_be_scored(bank, made, scored, when):
    """Of one part a picture was learned again, and the other one is gone until it is learned again too."""
    store, other, ids, first = open_store(bank), open_store(made.other), Bank.open(bank).ids(), min(files(bank))
    found, _ = evaluated(bank, samples=0, spaces=())
    if when == "not scored yet":
        found.scores.store.delete(first)
    store.put(first, encode(decode(other.get(first))[1:]))
    found, summary = evaluated(bank, samples=0, spaces=())
    assert scored.ids[PICTURES:] == ids[1:2] and sorted(found.metrics()) == sorted(ids[1:])
    assert summary.rows == summary.learned == PICTURES - 1
    store.put(first, other.get(first))
    _, summary = evaluated(bank, samples=0, spaces=())
    assert scored.ids[PICTURES + 1 :] == ids[:1] and summary.rows == summary.learned == PICTURES


@pytest.mark.parametrize("again", [0, 1], ids=["the one that failed", "its neighbour"])
def test_a_picture_that_was_scored_again_counts_once(bank, made, tmp_path, again):
    """Its scoring failed, then it did not, and then a picture of its part was learned anew."""
    examples = list(Dataset.open(made.dataset).examples())
    write_dataset(examples[1:], str(tmp_path / "fewer"))
    evaluated(bank, str(tmp_path / "fewer"), 0, ())
    _, summary = evaluated(bank, made.dataset, 0, (), PLACED.model_copy(update={"retry_failed": True}))
    assert (summary.rows, summary.learned, summary.failed) == (PICTURES, PICTURES, 0)
    store, first = open_store(bank), min(files(bank))
    rows = decode(store.get(first))
    rows[again] = decode(open_store(made.other).get(first))[again]
    store.put(first, encode(rows))
    found, summary = evaluated(bank, made.dataset, 0, ())
    assert (summary.rows, summary.learned, summary.failed, summary.new) == (PICTURES, PICTURES, 0, 2)
    found.scores.store.delete(first)
    _, summary = evaluated(bank, made.dataset, 0, ())
    assert (summary.rows, summary.learned, summary.failed) == (PICTURES, PICTURES, 0)


def test_what_the_bank_shows_has_the_later_scores(bank, made):
    found, _ = evaluated(bank, made.dataset)
    opened, ids = ScoredBank.open(bank), Bank.open(bank).ids()
    later = found.metrics()
    assert opened.row(ids[1]).metrics.items() >= later[ids[1]].items()
    assert [row.metrics["composition"] for row in opened.rows()] == [later[id]["composition"] for id in ids]
    mean = np.mean([metrics["composition"] for metrics in later.values()])
    assert opened.summary().metrics["composition"] == pytest.approx(mean)
    found.scores.store.delete("part-00000000.parquet")
    losses = [row.metrics["fixed_noise_loss"] for row in Bank.open(bank).rows()]
    assert ScoredBank.open(bank).summary().metrics["fixed_noise_loss"] == pytest.approx(np.mean(losses)), "of all rows"
    result = CliRunner().invoke(app, ["bank", "info", bank])
    assert result.exit_code == 0 and "composition" in result.output and "leak" in result.output
    assert "composition" not in CliRunner().invoke(app, ["bank", "info", made.plain]).output


def test_later_scores_are_those_of_learning(bank, made):
    """Without pictures drawn both come from words, curve, maps and masks alone: the look that was kept among them."""
    found, _ = evaluated(bank, made.dataset, samples=0)
    masks = {e.id: masks_of(e, 16) for e in Dataset.open(made.dataset).examples()}
    for row in Bank.open(bank).rows():
        later, expected = found.metrics()[row.id], score(Scored(row.learned, masks[row.id]))
        assert later.items() >= expected.items() and {"attention_iou", "pointing_game"} <= expected.keys()
        assert later.items() >= row.metrics.items()


def test_the_look_that_was_kept_is_still_known(made):
    row = next(Bank.open(made.plain).rows())
    assert row.learned.kept_step == 0 and row.learned.kept == row.learned.curve[0]
    (last,) = decode(encode([replace(row, metrics={})]))
    assert last.learned.kept_step is None and last.learned.kept == row.learned.curve[-1]


def test_words_of_another_base_and_other_pictures_are_not_scored(bank, made, tmp_path):
    store = open_store(bank)
    examples = list(Dataset.open(made.dataset).examples())
    changed = [replace(examples[0], image=examples[1].image), *examples[2:]]
    write_dataset(changed, str(tmp_path / "changed"))
    found, summary = evaluated(bank, str(tmp_path / "changed"))
    reasons = {row.id: row.reason for row in found.rows() if row.status == "failed"}
    assert summary.failed == 2 and set(reasons) == {examples[0].id, examples[1].id}
    assert "is not the one that was learned from" in reasons[examples[0].id]
    assert "holds no picture" in reasons[examples[1].id]
    name = min(files(bank))
    rows = decode(store.get(name))
    foreign = [replace(row, provenance=replace(row.provenance, base_digest="0" * 16)) for row in rows]
    store.put(name, encode(foreign))
    with pytest.raises(BankMismatch, match="scores need the base that the words were learned with"):
        evaluated(bank)
    with pytest.raises(ConfigError, match="nothing is at"):
        scoring_of(str(tmp_path / "nowhere"))


def test_a_group_is_scored_by_all_its_pictures(made, tmp_path, tiny_base_dir):
    """Its words are drawn and judged whichever picture names them; what learning measured with every map stays."""
    both = [replace(example, group="pair") for example in list(Dataset.open(made.dataset).examples())[:2]]
    write_dataset(both, str(tmp_path / "dataset"))
    recipe = adjust(load("plain"), base=str(tiny_base_dir), steps=1, probe_timesteps=1)
    config = RunConfig(
        dataset=str(tmp_path / "dataset"), output=str(tmp_path / "bank"), recipe=recipe, placement=PLACED
    )
    assert fanout.run(config, inline=True).learned == 1
    row = Bank.open(config.output).row("pair")
    found, _ = evaluated(config.output, config.dataset)
    (later,) = found.rows()
    assert later.reason is None and len(row.used) == 2
    assert {(w.concept.slug, "judge_step0") for w in row.learned.concepts} <= later.features.keys()
    assert {"right_object", "leak_step0", "composition"} <= later.metrics.keys()
    assert not later.metrics.keys() & row.metrics.keys() and "attention_iou" in row.metrics
    shown = ScoredBank.open(config.output).row(both[1].id).metrics
    assert shown == {**row.metrics, **later.metrics}


def test_a_bank_of_the_format_before_groups_is_scored(bank):
    store = open_store(bank)
    for name in files(bank):
        old = pq.read_table(io.BytesIO(store.get(name))).drop_columns(["pictures"])
        buffer = io.BytesIO()
        pq.write_table(old.replace_schema_metadata(BANK.metadata | {VERSION_KEY: b"1"}), buffer)
        store.put(name, buffer.getvalue())
    _, summary = evaluated(bank, samples=0, spaces=())
    assert (summary.learned, summary.failed) == (PICTURES, 0)


def test_damaged_scores_are_told_in_a_line(bank, made):
    found, _ = evaluated(bank)
    found.scores.store.put("part-00000000.parquet", b"PAR1 and no more")
    for read in (lambda: list(found.rows()), lambda: evaluated(bank)):
        with pytest.raises(ConfigError, match="00000000.parquet is .*damaged .*delete it and run mcpl evaluate again"):
            read()
    found.scores.store.put("part-00000000.parquet", open_store(made.plain).get("part-00000000.parquet"))
    with pytest.raises(ConfigError, match="holds no scores"):
        list(found.rows())


@pytest.mark.parametrize("damage", ["cut short", "words"])
def test_a_damaged_part_of_the_bank_is_told_in_a_line(bank, made, damage):
    """Also where only its words are, which nothing reads before they are scored."""
    store, name = open_store(bank), max(files(bank))
    content = bytearray(store.get(name))
    columns = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    (at,) = (
        columns.column(i).data_page_offset
        for i in range(columns.num_columns)
        if ".vectors." in columns.column(i).path_in_schema
    )
    content[at : at + 16] = bytes(16)
    store.put(name, bytes(content[:-100] if damage == "cut short" else content))
    with pytest.raises(ConfigError) as told:
        evaluated(bank, samples=0, spaces=())
    assert str(told.value).startswith(f"{bank}/{name} is cut short or damaged (")
    assert str(told.value).endswith("; delete it, and the command that made the bank learns its pictures again")


@pytest.fixture(scope="module")
def compared(made):
    """All four banks scored with two pictures a word, and the two methods against the truth."""
    asked = Asked(None, ("judge",), 2, 0, QUICK)
    done, stopped = evaluate_banks([made.plain, made.other, made.paper, made.truth], asked, PLACED, inline=True)
    assert not stopped
    return SimpleNamespace(done=done, found=comparing.compare(done[:3], done[3:]))


def test_seeds_of_one_recipe_are_one_method(compared):
    plain, paper = compared.found.methods
    assert (plain.label, len(plain.banks), paper.label, len(paper.banks)) == ("plain", 2, "paper", 1)
    seeds = {(id, seed) for id, seed, _ in plain.values["fixed_noise_loss"]}
    assert len(seeds) == 2 * PICTURES and {seed for _, seed in seeds} == {0, 1}
    assert len(plain.values["prompt_fidelity"]) == PICTURES, "seeds are paired, not averaged apart"


def test_the_truth_is_as_near_to_itself_as_can_be(compared):
    truth = compared.done[3]
    found = comparing.compare([truth], [truth])
    (itself,) = found.methods
    assert itself.interval("prompt_fidelity").mean == pytest.approx(1)
    assert itself.interval("prompt_fidelity_other").mean < 1
    assert itself.interval("image_fidelity_judge").mean == pytest.approx(
        found.ceiling.interval("image_fidelity_judge").mean
    )


def test_a_bank_that_is_named_twice_keeps_both_its_places(compared, made):
    """As method and as ground truth: else the one would be taken for the other, and nothing compared."""
    asked = Asked(None, ("judge",), 2, 0, QUICK)
    done, _ = evaluate_banks([made.truth, made.plain, made.truth], asked, PLACED, inline=True)
    assert [one.bank for one in done] == [made.truth, made.plain, made.truth]


def test_differences_are_paired_with_the_first(compared):
    gains = compared.found.differences()
    assert {method for _, method in gains} == {"paper"}
    plain, paper = (method.by_picture("prompt_fidelity") for method in compared.found.methods)
    found = gains["prompt_fidelity", "paper"]
    assert found.mean == pytest.approx(np.mean([paper[id] - plain[id] for id in plain])) and found.pictures == PICTURES
    assert 0 < found.p <= 1


def test_a_comparison_is_of_the_pictures_that_all_banks_scored(compared, bank):
    """Its means too: a bank that holds more is not averaged over them."""
    shutil.rmtree(f"{bank}/_scores", ignore_errors=True)
    store = open_store(bank)
    store.delete(max(files(bank)))
    fewer, _ = evaluate_banks([bank], Asked(None, ("judge",), 2, 0, QUICK), PLACED, inline=True)
    found = comparing.compare([compared.done[2], *fewer])
    left = Bank.open(bank).ids()
    assert found.pictures == len(left) < PICTURES
    assert set(found.methods[0].by_picture("fixed_noise_loss")) == set(left)


def test_a_comparison_tells_how_many_pictures_a_failure_leaves_out(compared, bank):
    """Of what diverged under one recipe there is nothing to compare, under any."""
    shutil.rmtree(f"{bank}/_scores", ignore_errors=True)
    store, last = open_store(bank), max(files(bank))
    lost = [replace(row, status="failed", learned=None, reason="diverged") for row in decode(store.get(last))]
    store.put(last, encode(lost))
    fewer, _ = evaluate_banks([bank], Asked(None, ("judge",), 2, 0, QUICK), PLACED, inline=True)
    told = comparing.table(comparing.compare([compared.done[2], *fewer]))
    assert (
        f"{PICTURES - len(lost)} pictures that all banks scored" in told and f" {len(lost)} more are left out" in told
    )
    assert "left out" not in comparing.table(compared.found)


def test_a_comparison_is_written_with_what_it_follows_from(compared, tmp_path):
    names = comparing.write(compared.found, str(tmp_path / "out"), "A title")
    assert set(names) == {"comparison.md", "raw.parquet", "fidelity.png", "words.png"}
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.startswith("# A title") and "| metric | plain | paper | ceiling |" in text
    assert "| prompt fidelity |" in text and "![words](words.png)" in text and "seeds: plain 2, paper 1" in text
    table = pq.read_table(io.BytesIO((tmp_path / "out" / "raw.parquet").read_bytes())).to_pylist()
    values = [r["value"] for r in table if (r["method"], r["metric"]) == ("paper", "prompt_fidelity")]
    shown = text.split("| prompt fidelity |")[1].split("|")[1]
    assert shown.strip().startswith(f"{np.mean(values):.3f} [")
    for name in ("fidelity.png", "words.png"):
        picture = Image.open(tmp_path / "out" / name)
        assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_other_settings_and_nothing_in_common_are_refused(compared, bank):
    other, _ = evaluated(bank)
    with pytest.raises(BankMismatch, match="several settings"):
        comparing.compare([compared.done[0], other])


def test_the_command(made, bank, tmp_path):
    """Without a dataset: no masks and no judge, but words and pictures can be compared."""
    arguments = ["evaluate", bank, "--against", made.truth, "--samples", "2", "--steps", "1", "--device", "cpu"]
    arguments += ["--seed", "7"]  # another than that of the banks that are scored already
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"{PICTURES} pictures scored" in result.output and "| prompt fidelity | " in result.output
    assert "right object" not in result.output and (tmp_path / "out" / "comparison.md").exists()
    again = CliRunner().invoke(app, arguments)
    assert f"0 pictures scored in 0 s, {PICTURES} before" in again.output
    with pytest.raises(ConfigError, match="there are judge, clip"):
        CliRunner().invoke(app, [*arguments, "--features", "vgg"], catch_exceptions=False)


def test_failures_decide_the_exit_code_and_are_scored_again_when_asked(made, bank, tmp_path):
    examples = list(Dataset.open(made.dataset).examples())
    write_dataset(examples[1:], str(tmp_path / "fewer"))
    arguments = ["evaluate", bank, "--features", "none", "--samples", "0", "--device", "cpu", "--dataset"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "fewer")])
    assert result.exit_code == 3 and "more than --max-failed-share 0.1" in result.stderr
    assert f"1 failed; {examples[0].id}: " in result.output and "holds no picture" in result.output
    assert "| fixed noise loss |" in result.output, "of the others"
    told = [*arguments, str(tmp_path / "fewer"), "--max-failed-share", "0.2"]
    assert CliRunner().invoke(app, told).exit_code == 0
    result = CliRunner().invoke(app, [*arguments, made.dataset])
    assert result.exit_code == 3, "what was recorded stays"
    result = CliRunner().invoke(app, [*arguments, made.dataset, "--retry-failed"])
    assert result.exit_code == 0 and "1 pictures scored" in result.output and "0 failed" in result.output


def test_a_bank_of_which_nothing_could_be_scored_ends_with_the_same_code(made, bank, tmp_path):
    """There is nothing to compare then."""
    write_dataset(scenes(1, seed=6).examples(), str(tmp_path / "others"))
    arguments = ["evaluate", bank, "--features", "none", "--samples", "0", "--device", "cpu", "--dataset"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "others")])
    assert result.exit_code == 3 and f"{PICTURES} of {PICTURES} pictures of {bank}" in result.stderr


def test_the_base_may_lie_elsewhere_now(made, bank, tmp_path, tiny_base_dir):
    """Where it was is gone; another base is refused, and does not become the evaluation's."""
    run = open_store(bank)
    run.put("_mcpl/run.json", run.get("_mcpl/run.json").replace(str(tiny_base_dir).encode(), b"/gone"))
    arguments = ["evaluate", bank, "--features", "none", "--samples", "0", "--device", "cpu"]
    with pytest.raises(ConfigError, match="--model /gone: neither a directory"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    for name in ("moved", "other"):
        shutil.copytree(tiny_base_dir, tmp_path / name)
    (tmp_path / "other" / "vae" / "more.txt").write_text("other")
    with pytest.raises(BankMismatch, match="--model names its directory"):
        CliRunner().invoke(app, [*arguments, "--model", str(tmp_path / "other")], catch_exceptions=False)
    result = CliRunner().invoke(app, [*arguments, "--model", str(tmp_path / "moved")], catch_exceptions=False)
    assert result.exit_code == 0 and f"{PICTURES} pictures scored" in result.output

    for found in scores.evaluations(run):  # claimed for a base, and nothing scored
        for entry in members(found.store):
            found.store.delete(entry.name)
    for name in files(bank):  # all of it learned again on the other base
        rows = decode(run.get(name))
        known = files_digest(tmp_path / "other")
        run.put(name, encode([replace(r, provenance=replace(r.provenance, base_digest=known)) for r in rows]))
    result = CliRunner().invoke(app, [*arguments, "--model", str(tmp_path / "other")], catch_exceptions=False)
    assert result.exit_code == 0 and f"{PICTURES} pictures scored" in result.output


def test_the_pipeline_does_the_same_from_its_environment(made, bank, monkeypatch, capsys):
    from mcpl.cli.terminal import run
    from pipelines import evaluate_all

    for name, value in {"BANK": bank, "SAMPLES": "1", "STEPS": "1", "DEVICE": "cpu", "FEATURES": "none"}.items():
        monkeypatch.setenv(f"MCPL_{name}", value)
    monkeypatch.setattr("sys.argv", ["evaluate_all.py", "--inline", "--shard-size", "2"])
    with pytest.raises(SystemExit) as ended:
        run(evaluate_all.app, "evaluate_all")
    printed = capsys.readouterr()
    assert ended.value.code == 0 and f"{PICTURES} pictures scored" in printed.out, printed
    monkeypatch.setenv("MCPL_BANK", f"{bank}-nowhere")
    with pytest.raises(SystemExit) as ended:
        run(evaluate_all.app, "evaluate_all")
    assert ended.value.code == 1 and "evaluate_all: nothing is at" in capsys.readouterr().err


def test_the_run_of_a_bank_is_told_its_scores(made, tmp_path, migrated, tiny_base_dir, monkeypatch, capsys):
    """In the run that learning opened; not before everything is learned."""
    from mlflow import MlflowClient

    from mcpl.cli.terminal import run
    from pipelines import evaluate_all

    shutil.copyfile(migrated, tmp_path / "mlflow.db")
    config = RunConfig(
        dataset=made.dataset,
        output=str(tmp_path / "bank"),
        recipe=adjust(load("plain"), base=str(tiny_base_dir)),
        placement=PLACED,
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
    )
    record.learn_dataset(config, runner=invented.NAME, inline=True)
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name("mcpl").experiment_id

    def evaluate(*options: str) -> str:
        arguments = ["--bank", config.output, "--samples", "0", "--features", "none", "--device", "cpu", "--inline"]
        arguments += ["--tracking-uri", config.tracking_uri, *options]
        monkeypatch.setattr("sys.argv", ["evaluate_all.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            run(evaluate_all.app, "evaluate_all")
        assert ended.value.code == 0
        return capsys.readouterr().out

    def told():
        (one,) = client.search_runs([experiment])
        return one.info.status, one.data.metrics.get("fidelity/word_similarity")

    store, last = open_store(config.output), max(files(config.output))
    part = store.get(last)
    store.delete(last)
    silent = evaluate()
    store.put(last, part)
    silent += evaluate("--tracker", "none") + evaluate("--tracking-uri", f"sqlite:///{tmp_path}/another.db")
    assert "has the scores" not in silent and told() == ("FINISHED", None)
    assert not (tmp_path / "another.db").exists()
    assert f"{config.output}: its MLflow run has the scores" in evaluate()
    mean = ScoredBank.open(config.output).summary().metrics["word_similarity"]
    assert told() == ("FINISHED", pytest.approx(mean))
    (found,) = scores.evaluations(store)
    found.store.put(last, b"PAR1 and no more")
    with pytest.raises(ConfigError, match="damaged"):
        record.tell_scores(config.output, tracking_uri=config.tracking_uri)
    assert told()[0] == "FINISHED"
    (one,) = client.search_runs([experiment])
    kept = pq.read_table(client.download_artifacts(one.info.run_id, "pictures.parquet", str(tmp_path)))
    assert len(kept) == PICTURES and "word_similarity" in kept.column_names


def test_the_authors_layout_is_learned_and_scored(tmp_path, tiny_base_dir):
    """Pictures in folders, sentences in their names, masks beside them: learned, scored against masked inversion."""
    noise = np.random.default_rng(0)
    for name in ("a brown bear on a red board", "a small bear on a wide board"):
        folder = tmp_path / "dataset" / "natural_2_concepts" / "bear_board"
        for part in ("unmasked", "masked_bear_binary", "masked_board_binary"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (24, 20, 3), np.uint8)).save(folder / "unmasked" / f"{name}.png")
        for word, half in (("bear", slice(0, 10)), ("board", slice(10, 20))):
            mask = np.zeros((24, 20), np.uint8)
            mask[:, half] = 255
            Image.fromarray(mask).save(folder / f"masked_{word}_binary" / f"{name}.png")
    data = Dataset.open(str(tmp_path / "dataset"))
    assert data.kind == "multi-concept-dataset"
    for recipe in ("plain", "masked-inversion"):
        chosen = adjust(load(recipe), base=str(tiny_base_dir), steps=1, probe_timesteps=1)
        config = RunConfig(dataset=data.uri, output=str(tmp_path / recipe), recipe=chosen, placement=PLACED)
        summary = fanout.run(config, inline=True)
        assert summary.learned == 2, [row.reason for row in Bank.open(config.output).rows()]
    asked = Asked(data.uri, ("judge",), 2, 0, QUICK)
    banks = [str(tmp_path / "plain"), str(tmp_path / "masked-inversion")]
    done, _ = evaluate_banks(banks, asked, PLACED, inline=True)
    found = comparing.compare(done[:1], done[1:])
    told = {"attention_iou", "assignment", "pointing_game", "prompt_fidelity", "image_fidelity_judge"}
    assert told <= set(found.metrics)
    assert not {"right_object", "leak", "composition"} & set(found.metrics), "no judge knows real pictures"
    assert not math.isnan(found.methods[0].interval("image_fidelity_judge").mean)
    assert len(members(done[0].scores.store)) == 1 and scores.evaluations(open_store(banks[0]))
