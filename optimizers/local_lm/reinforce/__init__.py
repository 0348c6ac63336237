"""The DSPy ReinforceJob: stock `dspy.teleprompt.grpo.GRPO` moves the weights of the model that it rolls out on.

    lm = local_lm("evergreen-base", temperature=1.0)
    dspy.configure(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False))
    program.set_lm(lm)
    grpo = GRPO(metric=metric, multitask=True, exclude_demos=True, num_dspy_examples_per_grpo_step=4,
                num_rollouts_per_grpo_step=8, num_train_steps=50, train_kwargs={"loss_type": "dr_grpo", "rank": 8})
    better = grpo.compile(program, trainset=trainset)

Each step trains a copy of the current adapter and keeps it under a name of its own; `lm.model` moves to it in place, as
DSPy has it, so the next rollouts come from the new weights. Adapters of earlier steps are deleted, save checkpoints.
Without GRPO: `job = lm.reinforce(train_kwargs)`, then `job.step(groups, "grpo_chat")` and `job.terminate()`.

What stock GRPO (DSPy 3.4.1) does, and what is done about it here; the number is DSPy's own issue:

    it is no name of `dspy`                                  import it from dspy.teleprompt.grpo
    it refuses its own default, exclude_demos=False          pass True; the rollouts' prompts keep their demonstrations
    an empty `pending_batch_ids` is polled for ever          ids are always pending; once ended, get_status raises
    it sends one group per pending id: with fewer ids than   four times as many ids as groups are offered, and what
      groups the rest waits for a later step, stale by         comes again, in this step or the next, is not trained
      then; with more ids groups are sent again                on again (log: `repeated`)
    short groups are filled up with their own rollouts       an object counts once (log: `fillers`)
    training text is rendered anew from parsed fields,       each rollout is found again in the engine's log and
      without demonstrations, by `adapter=`, else the          trained on as it was asked and said, token by token
      adapter in dspy.settings, else XMLAdapter, while         (rollouts.py says how; log: `unmatched`, with a limit,
      rollouts use the one in settings, else ChatAdapter       `max_unmatched`). Setting an adapter mends the prompt
                                                               alone, and only without demonstrations
    an unreadable answer of a later predictor is paired      as above: found by its raw text
      with the program's inputs, not the predictor's
    a partly readable answer raises TypeError and its        nothing: it never arrives here (#10362). The group is
      rollout is lost; a format reward of 0.0 becomes          short, or that reward is the failure's
      `format_failure_score`
    after an error the LM's cache stays off                  nothing; lm.model is the last whole step's adapter
    `num_generations` is written into train_kwargs           known, and kept in the record

Does not handle: going on with AdamW's moments after the process ended (a new job may start from the last adapter);
rewards per token; rollouts drawn with top_p, top_k or a grammar as what they are (their log probabilities are the full
model's); on a half-precision base, steps of "full" and "top_layers" smaller than that precision's.
"""

from optimizers.local_lm.reinforce.job import LocalReinforceJob
from optimizers.local_lm.reinforce.settings import GRPOSettings

__all__ = ["GRPOSettings", "LocalReinforceJob"]
