"""An OpenAI-compatible server with replies chosen by the test, which records its requests."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lib.evals.judging.openai_client import Judge


class Api:
    """An OpenAI-compatible server on loopback with replies chosen by the test: say(prompt) → text, or (status, headers)."""

    def __init__(self, say):
        self.say, self.asked, self.keys, api = say, [], set(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"data": [{"id": "referee"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                api.asked.append(body)
                api.keys.add(self.headers.get("authorization"))
                said = api.say(body["messages"][-1]["content"])
                if isinstance(said, tuple):
                    return self.reply(said[0], {"error": "no"}, said[1])
                message = {"choices": [{"message": {"content": said}}]}
                self.reply(200, message | {"usage": {"prompt_tokens": 100, "completion_tokens": 10}})

            def reply(self, status, content, headers=()):
                data = json.dumps(content).encode()
                self.send_response(status)
                for k, v in dict(headers).items():
                    self.send_header(k, v)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def judge(self, **settings) -> Judge:
        return Judge(self.url, "referee", **{"usd_per_million_in": 1.0, "usd_per_million_out": 2.0} | settings)


def talk(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def better(prompt: str) -> str:
    """A judge that prefers answers with 'good' in them, in either position."""
    a, b = prompt.index("[Assistant A]"), prompt.index("[Assistant B]")
    good = ["good" in prompt[a:b], "good" in prompt[b:]]
    return "Because. " + ("[[C]]" if good[0] == good[1] else "[[A]]" if good[0] else "[[B]]")
