"""From bank rows to a registered version, and back by picture and by word."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mcpl.errors import BankMismatch, ConfigError
from mcpl.generation.words import gather
from mcpl.tracking import index, lookup_model, registry
from mcpl.tracking.server import connect, resolve_uri, speaking_to
from mcpl.types import GroupPicture


@pytest.fixture
def publish(home):
    def _publish(rows, name="toys", **changes):
        return registry.publish(rows, name, **{"bank": "s3://ann:pw@store/out", "home": home} | changes)

    return _publish


def test_published_words_come_back_by_picture_and_by_word(publish, bank_row, home):
    import mlflow.pyfunc

    rows = [bank_row(0), bank_row(1, ("bear", "ring")), bank_row(2, status="failed")]
    made = publish(rows, description="Toys on a table.", dataset="s3://store/toys")
    assert (made.version, made.uri) == (1, "models:/toys@champion")

    with speaking_to(resolve_uri(None, home)):  # what a stranger with the tracking URI set would write
        model = mlflow.pyfunc.load_model("models:/toys@champion")
    found = model.predict(pd.DataFrame({"image_id": ["p1"]}))
    assert list(found.word) == ["bear", "ring"]
    assert found.columns.tolist() == ["query", *lookup_model.ANSWER]
    assert (found.sentence[0], found.initializer[0], found.metrics[0]) == (
        "a <bear> and a <ring>",
        "thing",
        {"assignment": 0.1},
    )
    wanted = rows[1].learned.concepts[1].vectors
    np.testing.assert_array_equal(np.float32(found.vectors[1]), wanted)
    assert found.norm[1] == pytest.approx(np.linalg.norm(wanted, axis=1).mean(), rel=1e-6)

    both = model.predict(pd.DataFrame({"image_id": [None, "p0", "nobody"], "word": ["<bear>", "board", "bear"]}))
    assert list(zip(both["query"], both.image_id, both.word, strict=True)) == [
        (0, "p0", "bear"),
        (0, "p1", "bear"),
        (1, "p0", "board"),
    ]
    assert list(model.predict({"word": ["ring", "board"]}).word) == [
        "ring",
        "board",
    ]  # a dict of lists, as in the README
    with pytest.raises(ValueError, match="image_id, word or both"):
        model.unwrap_python_model().predict(None, pd.DataFrame({"name": ["bear"]}))

    assert list(registry.lookup("toys", word="ring", home=home).image_id) == ["p1"]
    assert list(registry.lookup("models:/toys/1", image_id=["p0", "p1"], word="bear", home=home).image_id) == [
        "p0",
        "p1",
    ]
    assert registry.lookup("toys@champion", word="bea", home=home).empty


def test_a_groups_words_are_found_by_its_name_and_by_each_of_its_pictures(publish, bank_row, home):
    pictures = (
        GroupPicture("a", "a <bear>", "1" * 64, ("bear",)),
        GroupPicture("b", "a <ring> by a <bear>", "2" * 64, ("ring", "bear")),
        GroupPicture("c", "no mark", "3" * 64, (), "no placeholder"),
    )
    publish([bank_row(0), replace(bank_row(1, ("bear", "ring")), pictures=pictures)])
    for asked in ("p1", "a", "b"):
        found = registry.lookup("toys", image_id=asked, home=home)
        assert list(zip(found.image_id, found.word, found.sentence, strict=True)) == [
            ("p1", "bear", "a <bear>"),
            ("p1", "ring", "a <ring> by a <bear>"),
        ]
        assert [list(ids) for ids in found.pictures] == [["a", "b"]] * 2
    assert registry.lookup("toys", image_id="c", home=home).empty, "it was left out"
    assert registry.lookup("toys", image_id="p0", home=home).pictures.isna().all()
    words, notes = gather(("bear", "ring"), ["models:/toys@champion"], ids=["a", "b"], home=home)
    assert {word.picture for word in words.values()} == {"p1"} and not notes


def test_words_of_a_version_stand_in_a_sentence_to_draw(publish, bank_row, home):
    """What `mcpl generate "..." models:/toys@champion` takes, beside words of a version that `--id` narrows."""
    publish([bank_row(0), bank_row(1, ("bear", "ring"))])
    words, notes = gather(("bear-2", "ring"), ["models:/toys@champion"], home=home)
    assert [(w.picture, w.base, w.base_digest) for w in words.values()] == [("p1", "tiny", "b" * 64)] * 2
    np.testing.assert_array_equal(words["bear-2"].vectors, np.float32(bank_row(1).learned.concepts[0].vectors))
    assert "<bear> is that of picture p0 in models:/toys@champion" in notes[0]
    (only,) = gather(("bear",), ["models:/toys@champion"], ids=["p1"], home=home)[0].values()
    assert only.picture == "p1"
    with pytest.raises(ConfigError, match="<moon> was learned in none of models:/toys@champion"):
        gather(("moon",), ["models:/toys@champion"], home=home)


def test_a_version_says_what_it_holds_and_no_secrets(publish, bank_row, home):
    made = publish([bank_row(0), bank_row(1), bank_row(2, status="failed")], description="Toys", tags={"study": "s1"})
    assert made.tags | {
        "base": "tiny",
        "base_digest": "b" * 64,
        "recipe": "paper",
        "recipe_fingerprint": "f" * 16,
        "pictures": "2",
        "words": "4",
        "concepts": "bear, board",
        "score.assignment": "0.05",
        "study": "s1",
        "bank": "s3://***@store/out",
    } == dict(made.tags)
    assert made.description.startswith("Toys\n")
    assert "| assignment |  | 0.05 | 2 |" in made.description and "| failed | 1 |" in made.description
    manifest = json.loads(next(home.rglob("manifest.json")).read_text())
    assert (manifest["pictures"], manifest["left_out"], manifest["concepts"]) == (
        2,
        {"failed": 1},
        {"bear": 2, "board": 2},
    )
    assert not [path for path in home.rglob("*") if path.suffix in (".pkl", ".pickle")]
    assert b"pw@" not in b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


def test_the_alias_moves_and_the_same_words_make_no_second_version(publish, bank_row, home):
    first = publish([bank_row(0)])
    second = publish([bank_row(0), bank_row(1)], alias="challenger")
    again = publish([bank_row(0)])
    assert [first.version, second.version, again.version] == [1, 2, 1]
    assert {v.version: v.aliases for v in registry.versions("toys", home=home)} == {
        1: ("champion",),
        2: ("challenger",),
    }
    assert len(registry.lookup("toys", word="bear", home=home)) == 1
    registry.set_alias("toys", 2, home=home)
    assert [v.aliases for v in registry.versions("toys", home=home)] == [("champion", "challenger"), ()]
    assert len(registry.lookup("toys", word="bear", home=home)) == 2


def test_the_alias_moves_only_to_a_better_version(publish, bank_row, home):
    def scored(index, **metrics):
        return [replace(bank_row(index), metrics=metrics)]

    guard = {"better_on": ("right_object", "fixed_noise_loss")}
    publish(scored(0, right_object=0.5, fixed_noise_loss=0.2), **guard)  # nobody has the alias yet
    with pytest.raises(registry.NotPromoted, match=r"2 of toys .* 1 stays @champion: right_object 0.6 against 0.5, fi"):
        publish(scored(1, right_object=0.6, fixed_noise_loss=0.3), **guard)
    with pytest.raises(registry.NotPromoted, match="not promoted"):
        publish(scored(2, right_object=0.5, fixed_noise_loss=0.2), **guard)  # as good is not better
    with pytest.raises(registry.NotPromoted, match="has no score 'right_object'"):
        publish(scored(3, fixed_noise_loss=0.1), **guard)
    with pytest.raises(registry.NotPromoted, match="learned from s3://other"):
        publish(scored(4, right_object=0.9, fixed_noise_loss=0.1), dataset="s3://other", **guard)
    assert publish(scored(5, right_object=0.5, fixed_noise_loss=0.1), **guard).aliases == ("champion",)
    assert [v.version for v in registry.versions("toys", home=home)] == [6, 5, 4, 3, 2, 1]
    registry.promote("toys", 2, ["right_object"], home=home)
    assert [v.version for v in registry.versions("toys", home=home) if v.aliases] == [2]
    with pytest.raises(ConfigError, match="no alias to move"):
        publish(scored(6, right_object=0.9), alias=None, better_on=["right_object"])
    assert len(registry.versions("toys", home=home)) == 6


@pytest.mark.parametrize("score", ["sign_collapse", "leak", "word_similarity", "fixed_noise_loss"])
def test_less_of_what_is_bad_is_better(publish, bank_row, score):
    guard = {"better_on": [score]}
    for number, value in enumerate((0.5, 0.4)):
        made = publish([replace(bank_row(number), metrics={score: value})], **guard)
        assert made.aliases == ("champion",)
    with pytest.raises(registry.NotPromoted):
        publish([replace(bank_row(2), metrics={score: 0.6})], **guard)


def test_a_refusal_and_a_card_say_which_pictures_the_scores_come_from(publish, bank_row, home):
    def scored(*values):
        return [replace(bank_row(i), metrics={"right_object": value}) for i, value in enumerate(values)]

    where = {"dataset": "s3://store/toys", "better_on": ["right_object"]}
    assert "Means over pictures of s3://store/toys:" in publish(scored(0.5), **where).description
    told = "right_object 0.4 against 0.5; both from s3://store/toys, pictures learned: 2 (2) and 1 (1)"
    with pytest.raises(registry.NotPromoted, match=re.escape(told)):
        publish(scored(0.5, 0.3), **where)
    publish(scored(0.5), "others")
    with pytest.raises(registry.NotPromoted, match="neither names the dataset it comes from"):
        publish(scored(0.5, 0.3), "others", better_on=["right_object"])


def test_a_card_shows_where_the_words_look(publish, bank_row, home):
    from mcpl.tracking.mlflow import MLflowTracker

    with MLflowTracker(home=home).start({}, {}) as run:
        run.artifact(b"png", "overlays/p 0.png")
    card = publish([bank_row(0)], run_id=run.record.run_id).description
    assert f"![where each word looks](get-artifact?path=overlays/p%200.png&run_uuid={run.record.run_id})" in card


def test_what_is_not_there_is_named_with_what_is(publish, bank_row, home):
    with pytest.raises(ConfigError, match="nothing has been published there"):
        registry.versions("toys", home=home)
    publish([bank_row(0)])
    with pytest.raises(ConfigError, match="'dogs' was never published .* names are toys"):
        registry.lookup("dogs", word="bear", home=home)
    with pytest.raises(ConfigError, match="has no @old: its versions are 1 @champion"):
        registry.lookup("toys@old", word="bear", home=home)
    with pytest.raises(ConfigError, match="has no 7"):
        registry.lookup("toys/7", word="bear", home=home)
    with pytest.raises(ConfigError, match="an image_id, a word"):
        registry.lookup("toys", home=home)


def test_looking_where_nothing_was_tracked_makes_no_database(tmp_path):
    with pytest.raises(ConfigError, match="no tracking database .*nothing has been published"):
        registry.lookup("toys", word="bear", home=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_published_leaves_nothing_behind(publish, bank_row, home):
    with pytest.raises(ConfigError, match="2 failed, and none learned"):
        publish([bank_row(0, status="failed"), bank_row(1, status="failed")])
    with pytest.raises(ConfigError, match="different bases are never mixed"):
        publish([bank_row(0), bank_row(1, base="other", base_digest="c" * 64)])
    with pytest.raises(ConfigError, match="name a folder or s3:// prefix"):
        publish([bank_row(0)], copy_limit=10)
    with pytest.raises(ConfigError):
        publish([bank_row(0)], name="a/b:c")
    assert not connect(resolve_uri(None, home)).search_registered_models()


def test_a_table_that_is_too_large_stays_outside_and_is_checked(publish, bank_row, home, tmp_path):
    publish([bank_row(0)], copy_limit=10, large_tables=str(tmp_path / "tables"))
    assert not list((home / "mlflow-artifacts").rglob("vectors.f32"))
    assert sorted(p.name.partition("-")[0] for p in (tmp_path / "tables").iterdir()) == ["vectors", "words"]
    table = next((tmp_path / "tables").glob("vectors-*.f32"))
    assert list(registry.lookup("toys", image_id="p0", home=home).word) == ["bear", "board"]
    shutil.copyfile(table, tmp_path / "kept")
    table.write_bytes(b"other")
    registry._load_version.cache_clear()
    with pytest.raises(ValueError, match="not the file that was published"):
        registry.lookup("toys", image_id="p0", home=home)


@pytest.fixture
def table(tmp_path):
    """rows -> the loaded model over them, without a registry."""

    def make(rows):
        manifest = registry.write_words(rows, tmp_path)
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        made = lookup_model.WordTable()
        names = {entry["name"].partition(".")[0]: str(tmp_path / entry["name"]) for entry in manifest["files"]}
        made.load_context(type("Context", (), {"artifacts": names | {"manifest": str(tmp_path / "manifest.json")}}))
        return made

    return make


def test_only_the_row_groups_asked_for_are_read(table, bank_row, monkeypatch):
    monkeypatch.setattr(registry, "ROWS_PER_GROUP", 4)
    made = table(bank_row(i) for i in range(20))
    groups = []
    inner = made._file

    class Watched:
        def read_row_group(self, group, **rest):
            groups.append(group)
            return inner.read_row_group(group, **rest)

    made._file = Watched()
    assert list(made.predict(None, pd.DataFrame({"image_id": ["p5", "p19"]})).image_id) == ["p5", "p5", "p19", "p19"]
    assert groups == [2, 9]


def test_vectors_that_are_cut_short_are_no_answer(table, bank_row, tmp_path):
    made = table(bank_row(i) for i in range(4))
    (tmp_path / "vectors.f32").write_bytes((tmp_path / "vectors.f32").read_bytes()[:-4])
    assert len(made.predict(None, pd.DataFrame({"image_id": ["p0"]}))) == 2
    with pytest.raises(ValueError, match="vectors.f32 is cut short"):
        made.predict(None, pd.DataFrame({"image_id": ["p3"]}))


def test_vectors_that_linux_reads_in_several_calls_are_whole(table, bank_row, monkeypatch):
    made, preadv = table(bank_row(i) for i in range(4)), os.preadv
    whole = made._vectors(np.arange(8))
    monkeypatch.setattr(os, "preadv", lambda file, parts, place: preadv(file, [parts[0][:7]], place))
    np.testing.assert_array_equal(made._vectors(np.arange(8)), whole)
    assert made._vectors(np.arange(0)).shape == (0, whole.shape[1])


def by_hand(rows, asked):
    """(picture, word) of every learned word, nearest first, by the definition."""
    words = {(r.id, w.concept.slug): np.asarray(w.vectors).mean(0) for r in rows for w in r.learned.concepts}
    cosine = {key: v @ asked / np.linalg.norm(v) / np.linalg.norm(asked) for key, v in words.items()}
    return sorted(cosine.items(), key=lambda one: -one[1])


def shortened(row):
    """The same with the first vector of each word alone."""
    words = tuple(replace(word, vectors=word.vectors[:1]) for word in row.learned.concepts)
    return replace(row, learned=replace(row.learned, concepts=words))


@pytest.mark.parametrize("indexed", [False, True])
def test_the_nearest_words_are_those_of_the_definition(table, bank_row, monkeypatch, indexed):
    monkeypatch.setattr(index, "LEAST", 100 if indexed else 10**9)
    monkeypatch.setattr(index, "SAMPLE_PER_LIST", 39)
    rows = [bank_row(i) for i in range(400)]
    rows[::3] = [shortened(row) for row in rows[::3]]
    made = table(iter(rows))
    assert (made._index_file is not None) == indexed and made._index is None, "loaded when somebody asks"
    asked = np.random.default_rng(99).normal(size=8)
    found, wanted = made.nearest(asked, 7), by_hand(rows, asked)
    assert list(zip(found.image_id, found.word, strict=True)) == [key for key, _ in wanted[:7]]
    assert found.similarity.tolist() == pytest.approx([cosine for _, cosine in wanted[:7]], abs=1e-6)


def test_a_well_placed_word_is_found_behind_many_badly_placed_ones(table, bank_row, monkeypatch):
    monkeypatch.setattr(lookup_model, "RANKED", 4)
    monkeypatch.setattr(lookup_model, "FURTHEST", 60)
    rows = [bank_row(i) for i in range(30)]
    asked = np.random.default_rng(99).normal(size=8)
    order = by_hand(rows, asked)
    farthest = order[-1][0]
    made = table(replace(row, metrics={"attention_iou": 0.9 if row.id == farthest[0] else 0.1}) for row in rows)
    wanted = [key for key, _ in order if key[0] == farthest[0]]
    found = made.nearest(asked, 2, min_iou=0.5)
    assert list(zip(found.image_id, found.word, strict=True)) == wanted


def test_similar_words_leave_out_themselves_other_bases_and_the_badly_placed(publish, bank_row, home):
    rows = [replace(bank_row(i), metrics={"attention_iou": i / 10}) for i in range(8)]
    publish(rows)
    own = np.asarray(rows[3].learned.concepts[0].vectors).mean(0)
    wanted = [key for key, _ in by_hand(rows, own) if key != ("p3", "bear")]
    found = registry.nearest("toys", like=("p3", "bear"), k=4, home=home)
    assert list(zip(found.image_id, found.word, strict=True)) == wanted[:4]
    good = registry.nearest("toys", like=("p3", "bear"), k=4, min_iou=0.45, home=home)
    assert list(zip(good.image_id, good.word, strict=True)) == [key for key in wanted if int(key[0][1:]) > 4][:4]
    assert list(registry.lookup("toys", word="bear", min_iou=0.55, base="tiny", home=home).image_id) == ["p6", "p7"]
    with pytest.raises(BankMismatch, match="words of base tiny b.* not of sd15"):
        registry.lookup("toys", word="bear", base="sd15", home=home)
    with pytest.raises(BankMismatch, match="are 8 wide, the one asked for 5"):
        registry.nearest("toys", vectors=np.ones(5), home=home)
    with pytest.raises(ConfigError, match="'p3' has not taught the word 'cat'"):
        registry.nearest("toys", like=("p3", "cat"), home=home)


def test_clusters_find_what_many_pictures_share_whatever_it_is_called(publish, bank_row, home):
    """Two things in twenty pictures, called by four names."""
    rng = np.random.default_rng(0)
    things = rng.normal(size=(2, 8)).astype(np.float32)

    def row(i):
        made = bank_row(i, ("bear", "board") if i % 2 else ("teddy", "plank"))
        words = [
            replace(word, vectors=thing + 0.05 * rng.normal(size=(1, 8)).astype(np.float32))
            for word, thing in zip(made.learned.concepts, things, strict=True)
        ]
        return replace(made, learned=replace(made.learned, concepts=tuple(words)))

    publish([row(i) for i in range(20)])
    found = registry.clusters("toys", count=2, home=home)
    assert found.pictures.tolist() == [20, 20] and found.words.tolist() == [20, 20]
    assert sorted(map(sorted, found.names)) == [["bear", "teddy"], ["board", "plank"]]


@pytest.mark.slow
def test_a_version_loads_where_mcpl_is_not_installed(publish, bank_row, home, tmp_path):
    publish([bank_row(0)])
    code = (
        "import sys; sys.modules['mcpl'] = None\n"
        "import mlflow.pyfunc, pandas as pd\n"
        "model = mlflow.pyfunc.load_model('models:/toys@champion')\n"
        "print(list(model.predict(pd.DataFrame({'word': ['bear']})).image_id))\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {"MLFLOW_TRACKING_URI": resolve_uri(None, home), "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "['p0']\n", done.stderr[-1000:]
    code = "import sys; sys.modules['mcpl'] = None\nimport runpy; runpy.run_path(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, lookup_model.__file__], cwd=tmp_path, env=env, check=True)
