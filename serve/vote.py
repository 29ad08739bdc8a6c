"""A web page for blind comparisons of two runs' answers, by keyboard. The votes can train a reward model directly.

    python -m serve.vote --run runs/eval --pair sft dpo          # then open http://127.0.0.1:8100
    python -m serve.vote --run runs/eval --pair sft dpo --results

The answers come from an evaluation (its reports/examples.jsonl). After a restart, voting continues where it stopped. The page
listens on this machine only; from elsewhere, connect with ssh -L 8100:127.0.0.1:8100 HOST.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lib.run import Run
from serve import page
from serve.votes import Box, ballots

PAGE = Path(__file__).with_name("vote.html")


def main(argv: list[str] | None = None) -> int:
    """Serves the page until Ctrl-C, or prints the results, and returns 0. Exits with 2 if an option is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.vote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", default="runs/eval", help="the evaluation whose answers are compared")
    parser.add_argument("--pair", nargs=2, required=True, metavar=("A", "B"), help="two of its runs")
    parser.add_argument("--task", help="only the answers to this task (default: all)")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--results", action="store_true", help="print the votes so far and exit")
    options = parser.parse_args(argv)
    from lib.runtime.refusing import refusing

    with refusing("serve.vote"):
        run, pair = Run(options.run), tuple(options.pair)
        box = Box(run, pair, ballots(run, pair, options.task))
        if not options.results:
            page.free(options.port)
    if not options.results:
        print(
            f"{len(box.ballots)} pairs to compare at http://127.0.0.1:{options.port} (Ctrl-C stops it; votes are kept)",
            flush=True,
        )
        page.serve(app(box), options.port)
    results(box)
    return 0


def app(box: Box):
    """Returns the page with its routes GET /next?rater=NAME and POST /vote {rater, id, vote}."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def following(request):
        return JSONResponse(await run_in_threadpool(_shown, box, request.query_params.get("rater", "")))

    async def vote(request):
        if not page.is_json(request):
            return JSONResponse({"error": "send JSON"}, 415)
        try:
            given = await request.json()
            rater, ballot, choice = (str(given[k]) for k in ("rater", "id", "vote"))
            await run_in_threadpool(box.vote, rater, ballot, choice)
        except (ValueError, KeyError, TypeError) as e:
            return JSONResponse({"error": str(e)}, 400)
        return JSONResponse(await run_in_threadpool(_shown, box, rater))

    return page.app(PAGE, [Route("/next", following), Route("/vote", vote, methods=["POST"])])


def _shown(box: Box, rater: str) -> dict:
    """Returns the page's data for the rater's next ballot, without the runs' names."""
    with box.lock:
        done = sum(who == rater for who, _ in box.votes)
        found = {"done": done, "total": len(box.ballots), "last": box.last(rater), "ballot": None}
        ballot = box.next(rater)
    if ballot:
        sides = ballot.answers if box.first_on_left(rater, ballot.id) else ballot.answers[::-1]
        found["ballot"] = {"id": ballot.id, "prompt": ballot.prompt, "left": sides[0], "right": sides[1]}
    return found


def results(box: Box) -> None:
    """Prints how often the second run won, how well the raters agree, and the next command."""
    from lib.runtime.console import show

    if not (won := box.win_rate()):
        print("No votes yet.")
        return
    a, b = box.pair
    ends = f"{won.value:.0%} [{won.low:.0%}–{won.high:.0%}]"
    rows = [
        ("votes", f"{len(box.votes)} of {len({r for r, _ in box.votes})} raters, skipped ones included"),
        (f"{b} over {a}", f"{ends}, n={won.n}"),
    ]
    if agreed := box.agreement():
        rows.append(
            ("agreement", f"Fleiss' kappa {agreed[0]:.2f} on the {agreed[1]} pairs that the most raters judged")
        )
    pairs = box.run.at("pairs.jsonl")
    rows.append(("pairs", f"{len(box.pairs())} in {pairs}"))
    show(rows, "votes")
    print(f"Next:\n  python jobs/reward.py --config configs/reward.yaml --data.source {pairs} --run runs/reward-votes")


if __name__ == "__main__":
    sys.exit(main())
