"""A draft for speculative decoding: a few layers of the target, healed on the target's own answers, and its certificate.

The draft guesses k tokens, the target reads them all at once and keeps the right ones, so that answers are the target's and come
sooner (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192; lib/speculative.py). Training is jobs/distill.py's; what the
certificate holds is in lib/draft.py. Exits 1 where an answer with the draft is not the answer without it.

    python jobs/draft.py --config configs/draft.yaml --model.base runs/quickstart/sft --train.teacher runs/quickstart/sft
"""

from jobs.distill import build
from lib import lessons
from lib.stage.driver import main
from lib.stage.stage import Stage


def check(job, args):
    lessons.check(job, args)
    if args.certify_prompts < 1:
        raise ValueError(f"train.certify_prompts: must be 1 or more, is {args.certify_prompts}.")


def after(run, job):
    from lib.draft import certify

    return certify(run, job)


STAGE = Stage(
    name="draft",
    config="lib.draft:DraftConfig",
    rows=("chat",),
    names={"teacher": "causal_lm"},
    check=check,
    build=build,
    after=after,
)

if __name__ == "__main__":
    main(STAGE)
