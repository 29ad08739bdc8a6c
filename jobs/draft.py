"""Draft for speculative decoding: a few layers of the target, healed on the target's own answers, then certified.

The draft proposes k tokens; the target checks all of them in one pass and keeps the correct ones, so the answers are still the
target's but arrive sooner (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192; lib/generation/speculative.py). Training works as in
jobs/distill.py; lib/methods/speculative_draft.py describes the certificate. Exits with 1 if any answer with the draft differs from the one without it.

    python jobs/draft.py --config configs/draft.yaml --model.base runs/quickstart/sft --train.teacher runs/quickstart/sft
"""

from jobs.distill import build
from lib.methods.distillation import lessons
from lib.stage.driver import main
from lib.stage.stage import Stage


def check(job, args):
    lessons.check(job, args)
    if args.certify_prompts < 1:
        raise ValueError(f"train.certify_prompts: must be 1 or more, is {args.certify_prompts}.")


def after(run, job):
    from lib.methods.speculative_draft import certify

    return certify(run, job)


STAGE = Stage(
    name="draft",
    config="lib.methods.speculative_draft:DraftConfig",
    rows=("chat",),
    names={"teacher": "causal_lm"},
    check=check,
    build=build,
    after=after,
)

if __name__ == "__main__":
    main(STAGE)
