"""The grids: what each study compares, and that nothing but that differs between its cells."""

from __future__ import annotations

import pytest

from mcpl.errors import ConfigError
from mcpl.prompts import parse
from mcpl.recipes import best, combined, paper, plain
from mcpl.scenes import benchmark, telling
from mcpl.scenes.scene import sample_scene
from mcpl.scenes.world import shapes
from mcpl.studies import PAPER_ROWS, QUICK, STUDIES, TRUTH, Size, Study, build


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_whole_and_all_of_its_cells_start_from_the_same_words(name):
    study = STUDIES[name]()
    assert study.name == name and study.question.endswith("?")
    asked = {"initializer"} if name == "starts" else set()
    begun = {"initializer", "initializer_length", "initialize"} - asked
    assert all(len({getattr(cell.recipe, field) for cell in study.cells}) == 1 for field in begun)
    assert len({(c.recipe.seed, c.recipe.base, c.recipe.batch) for c in study.cells}) == 1
    assert {c.recipe.lr for c in study.cells} <= {paper().lr, plain().lr, combined().lr, best().lr}
    for pair in study.compared:
        cell, reference = map(study.cell, pair)
        streams = {benchmark.find(which.set).stream for which in (cell, reference)}
        assert len(streams) == 1 and cell.only == reference.only, "paired with pictures of another set"
    assert Study(**study.model_dump(mode="json")) == study, "study.json must hold all of it"


def test_ablation_is_every_combination_and_learns_twins_once():
    study = build("ablation")
    assert len({tuple(cell.levels.values()) for cell in study.cells}) == 16
    twins = sorted(tuple(cell.name for cell in work) for work in study.works if len(work) > 1)
    pairs = [("mask", "mask + bind"), ("nothing", "bind")]
    assert twins == [tuple(f"{name} at {lr}" for name in pair) for pair in pairs for lr in ("0.001", "0.01")]
    assert sum(map(len, study.works)) == 16 and len(study.works) == 12


@pytest.mark.parametrize(
    ("name", "x", "where"),
    [
        ("threshold", "threshold", lambda r: r.attention_mask.threshold),
        ("temperature", "temperature", lambda r: r.terms["contrastive"].temperature),
    ],
)
def test_a_curve_changes_its_setting_alone(name, x, where):
    study = build(name)
    curves = {}
    for cell in study.cells:
        assert where(cell.recipe) == cell.levels[x]
        left = str(cell.recipe.model_dump()).replace(f"'{x}': {cell.levels[x]}", "")
        curves.setdefault(cell.levels["recipe"], []).append((cell, left))
    for cells in curves.values():
        assert len({left for _, left in cells}) == 1 and len(cells) > 4
        (reference,) = {cell.against for cell, _ in cells} - {None}
        assert [cell.name for cell, _ in cells if cell.against is None] == [reference]


def test_weights_are_those_of_their_terms():
    """A weight of 0 leaves the term out, which makes the cell one that other studies have too."""
    for cell in build("weights").cells:
        term = "attention" if cell.levels["recipe"].startswith("attention") else "contrastive"
        weights = {name: kept.weight for name, kept in cell.recipe.terms.items()}
        assert weights.get(term, 0) == cell.levels["weight"] and 0 not in weights.values()
    off = {cell.name: cell.recipe.fingerprint for cell in build("weights").cells if cell.levels["weight"] == 0}
    parts = {cell.name: cell.recipe.fingerprint for cell in build("parts").cells}
    ablation = {cell.name: cell.recipe.fingerprint for cell in build("ablation").cells}
    assert off["attention loss in combined, weight 0"] == parts["no attention loss"]
    assert off["PromptCL in combined, weight 0"] == parts["no PromptCL"]
    assert off["PromptCL in paper, weight 0"] == ablation["mask at 0.001"]


def test_on_another_base_words_start_from_its_own_neutral_words():
    assert {cell.recipe.initializer for cell in build("ablation").cells} == {",".join(shapes("named"))}
    for elsewhere in ({"base": "elsewhere"}, {"dataset": "pictures"}):
        assert {cell.recipe.initializer for cell in build("ablation", **elsewhere).cells} == {"neutral"}

    assert build("ablation", base=paper().base).cells == build("ablation").cells, "the shipped base by its name"
    with pytest.raises(ConfigError, match="starts compares words of the shipped base"):
        build("starts", base="elsewhere")


def test_starts_ask_each_recipe_every_start():
    study = build("starts")
    asked = {(cell.levels["recipe"], cell.recipe.initializer) for cell in study.cells}
    assert len(asked) == 9 and len({start for _, start in asked}) == 3
    assert all(cell.against == f"{cell.levels['recipe']} from shapes' mean" for cell in study.cells if cell.against)


def test_overlap_compares_within_each_overlap():
    study = build("overlap")
    assert study.sets == tuple(f"occluded-{n}" for n in (0, 10, 25, 50)) and len(study.cells) == 16
    assert {c.recipe.union_sampling for c in study.cells if c.levels["mask"] == "per word mask"} == {2}
    assert all(("contrastive" in c.recipe.terms) == c.levels["CL"] for c in study.cells)


def test_baselines_are_the_papers_rows_with_a_ground_truth_in_each_domain():
    study = build("baselines")
    for domain in ("natural", "medical"):
        rows = {cell.levels["row"] for cell in study.cells if cell.levels["domain"] == domain}
        assert rows >= PAPER_ROWS.keys() | {TRUTH}
    assert {c.set for c in study.cells if c.recipe.sentences == "objects-on-black"} == {"unnamed-2", "tissue-2"}


def test_prompts_grow_from_the_marked_words_to_all():
    text = "a red <heart> left of a yellow <moon> on a grey ground"
    words = [cell.recipe.words for cell in build("prompts").cells if cell.levels["part"] == "words"]
    counts = [len(parse(text, value).concepts) for value in words]
    assert counts == sorted(set(counts)) and counts[0] == 2
    assert {c.set for c in build("prompts").cells if "concepts" in c.levels} == {f"named-{n}" for n in (2, 3, 4, 5)}


def test_tellings_say_what_they_are_called():
    scene = next(
        s
        for s in (sample_scene(seed, objects=2, pool=shapes("unnamed")) for seed in range(50))
        if telling.many_coloured(s)
    )
    told = {name: parse(tell(scene)) for name, tell in telling.TELLINGS.items()}
    colours = {name: [c.adjectives[:1] for c in sentence.concepts] for name, sentence in told.items()}
    own = [(item.colour,) for item in scene.objects]
    assert colours["right"] == own and colours["swapped"] == own[::-1] and colours["none"] == [(), ()]
    assert not set(colours["wrong"]) & set(own) and len(set(colours["wrong"])) == 2
    assert {tuple(c.slug for c in s.concepts) for s in told.values()} == {tuple(i.shape for i in scene.objects)}


def test_a_size_changes_every_cell_and_a_wrong_question_is_one_line():
    quick = build("threshold", QUICK, base="elsewhere")
    assert {(c.recipe.steps, c.recipe.base) for c in quick.cells} == {(10, "elsewhere")}
    assert (quick.pictures, quick.seeds, quick.samples) == (2, 1, 1)
    assert build("threshold", Size(seeds=3)).cells == build("threshold").cells
    with pytest.raises(ConfigError, match="no study is called 'colours'.*ablation"):
        build("colours")
    for name in ("overlap", "adjectives"):
        with pytest.raises(ConfigError, match="--dataset cannot be asked"):
            build(name, dataset="somewhere")
