"""Supervised fine-tuning as a DSPy optimizer: stock BootstrapFinetune, its teacher under the student's prompts."""

from typing import Any

import dspy
from dspy.teleprompt import BootstrapFinetune

from optimizers.local_lm.provider import LocalProvider
from optimizers.stock import SteadyFinetune


class InstructTune(SteadyFinetune):
    """BootstrapFinetune whose teacher answers under the student's own instructions and demonstrations.

    Stock BootstrapFinetune renders its training rows with the teacher's prompts, so a student compiled by a prompt
    optimizer before it would be trained under one prompt and served under another. Everything else is as in
    SteadyFinetune: examples that fail are left out and counted.
    """

    def compile(
        self, student: dspy.Module, trainset: list[dspy.Example], teacher: dspy.Module | list[dspy.Module] | None = None
    ) -> dspy.Module:
        """As SteadyFinetune.compile; the teacher's signatures and demonstrations become the student's.

        A teacher with a method `follow` is given the student first, to take over what else of it shows in prompts.
        """
        teachers = teacher if isinstance(teacher, list) else [teacher]
        for each in teachers:
            if hasattr(each, "follow"):
                each.follow(student)
            for theirs, own in zip(each.predictors() if each else [], student.predictors(), strict=False):
                theirs.signature = own.signature
                theirs.demos = [] if self.exclude_demos else own.demos
        return super().compile(student, trainset=trainset, teacher=teacher)

    @staticmethod
    def finetune_lms(finetune_dict: dict[Any, dict[str, Any]]) -> dict[Any, dspy.LM]:
        """As BootstrapFinetune.finetune_lms; Ctrl-C ends the training too, which would run on in its thread."""
        providers = [job["lm"].provider for job in finetune_dict.values()]
        try:
            return BootstrapFinetune.finetune_lms(finetune_dict)
        except KeyboardInterrupt:
            for provider in providers:
                if isinstance(provider, LocalProvider):
                    provider.stop()
            raise
