"""A small hyperparameter search before the run: learning rate, rank and epochs, by Optuna; poor trials are cut."""

from dataclasses import fields, replace
from typing import Any

import optuna

from optimizers.errors import TrainingError
from optimizers.local_lm.training.fit import Task, fit
from optimizers.local_lm.tuning.adapters import drop_adapter

RANKS = (8, 16, 32)


def search(task: Task) -> tuple[Task, list[dict[str, Any]]]:
    """The task with the best settings of `settings.search` trials, and what each trial tried and scored.

    A trial is a whole training run; it is cut when its validation score falls below the median of the others at the
    same step. Raises TrainingError when no trial ends with a score.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=task.settings.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2),
    )

    def objective(trial: optuna.Trial) -> float:
        def on_score(step: int, score: float) -> None:
            trial.report(score, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        chosen = _suggest(task, trial)
        name, score = fit(chosen, on_score)
        drop_adapter(task.weights, task.root, name)
        return score

    study.optimize(objective, n_trials=task.settings.search, catch=())
    tried = [
        {"parameters": trial.params, "score": trial.value, "state": trial.state.name.lower()} for trial in study.trials
    ]
    if not any(row["state"] == "complete" for row in tried):
        raise TrainingError(f"none of {len(tried)} trials ended with a score: {tried}")
    return _suggest(task, optuna.trial.FixedTrial(study.best_params)), tried


def _suggest(task: Task, trial: optuna.trial.BaseTrial) -> Task:
    settings, tuner = task.settings, task.tuner
    rate = trial.suggest_float("learning_rate", settings.learning_rate / 4, settings.learning_rate * 4, log=True)
    settings = replace(settings, learning_rate=rate)
    if settings.max_steps <= 0:
        most = max(1, round(settings.epochs))
        settings = replace(settings, epochs=float(trial.suggest_int("epochs", 1, most)))
    if "rank" in {entry.name for entry in fields(tuner)} and task.parent is None:
        tuner = replace(tuner, rank=trial.suggest_categorical("rank", RANKS))
    return replace(task, settings=settings, tuner=tuner)
