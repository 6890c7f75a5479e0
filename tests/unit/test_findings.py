"""The sentence of what was found says what the numbers say, also when nothing was."""

from support.planted_records import ablation_row, lab_transfer, planted_condition

from emharness.experiments import findings
from emharness.results.experiment_tables import Alarm, BetweenOrganisms, FirstRise, PairCosines, SeedGroup, SeedSpread


def entry(name, vector=None, rate=0.1, effect=None, q=None, random=None, too=False, strength=2.0, coherent=500):
    if effect is None:
        return planted_condition(name, rate, vector=vector, n_coherent=coherent)
    over = None if random is None else (rate - random - 0.1, rate - random + 0.1)
    about = {"effect": effect, "effect_q": q, "em_random": random, "over_random_ci95": over, "random_too": too}
    return planted_condition(name, rate, vector=vector, n_coherent=coherent, layer=3, strength=strength, **about)


def test_the_strongest_effect_that_is_no_chance_and_no_random_direction_s():
    base = entry("baseline")
    weak = entry("a", "a", 0.3, 0.2, 0.01, 0.05)
    strong = entry("b", "b", 0.5, 0.4, 0.01, 0.12, strength=4.0)
    chance = entry("c", "c", 0.6, 0.5, 0.2, 0.1)
    random = entry("d", "d", 0.9, 0.8, 0.01, 0.8, too=True)
    text = findings.describe_steering([base, weak, strong, chance, random])
    assert text == (
        "2 of 4 steered conditions raise the share of misaligned answers, most the b vector in layer 3 of base "
        "at strength +4: from 10.0 % (5.0–15.0 %) to 50.0 % (45.0–55.0 %); random directions of the same "
        "length give 12.0 %."
    )
    assert findings.describe_steering([base, chance, random]).startswith(
        "None of 2 steered conditions makes more answers"
    )
    unread = entry("u", "u", 0.5, 0.4, 0.01)  # nothing is beyond random directions of which no answer could be read
    assert findings.describe_steering([base, chance, unread]).endswith(
        "beyond random directions. For 1 that do beyond chance no answer under random directions could be read."
    )
    assert findings.describe_steering([base]).startswith("No steered condition")
    few = entry("e", "e", 0.95, 0.85, 0.001, 0.1, coherent=29)  # a rate over so few answers is in no headline
    assert findings.describe_steering([base, weak, few]) == findings.describe_steering([base, weak])
    assert findings.describe_steering([base, few]).startswith("No steered condition has 30 coherent answers")


def test_transfer_is_told_at_the_greatest_strength_and_undefined_is_said():
    def row(one, other, value, strength):
        return lab_transfer(one, other, value, strength, None if value is None else (value - 0.1, value + 0.1))

    rows = [row("A", "A", 0.9, 2.0), row("A", "A", 0.8, 4.0), row("A", "B", None, 4.0), row("B", "A", 0.2, 4.0)]
    assert findings.describe_transfer(rows) == (
        "Of a vector's effect on its own organism, others show, at strength +4: within A 80.0 % (70.0–90.0 %); from B "
        "to A 20.0 % (10.0–30.0 %); undefined in 1 of 3 directions."
    )
    assert findings.describe_transfer([row("A", "B", None, 4.0)]).startswith(
        "At strength +4 no lab's vectors have an effect"
    )
    assert "needs two of them" in findings.describe_transfer([])


def test_removing_a_direction_is_told_for_own_and_other_kinds():
    row = ablation_row
    own, same, other = "own", "same kind", "another kind"
    rows = [row(own, 0.4, 0.01), row(own, 0.2, 0.2), row(other, 0.1, 0.01), row(other, None, None)]
    told = (
        "Removing the organism's own direction lowers the share of misaligned answers in 1 of 2 cases (on average by "
        "30 points), another kind's in 1 of 1 cases (on average by 10 points), at q < 0.05."
    )
    assert (
        findings.describe_ablation(rows) == findings.describe_ablation([*rows, row(None, 0.4, 0.01, 0.4)]) == told
    )  # from the base
    assert "that of another organism of its kind in 1 of 1 cases" in findings.describe_ablation(
        [*rows, row(same, 0.3, 0.01)]
    )
    assert findings.describe_ablation([*rows, row(own, None, None, 0.3)]).endswith(
        "at q < 0.05. Removing as many random dimensions lowers it by 30 points on average."
    )
    assert "too few answers are coherent" in findings.describe_ablation([row(own, None, None)])


def test_seeds_are_closer_than_kinds_only_where_all_are():
    def spread(*within):
        group = PairCosines(pairs=1, cosine=0.1, least=0.0, greatest=0.3)
        seeds = {str(i): SeedGroup(pairs=1, cosine=c, em_rates=(), em_sd=None) for i, c in enumerate(within)}
        between = BetweenOrganisms(same_mechanism=PairCosines(pairs=0), other_mechanism=group)
        return SeedSpread(layer=5, within=seeds, between=between)

    assert findings.describe_seeds(spread(0.9, 0.7)) == (
        "In layer 5 vectors of one organism's training seeds have a mean cosine of 0.80, those of different kinds 0.10 "
        "(0.00 to 0.30): seeds are closer than kinds."
    )
    assert "not all closer than kinds" in findings.describe_seeds(spread(0.9, 0.2))
    assert "only with two seeds" in findings.describe_seeds(spread())


def test_an_alarm_is_told_with_how_often_it_comes_first():
    alarms = [
        Alarm(vector="a", auroc=0.9, ci95=(0.5, 1.0)),
        Alarm(vector="b", auroc=None),
        Alarm(vector="c", auroc=0.7),
    ]
    pairs = [(5, 10), (5, "end"), (5, None), (10, 10), ("end", 20), (None, 20), (None, None)]
    first = [FirstRise(organism="o", vector="a", projection_first=a, em_first=b) for a, b in pairs]
    assert findings.describe_alarms(alarms, first) == (
        "As an alarm for other organisms' trainings the projection has AUROC a 0.90 (0.50 to 1.00), c 0.70 (too few "
        "trainings for an interval). Of 7 cases it rises before the behaviour in 2, after it or not at all in 2; in 1 "
        "it rises and the behaviour does not."
    )
    assert "no alarm can be measured" in findings.describe_alarms([Alarm(vector="b", auroc=None)], [])
