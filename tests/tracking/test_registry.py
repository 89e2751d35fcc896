"""From bank rows to a registered version, and back by picture and by word."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mcpl.errors import ConfigError
from mcpl.generation.words import gather
from mcpl.tracking import lookup_model, registry
from mcpl.tracking.server import connect, resolve_uri, speaking_to


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
    assert not list((home / "mlflow-artifacts").rglob("words.parquet"))
    (table,) = (tmp_path / "tables").iterdir()
    assert list(registry.lookup("toys", image_id="p0", home=home).word) == ["bear", "board"]
    shutil.copyfile(table, tmp_path / "kept")
    table.write_bytes(b"other")
    registry._load_version.cache_clear()
    with pytest.raises(ValueError, match="not the file that was published"):
        registry.lookup("toys", image_id="p0", home=home)


def test_only_the_row_groups_asked_for_are_read(tmp_path, bank_row, monkeypatch):
    monkeypatch.setattr(registry, "ROWS_PER_GROUP", 4)
    manifest = registry.write_words((bank_row(i) for i in range(20)), tmp_path / "words.parquet")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    table = lookup_model.WordTable()
    names = {"manifest": str(tmp_path / "manifest.json"), "words": str(tmp_path / "words.parquet")}
    table.load_context(type("Context", (), {"artifacts": names}))
    groups = []
    inner = table._file

    class Watched:
        def read_row_group(self, group, **rest):
            groups.append(group)
            return inner.read_row_group(group, **rest)

    table._file = Watched()
    assert list(table.predict(None, pd.DataFrame({"image_id": ["p5", "p19"]})).image_id) == ["p5", "p5", "p19", "p19"]
    assert groups == [2, 9]


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
    assert Path(lookup_model.__file__).read_text().count("mcpl") == 1  # in its docstring only
