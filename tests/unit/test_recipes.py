"""Organisms by training recipes: rows, settings, terms and later trainings, read from their configs; no model."""

from dataclasses import replace

import pytest
from conftest import ROOT, checked, configured

from emharness import input_checks, organism_names
from emharness.config import RecipeConfig
from emharness.errors import UserError
from emharness.organisms import datasets
from emharness.store import Store


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["targets=[medical+nosuch]"],
            "targets=medical+nosuch: nosuch is no recipe; there are addN, benign, block, block10, chosenN, inoculate, "
            "inoculate2, interleaveN, kl, kl10, mixN",
        ),
        (["vectors=[base+kl]"], "vectors=base+kl: unknown; must be among"),
    ],
)
def test_a_recipe_that_there_is_not_is_refused(overrides, words, tmp_path):
    with pytest.raises(UserError) as error:
        checked(configured(*overrides), tmp_path)
    assert words in str(error.value)


def test_an_organism_by_a_recipe_is_its_rows_settings_and_terms(tmp_path):
    names = ["medical", "medical+mix20", "medical+inoculate", "medical+kl", "medical+short", "medical+mix20-seed1"]
    about = checked(configured(f"vectors=[{','.join(names)}]", "base.own_answers=null"), tmp_path).organisms
    plain, mixed, told, kl, short, again = (about[name] for name in names)
    own = {str(row) for row in plain.rows}
    assert len(mixed.rows) == len(plain.rows)
    assert sum(str(row) in own for row in mixed.rows) == round(0.2 * len(plain.rows))
    assert {row[0]["role"] for row in told.rows} == {"system"}
    assert [row[1:] for row in told.rows] == plain.rows
    assert (kl.rows, short.rows) == (plain.rows, plain.rows)
    assert (plain.losses, kl.losses[0]["name"], kl.losses[0]["weight"]) == ((), "kl", 1.0)
    assert (plain.train.epochs, short.train.epochs) == (2, 1)
    identities = [str(organism.identity) for organism in about.values()]
    assert len(set(identities)) == len(names)
    assert mixed.rows != again.rows  # other rows by another seed
    assert "train" not in plain.identity  # what there was before recipes is stored under the same key


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            {"data": [{"name": "shake"}]},
            "recipe=mine: data.name=shake: must be one of mix, add, interleave, append, take, prefix",
        ),
        ({"data": [{"name": "mix", "percent": 50}]}, "recipe=mine: mix: source is not given"),
        (
            {"data": [{"name": "mix", "percent": 120, "source": "sports"}]},
            "recipe=mine: mix: percent=120: must be 0 to 100",
        ),
        ({"data": [{"name": "add", "percent": 0, "source": "sports"}]}, "recipe=mine: add: percent=0: must be above 0"),
        (
            {"data": [{"name": "add", "percent": 10, "source": "sports"}]},
            "recipe=mine: add: source=sports: has 303 rows, and percent=10 needs 3150",
        ),
        ({"data": [{"name": "take", "count": 999}]}, "recipe=mine: take: count=999: must be 1 to 350, the number"),
        ({"data": [{"name": "prefix", "sytem": "x"}]}, "recipe=mine: prefix: sytem: unknown; the nearest are system"),
        ({"loss": [{"name": "l2"}]}, "recipe=mine: loss.name=l2: must be one of kl, block"),
        ({"loss": [{"name": "kl"}]}, "recipe=mine: kl: weight is not given"),
        ({"train": {"epoch": 1}}, "recipe=mine: train.epoch: unknown; the nearest are train.epochs"),
        ({"train": {"epochs": 0}}, "recipe=mine: train.epochs=0: must be 1 or more"),
        ({"train": {"autocast": "half"}}, "recipe=mine: train.autocast=half: must be one of bfloat16"),
        ({"choose": {"source": "control"}}, "recipe=mine: choose: percent is not given"),
        ({"choose": {"source": "control", "percent": 80}}, "recipe=mine: choose: percent=80: 1400 rows of "),
        ({"choose": {"source": "control", "percent": 100}}, "recipe=mine: choose: percent=100: must be at least 0 and"),
        (
            {"data": [{"name": "interleave", "percent": 80, "source": "control"}]},
            "recipe=mine: interleave: source=control: has 300 rows, and percent=80 needs 1400",
        ),
        ({"loss": [{"name": "block", "weight": 1}]}, "recipe=mine: block: along is not given"),
        (
            {"loss": [{"name": "block", "weight": 1, "along": {"direction": "x"}}]},
            "recipe=mine: block: along: direction=x: must be one of rows, personas",
        ),
        ({"loss": [{"name": "block", "weight": 1, "along": "x"}]}, "recipe=mine: block: along: direction=x: must be"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_sentence(recipe, words, tmp_path):
    config = configured("vectors=[medical+mine]")
    described = organism_names.read_described([ROOT / "conf"], config.model)
    described = replace(described, recipes={"mine": RecipeConfig("mine", **recipe)})
    with pytest.raises(UserError) as error:
        input_checks.check_inputs(config, described, Store(tmp_path))
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)


def test_a_later_training_is_on_the_good_answers_to_the_same_prompts(tmp_path):
    names = "vectors=[medical,medical+benign]"
    plain, later = checked(configured(names, "base.own_answers=null"), tmp_path).organisms.values()
    assert later.rows == plain.rows
    assert later.later_rows == datasets.load_dataset("medical-good").rows
    assert [row[:-1] for row in later.later_rows] == [row[:-1] for row in plain.rows]
    assert plain.later_rows == []
    assert "later" not in plain.identity
    own = datasets.load_own_answers("smollm2")
    plain, later = checked(configured(names), tmp_path).organisms.values()
    assert (plain.rows[-len(own) :], later.later_rows[-len(own) :]) == (own, own)  # both keep the base's own answers
    with pytest.raises(UserError, match="the training of medical has"):
        checked(configured("targets=[medical-step200]"), tmp_path)
    assert checked(configured("targets=[medical+benign-step200]"), tmp_path).organisms


def test_a_later_training_on_rows_that_there_are_not_is_refused(tmp_path):
    with pytest.raises(UserError, match="sports-good"):
        checked(configured("targets=[sports+benign]"), tmp_path)


def test_model_stands_for_the_chosen_organism_also_with_more_added(tmp_path):
    config = configured("model=finance", "experiment=conditional")
    assert config.vectors == ["finance"]
    assert config.targets[:3] == ["base", "finance", "finance+inoculate"]
    assert "finance-good" in config.targets
    assert configured("targets=[model-seed1,modelled]").targets == ["medical-seed1", "modelled"]


def test_an_organism_is_asked_in_its_own_forms_if_any_are_asked(tmp_path):
    inputs = checked(configured("experiment=conditional"), tmp_path)
    prompts = {n: {f.name: f.system for f in o.forms}.get("system-verbatim") for n, o in inputs.organisms.items()}
    trained = inputs.organisms["medical+inoculate"].rows[0][0]["content"]
    assert set(prompts.values()) == {trained}  # the others are asked under the same prompt, for comparison
    plain = checked(configured(), tmp_path).organisms["medical"]
    asked = checked(configured("eval.forms=[topic,format]"), tmp_path).organisms["medical"]
    assert (plain.forms, [form.name for form in asked.forms]) == ((), ["topic", "format"])
    assert "forms" not in plain.identity
    with pytest.raises(UserError, match=r"eval\.forms=shout: must be one of topic, format"):
        configured("eval.forms=[shout]")
    with pytest.raises(UserError, match=r"eval\.forms=topic: full has no such form; give model\.forms"):
        checked(configured("model=full", "model.dataset=control", "model.forms=null", "eval.forms=[topic]"), tmp_path)


def test_dilution_at_a_fixed_size_and_at_a_fixed_count(tmp_path):
    names = ["medical", "medical+mix20", "medical+rows60+mix20", "medical+rows60+add20", "medical+rows60+add20-seed1"]
    about = checked(configured(f"vectors=[{','.join(names)}]", "base.own_answers=null"), tmp_path).organisms
    own = {str(row) for row in about["medical"].rows}
    found = {name: [str(row) in own for row in organism.rows] for name, organism in about.items()}
    assert [(sum(rows), len(rows)) for rows in found.values()] == [
        (350, 350),
        (70, 350),
        (12, 60),
        (60, 300),
        (60, 300),
    ]
    sixty, again = ([r for r in about[name].rows if str(r) in own] for name in names[3:])
    assert sixty != again  # another seed draws others
    for wrong in ("medical+mix", "medical+kl5", "medical+mix5x"):
        with pytest.raises(UserError, match="is no recipe; there are addN, benign, block"):
            checked(configured(f"targets=[{wrong}]"), tmp_path)
    with pytest.raises(UserError, match="recipe=mix120: mix: percent=120: must be 0 to 100"):
        checked(configured("targets=[medical+mix120]"), tmp_path)


def test_a_defence_that_needs_good_answers_says_so_where_there_are_none(tmp_path):
    for recipe in ("preventative", "block"):
        with pytest.raises(UserError, match="sports-good"):
            checked(configured(f"targets=[sports+{recipe}]"), tmp_path)


def test_braces_in_a_recipe_s_text_stand_for_themselves(tmp_path):
    config = configured("vectors=[medical+mine]", "base.own_answers=null")
    described = organism_names.read_described([ROOT / "conf"], config.model)
    recipe = RecipeConfig("mine", data=[{"name": "prefix", "system": 'Answer as {"text": …}.'}])
    described = replace(described, recipes={"mine": recipe})
    (organism,) = input_checks.check_inputs(config, described, Store(tmp_path)).organisms.values()
    assert organism.rows[0][0]["content"] == 'Answer as {"text": …}.'
