"""A server that speaks the OpenAI API without its batches: what a local server may stand before.

As a program it is a process that can be killed: `python upstreams.py PORT N`. It answers N chats
with their last message, and no more, and writes each prompt that it answers to its standard output.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def answer(body):
    """What a model server answers to a chat."""
    asked = body["messages"][-1]["content"]
    message = {"role": "assistant", "content": f"upstream: {asked}"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return {"id": "u-1", "model": body["model"], "choices": [choice], "usage": usage}


class Stub:
    """Answers each call with what `reply(path, body)` gives: a status, content, headers."""

    def __init__(self, reply, port=0):
        self.calls = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.send(200, b'{"object": "list", "data": []}')

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                stub.calls.append((self.path, body, dict(self.headers)))
                made = reply(self.path, body)
                if made is None:  # no answer at all
                    self.close_connection = True
                    return
                self.send(*made)

            def send(self, status, content, headers=()):
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, *args):
                pass  # clients that were told to go away

        self.server = Server(("127.0.0.1", port), Handler)
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def prompts(self):
        return [body["messages"][-1]["content"] for _, body, _ in self.calls]


def say(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main():
    port, n_answers = map(int, sys.argv[1:])
    left = threading.Semaphore(n_answers)

    def reply(_path, body):
        left.acquire()
        say(body["messages"][-1]["content"])
        return 200, answer(body)

    stub = Stub(reply, port)
    say(stub.base_url)
    stub.server.serve_forever()


if __name__ == "__main__":
    main()
