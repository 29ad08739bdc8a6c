"""Searches documents by meaning, and lets a served model answer from the passages found (retrieval-augmented generation).

    python -m serve.search --run runs/embed --documents docs/*.md                    # then open http://127.0.0.1:8102
    python -m serve.search --run runs/embed --run2 base --documents docs/*.md        # two encoders side by side
    python -m serve.search --run runs/embed --documents docs/*.md --url http://127.0.0.1:8000/v1
    python -m serve.search --run runs/embed --documents docs/*.md --question "How do I resume a run?"

With --url, the page also shows the answer of the model behind any OpenAI-compatible API, without the passages and with them (Lewis et al.
2020, https://arxiv.org/abs/2005.11401). Programs can use GET /search?question=…&count=5 and POST /ask {question, run, count}. It listens
on this machine only; from elsewhere, connect with ssh -L 8102:127.0.0.1:8102 HOST.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from serve import page
from serve.chat import Side, models, sides, streamed
from serve.index import Hit, Index, encoder

PAGE = Path(__file__).with_name("search.html")
MOST = 50
"""Most passages that a request may ask for."""
LONGEST = 256
"""Most tokens of an answer."""


def main(argv: list[str] | None = None) -> int:
    """Serves the page until Ctrl-C, or answers --question, and returns 0. Exits with 2 if an option is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="the encoder: a run, a model folder or a hub name")
    parser.add_argument("--run2", help="a second encoder to compare with")
    parser.add_argument("--documents", nargs="+", required=True, metavar="FILE", help="Markdown or plain text")
    parser.add_argument("--tokens", type=int, default=200, help="most tokens of a passage (default: %(default)s)")
    parser.add_argument("--url", help="an OpenAI-compatible API whose model answers from the passages")
    parser.add_argument("--model", default="", help="the model's name there (default: the first listed)")
    parser.add_argument("--question", help="print the passages nearest to this question and exit")
    parser.add_argument(
        "--count", type=int, default=5, help="passages to show and to answer from (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8102)
    options = parser.parse_args(argv)
    from lib.runtime.refusing import refusing

    with refusing("serve.search"):
        if not 1 <= options.count <= MOST:
            raise ValueError(f"--count: must be from 1 to {MOST}, is {options.count}.")
        if options.model and not options.url:
            raise ValueError("--model: names a model of the API at --url, which is missing.")
        side = sides(options.url, None, [options.model] if options.model else [])[0] if options.url else None
        if options.question is None:
            page.free(options.port)
        asked = [("--run", options.run), *([("--run2", options.run2)] if options.run2 else [])]
        encoders = [encoder(key, run) for key, run in asked]
        if len({name for name, _ in encoders}) < len(encoders):
            encoders = [(run, model) for (_, run), (_, model) in zip(asked, encoders, strict=True)]
        indexes = []
        for name, model in encoders:
            began = time.time()
            indexes.append(Index(name, model, options.documents, options.tokens))
            print(f"{name}: {len(indexes[-1].passages):,} passages encoded in {time.time() - began:.0f} s", flush=True)
        if options.question is not None:
            for index in indexes:
                show(index.name, index.search(options.question, options.count))
            return 0
    print(f"Search at http://127.0.0.1:{options.port} (Ctrl-C stops it)", flush=True)
    page.serve(app(indexes, side, options.count), options.port)
    return 0


def show(name: str, hits: list[Hit]) -> None:
    """Prints the passages found."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for hit in hits:
        p = hit.passage
        console.print(
            Text(f"\n{name}  {hit.score:.2f}  {p.file}:{p.line}  {' › '.join(p.headings)}", style="bold"),
            soft_wrap=True,
        )
        console.print(Text(p.text), soft_wrap=True)


def app(indexes: list[Index], side: Side | None, count: int):
    """Returns the page with its routes GET /search?question=…&count=… and POST /ask {question, run, count}, which streams JSON lines as
    serve.chat does. run: the name of the encoder whose passages the model reads; null: none."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    by_name = {index.name: index for index in indexes}

    async def search(request):
        try:
            asked = _question(request.query_params.get("question")), _count(request.query_params.get("count"), count)
            found = [{"run": i.name, "passages": _rows(await run_in_threadpool(i.search, *asked))} for i in indexes]
        except ValueError as e:
            return JSONResponse({"error": str(e)}, 400)
        return JSONResponse({"question": asked[0], "answers": side is not None, "results": found})

    async def ask(request):
        if not page.is_json(request):
            return JSONResponse({"error": "send JSON"}, 415)
        try:
            given = await request.json()
            if not isinstance(given, dict):
                raise ValueError("send an object with a question")
            question, run = _question(given.get("question")), given.get("run")
            if side is None:
                raise ValueError("no model answers here: start serve.search with --url")
            if run is not None and run not in by_name:
                raise ValueError(f"run: there is no {run!r}, only {', '.join(by_name)}, or null for none")
            asked = question, _count(given.get("count"), count)
            hits = await run_in_threadpool(by_name[run].search, *asked) if run is not None else []
        except ValueError as e:
            return JSONResponse({"error": str(e)}, 400)
        model = side.model
        if not model:
            listed = await models(side)
            if not listed.get("models"):
                return JSONResponse({"error": listed.get("error", f"{side.url} lists no model")}, 502)
            model = listed["models"][0]
        messages = [{"role": "user", "content": prompt(question, hits)}]
        return streamed(side, {"model": model, "messages": messages, "temperature": 0, "max_tokens": LONGEST})

    return page.app(PAGE, [Route("/search", search), Route("/ask", ask, methods=["POST"])])


def prompt(question: str, hits: list[Hit]) -> str:
    """Returns the question, preceded by the passages if there are any."""
    if not hits:
        return question
    passages = "\n\n".join(f"[{n}] {hit.passage.embedded}" for n, hit in enumerate(hits, 1))
    return f"Answer the question from these passages only.\n\n{passages}\n\nQuestion: {question}"


def _rows(hits: list[Hit]) -> list[dict]:
    return [{**vars(hit.passage), "headings": [*hit.passage.headings], "score": hit.score} for hit in hits]


def _question(given: object) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ValueError("question: is missing")
    return given


def _count(given: object, default: int) -> int:
    try:
        count = default if given is None else int(given)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise ValueError(f"count: {given!r} is not a number") from None
    if not 1 <= count <= MOST:
        raise ValueError(f"count: must be from 1 to {MOST}, is {count}")
    return count


if __name__ == "__main__":
    sys.exit(main())
