"""An experiment: recipe, trainings, answers of every system, result; what compare, ablate, blame and report share."""
