"""What decides a result is fingerprinted; where it runs is not; a wrong setting is one clear line."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mcpl.config import MEMORY, Placement, Recipe, RunConfig, fitted, pack_size, parse, worker_counts
from mcpl.errors import ConfigError
from mcpl.objectives.objective import TERMS, Contrastive, Denoising
from mcpl.recipes import RECIPES, adjust, load

CHANGES = {
    "steps": 7,
    "batch": 3,
    "lr": 0.5,
    "lr_warmup": 2,
    "lr_decay": 0.5,
    "seed": 1,
    "clip_norm": 1.0,
    "vectors_per_word": 2,
    "initializer": "noun",
    "templates": "none",
    "stratified_timesteps": False,
    "attention_mask": None,
    "initialize": "first",
    "initializer_length": "words",
    "fixed_norm": True,
    "sentences": "one-word",
    "union_sampling": 3,
    "flips": "safe",
    "weight_decay": 0.1,
    "stop": {"patience": 2},
    "terms": {"denoising": Denoising()},
    "probe_every": 5,
    "probe_timesteps": 4,
    "precision": "float64",
    "words": "all",
}


def test_every_deciding_setting_changes_the_fingerprint():
    assert set(CHANGES) == set(Recipe.model_fields) - {"name", "base", "revision"}
    prints = {adjust(Recipe(), **{k: v}).fingerprint for k, v in CHANGES.items() if v is not None}
    prints.add(Recipe(attention_mask=None).fingerprint)
    assert len(prints | {Recipe().fingerprint}) == len(CHANGES) + 1


def test_names_and_places_do_not():
    assert Recipe(name="x", base="/here").fingerprint == Recipe(name="y", base="/there").fingerprint
    assert not set(Placement.model_fields) & set(Recipe.model_fields)


def test_a_term_keeps_its_own_settings_through_yaml(tmp_path):
    import yaml

    recipe = Recipe(terms={"denoising": Denoising(area_normalised=False), "contrastive": Contrastive(temperature=0.7)})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    loaded = load(str(path))
    assert loaded == recipe
    assert isinstance(loaded.terms["contrastive"], TERMS["contrastive"])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"stepz": 3}, "stepz"),
        ({"lr": -1}, "lr = -1"),
        ({"terms": {}}, "denoising"),
        ({"terms": {"denoising": {}, "magic": {}}}, "unknown term 'magic'"),
        ({"terms": {"denoising": {"colour": 1}}}, "colour"),
        ({"words": "list:"}, "words"),
        ({"words": "list:absent.txt"}, "'absent.txt' is neither a file that is there nor a noun"),
        ({"words": "all:few"}, "words"),
        ({"attention_mask": None, "terms": {"denoising": {}, "attention": {}}}, "needs masks"),
        ({"attention_mask": {"source": "looks", "softmaxes": 2}}, "softmaxes"),
    ],
)
def test_wrong_settings_are_named_in_one_line(values, told):
    with pytest.raises(ConfigError, match="^here: ") as caught:
        parse(Recipe, values, "here")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_each_kind_of_mask_comes_back_from_yaml_as_itself(tmp_path):
    import yaml

    for name in ("paper", "combined", "best", "break-a-scene", "release"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(load(name).model_dump(mode="json")))
        assert load(str(path)) == load(name)
        assert type(load(str(path)).attention_mask) is type(load(name).attention_mask)


def test_each_regulariser_can_be_left_out_by_itself():
    from mcpl.recipes import ablated

    assert ablated().fingerprint == load("paper").fingerprint
    without = ablated(mask=False)
    contrastive = without.terms["contrastive"]
    assert without.attention_mask is None and (contrastive.temperature, contrastive.weight) == (0.2, 5e-4)
    assert set(ablated(contrastive=False).terms) == {"denoising"}
    assert not ablated(bind=False).terms["contrastive"].bind_adjectives
    nothing = ablated(mask=False, contrastive=False, lr=load("plain").lr)
    assert nothing.fingerprint == load("plain").fingerprint


def test_recipes_load_by_name_and_have_different_fingerprints():
    assert len({load(name).fingerprint for name in RECIPES}) == len(RECIPES)
    with pytest.raises(ConfigError, match="paper"):
        load("papre")


def test_words_from_a_file(tmp_path):
    nouns = tmp_path / "nouns.txt"
    nouns.write_text("# things\nBear\nboard\n\nbear\n")
    assert adjust(Recipe(), words=f"list:{nouns}").words == "list:bear,board"
    nouns.write_text("\n")
    with pytest.raises(ConfigError, match="no nouns"):
        adjust(Recipe(), words=f"list:{nouns}")


def test_a_run_config_is_recipe_plus_placement():
    config = RunConfig(dataset="d", output="o", recipe=Recipe(steps=7))
    assert config.recipe.steps == 7 and config.placement == Placement()
    with pytest.raises(ValidationError, match="recipe"):  # no command learns with a bare one
        RunConfig(dataset="d", output="o")


@pytest.mark.parametrize("vram", [8, 12, 24])
def test_a_memory_preset_changes_precision_in_the_recipe_and_the_rest_in_the_placement(vram):
    recipe, placement = fitted(Recipe(steps=7), Placement(workers=3), vram)
    assert recipe == Recipe(steps=7, precision="bfloat16") and recipe.fingerprint != Recipe(steps=7).fingerprint
    assert placement.workers == 3 and placement.pack == MEMORY[vram].pack
    assert fitted(Recipe(), Placement(), None) == (Recipe(), Placement())


def test_a_device_without_a_preset_is_told_which_there_are():
    with pytest.raises(ConfigError, match="presets for 8, 12, 24 GB"):
        fitted(Recipe(), Placement(), 16)


def test_workers_and_packs_as_they_are_typed():
    assert worker_counts("8") == {"workers": 8, "min_workers": None}
    assert worker_counts("2:8") == {"workers": 8, "min_workers": 2}
    assert (pack_size("16"), pack_size("auto")) == (16, "auto")
    for wrong in ("2:", ":8", "two", "-1", "2-8", ""):
        with pytest.raises(ConfigError, match="--workers"):
            worker_counts(wrong)
    with pytest.raises(ConfigError, match="--pack most"):
        pack_size("most")
    with pytest.raises(ConfigError, match="min_workers = 8 is more than workers = 2"):
        parse(Placement, worker_counts("8:2"), "options")
    with pytest.raises(ConfigError, match="pack = 0"):
        parse(Placement, {"pack": 0}, "options")
