"""Experiments: each a file of two pure functions, `cells` (what must be generated) and `read` (what it says)."""

from emharness.experiments import ablation, dose_response, main, monitor, paper, seeds, transfer
from emharness.experiments.scope import Experiment

READING = 6  # raise when an experiment reads the same answers differently
EXPERIMENTS: dict[str, Experiment] = {
    "main": main.EXPERIMENT,
    "dose_response": dose_response.EXPERIMENT,
    "transfer": transfer.EXPERIMENT,
    "ablation": ablation.EXPERIMENT,
    "seeds": seeds.EXPERIMENT,
    "monitor": monitor.EXPERIMENT,
    "paper": paper.EXPERIMENT,
}
