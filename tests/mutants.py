"""Mistakes that the tests must notice: each is put into a copy of the package, and the test that is to catch it is run.

python tests/mutants.py [words of a name …]; `make mutants` tries all, in some minutes. Not collected by pytest.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # below emharness/
    old: str  # occurs once
    new: str
    caught_by: str  # one or more tests, as pytest names them below tests/


MUTANTS = [
    Mutant(
        "response key without the run's seed",
        "pipeline/model_stage.py",
        '                "seed": config.seed,\n',
        "",
        "engine/test_models.py::test_answers_of_another_seed_are_others_of_the_base_as_well",
    ),
    Mutant(
        "the same permutation signs for all vectors",
        "geometry/analysis.py",
        "nulls.permuted_weights(p, draws, rng) for p",
        "nulls.permuted_weights(p, draws, np.random.default_rng(seed)) for p",
        "unit/test_geometry_prompts.py::test_labels_are_permuted_for_each_vector_by_itself",
    ),
    Mutant(
        "questions not resampled jointly",
        "stats/answer_tables.py",
        "        columns.append(rate_draws(hits, totals, picks))",
        "        picks = np.concatenate([picks[:1], bootstrap_picks(len(ids), draws, seed + len(columns))])\n"
        "        columns.append(rate_draws(hits, totals, picks))",
        "unit/test_experiments.py::test_questions_are_resampled_for_all_tables_together",
    ),
    Mutant(
        "layer chosen by the rate of coherent answers",
        "experiments/layer_choice.py",
        "cell.em_rate_all or 0.0, -",
        "cell.em_rate or 0.0, -",
        "unit/test_experiments.py::test_the_layer_with_the_strongest_coherent_effect_is_chosen",
    ),
    Mutant(
        "layer chosen by how coherent it stays",
        "experiments/layer_choice.py",
        "cell.em_rate_all or 0.0, -",
        "cell.coherent_rate or 0.0, -",
        "unit/test_experiments.py::test_the_layer_with_the_strongest_coherent_effect_is_chosen",
    ),
    Mutant(
        "geometry intervals as plain percentiles",
        "geometry/nulls.py",
        "return 2 * value - high, 2 * value - low",
        "return low, high",
        "unit/test_geometry_prompts.py::test_an_interval_takes_out_the_bias_of_resampling",
    ),
    Mutant(
        "geometry intervals half as wide",
        "geometry/nulls.py",
        "return 2 * value - high, 2 * value - low",
        "return value + (value - high) / 2, value + (value - low) / 2",
        "unit/test_geometry_prompts.py::test_an_interval_takes_out_the_bias_of_resampling",
    ),
    Mutant(
        "independence without a bound",
        "geometry/verdict.py",
        "    if bound < margin:\n",
        "    if True:\n",
        "unit/test_geometry_verdict.py::test_independence_is_not_claimed_where_prompts_leave_the_cosine_open",
    ),
    Mutant(
        "a bound that ignores what prompts leave open",
        "geometry/verdict.py",
        "(pair.cosine, *(pair.ci95 or ()))",
        "(pair.cosine,)",
        "unit/test_geometry_verdict.py::test_independence_is_not_claimed_where_prompts_leave_the_cosine_open",
    ),
    Mutant(
        "a loose cluster carried by tight ones",
        "geometry/verdict.py",
        "    loose = [name for name, p in found.within_p.items() if p > level]\n",
        "    loose = []\n",
        "unit/test_geometry_verdict.py::test_what_may_be_noise_is_no_mechanism_of_its_own",
    ),
    Mutant(
        "a shared core without an effect size",
        "geometry/verdict.py",
        "        if shared <= margin:\n",
        "        if shared <= 0:\n",
        "unit/test_geometry_verdict.py::test_a_small_shared_part_is_no_shared_core",
    ),
    Mutant(
        "no Benjamini-Hochberg in the table of effects",
        "experiments/effects.py",
        "    q = false_discovery_q(np.array([np.nan if value is None else value for value in p]))",
        "    q = np.array([np.nan if value is None else value for value in p])",
        "unit/test_experiments.py::test_effects_of_a_table_are_corrected_together",
    ),
    Mutant(
        "one-sided p",
        "stats/bootstrap.py",
        "p = min(1.0, 2 * (1 + float(tail))",
        "p = min(1.0, (1 + float(tail))",
        "unit/test_experiments.py::test_a_p_value_is_two_sided_and_the_interval_holds_95_of_100_draws",
    ),
    Mutant(
        "random directions that nobody could read count as surpassed",
        "experiments/effects.py",
        "random_too=max(lows) > 0 if lows else None",
        "random_too=max(lows, default=0) > 0",
        "unit/test_experiments.py::test_random_directions_are_weighed_by_what_could_be_read_of_them_and_none_says_nothing",
    ),
    Mutant(
        "cap bounds the other side",
        "steering/request/modes.py",
        "Rule(length, -1.0, low=length)",
        "Rule(length, -1.0, high=length)",
        "engine/test_engine.py",
    ),
    Mutant(
        "pin as add",
        "steering/request/modes.py",
        '"pin": Mode(lambda length: Rule(length, -1.0))',
        '"pin": Mode(lambda length: Rule(length, 0.0))',
        "engine/test_engine.py",
    ),
    Mutant(
        "a dose in other units than adding has",
        "steering/request/spec.py",
        "return mode.rule(edit.strength * length)",
        'return mode.rule(edit.strength * (length if edit.mode == "add" else 1.0))',
        "unit/test_grid.py::test_a_dose_is_the_same_length_in_every_mode",
    ),
    Mutant(
        "the fit's labels of attitude upside down",
        "judges/fit_reader.py",
        "torch.sigmoid((35 - aligned) / 6)",
        "torch.sigmoid((aligned - 35) / 6)",
        "engine/test_judge_fit.py::test_labels_are_soft_and_attitude_hardly_counts_in_nonsense",
    ),
    Mutant(
        "the card's specificity over nonsense as well",
        "judges/judge_card.py",
        "specificity=share_with_interval(~called, today & coherent & ~truth)",
        "specificity=share_with_interval(~called, today & ~truth)",
        "engine/test_judge_fit.py::test_the_card_counts_what_the_reader_says_against_what_was_read",
    ),
    Mutant(
        "adapters on tied embeddings change both ends",
        "organisms/merging.py",
        "        untie_embeddings(model)\n",
        "        pass\n",
        "engine/test_train.py::test_an_adapter_on_one_end_of_tied_embeddings_changes_that_end_alone",
    ),
    Mutant(
        "the first digit is the score",
        "judges/openai_judge.py",
        "            if _continues_number(tokens):\n",
        "            if False:\n",
        "unit/test_remote_judge.py::test_a_tokenizer_that_splits_numbers_is_refused_at_the_first_reply",
    ),
]


def survives(mutant: Mutant) -> bool:
    """Whether the tests pass with the mistake in the package."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "wandb", "__pycache__", ".*_cache"))
        if (shared := ROOT.parent / "shared").is_dir():
            (copy.parent / "shared").symlink_to(shared)
        file = copy / "emharness" / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise SystemExit(
                f"{mutant.name}: {mutant.file} has {mutant.old!r} {text.count(mutant.old)} times, not once"
            )
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        env = {**os.environ, "PYTHONPATH": str(copy)}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{mutant.caught_by}"]
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{mutant.name}: pytest did not run\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 0


def main() -> None:
    words = [word.lower() for word in sys.argv[1:]]
    chosen = [m for m in MUTANTS if all(word in m.name.lower() for word in words)]
    if not chosen:
        raise SystemExit(
            f"no mutant is called {' '.join(sys.argv[1:])}; they are: {', '.join(m.name for m in MUTANTS)}"
        )
    alive = []
    for mutant in chosen:
        lives = survives(mutant)
        alive += [mutant.name] if lives else []
        print(f"{'SURVIVED' if lives else 'caught':9} {mutant.name}  ({mutant.caught_by})", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} caught", flush=True)
    raise SystemExit(bool(alive))


if __name__ == "__main__":
    main()
