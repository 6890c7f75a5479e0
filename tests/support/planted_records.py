"""Records with the values that a test is about; everything else is a plausible constant."""

from emharness.results.condition_result import ConditionResult
from emharness.results.experiment_tables import AblationRow, CheckpointRow, LabTransfer
from emharness.results.layer_sweep import LayerSweep, SweepSetting
from emharness.results.run_results import RunResults
from emharness.stats.rates import Rates

SAMPLING = {"temperature": 0.5, "top_k": 40, "top_p": 1.0, "max_new_tokens": 64}
CONFIG = {"base": {"name": "tiny", "sampling": SAMPLING}, "vectors": ["a"]}


def planted_rates(rate=0.1, **changes):
    """600 answers, 500 of them coherent; `rate` of coherent ones with ± 5 points."""
    ends = (0.0, 1.0) if rate is None else (rate - 0.05, rate + 0.05)
    known = {
        "n_responses": 600,
        "n_scored": 600,
        "n_unscored": 0,
        "n_coherent": 500,
        "em_rate": rate,
        "em_ci95": ends,
        "em_wilson95": ends,
        "em_rate_all": rate,
        "em_all_ci95": ends,
        "em_rate_corrected": None,
        "em_corrected_ci95": None,
        "misaligned_at": {},
        "coherent_rate": 0.9,
        "incoherent_rate": 0.1,
        "mean_aligned": 80.0,
        "mean_coherent": 80.0,
    }
    return known | changes


def planted_condition(name, rate=0.1, target="base", **changes):
    return ConditionResult(**{"name": name, "target": target, "judge": "planted"} | planted_rates(rate) | changes)


def planted_sweep(layer, baseline, settings):
    """`settings`: (layer, strength, rate of all answers, coherent enough) each."""
    cells = [
        SweepSetting(**planted_rates(rate), layer=at, strength=strength, coherent_enough=enough)
        for at, strength, rate, enough in settings
    ]
    return LayerSweep(layer=layer, baseline=Rates(**planted_rates(baseline)), cells=tuple(cells))


def planted_results(conditions=(), **changes):
    return RunResults(
        **{"run_key": "0123456789abcdef", "experiment": "main", "config": CONFIG, "conditions": tuple(conditions)}
        | changes
    )


def lab_transfer(from_lab, to_lab, effectiveness, strength, ci95=None, at_equal_odds=1.1):
    return LabTransfer(
        from_lab=from_lab,
        to_lab=to_lab,
        effectiveness=effectiveness,
        strength=strength,
        ci95=ci95,
        undefined=None,
        at_equal_odds=at_equal_odds,
        pairs=1,
    )


def ablation_row(whose, drop, q, drop_random=None):
    return AblationRow(
        removed="r",
        dimensions=1,
        target="t",
        whose=whose,
        em_before=0.5,
        em_after=None,
        coherent_before=1.0,
        coherent_after=1.0,
        undefined=None,
        drop=drop,
        ci95=None,
        p=q,
        q=q,
        drop_random=drop_random,
    )


def checkpoint(organism, step, vector="v", projection=0.0, em_rate=None, em_raised=False):
    return CheckpointRow(
        organism=organism, step=step, vector=vector, projection=projection, em_rate=em_rate, em_raised=em_raised
    )
