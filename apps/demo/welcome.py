"""The page that there is from the first moment on: it tells how far the start is, and goes on to the demo.

Gradio, Diffusers and the models take seconds to load; nothing here waits for them.
"""

from __future__ import annotations

import os
import socket
import threading
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from string import Template

FIRST_PORT, PORTS = 7860, 100
"""Gradio's own."""
MARK = "dattn-starting"
"""A header by which the page tells our answers from the demo's."""
PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>dattn: see what attention does</title>
<style>
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1.5rem;
  background: light-dark(#ffffff, #0f172a); color: light-dark(#1e293b, #e2e8f0); }
h1 { font-size: 1.4rem; }
[role=status] { color: light-dark(#4338ca, #a5b4fc); font-weight: 600; }
</style></head>
<body><h1>dattn: see what attention does</h1>
<p role="status">$stage</p>
<p>The demo takes the place of this page as soon as it is there.</p>
<noscript><p>It needs JavaScript.</p></noscript>
<script>
const told = document.querySelector("[role=status]");
let missed = 0;
async function look() {
  try {
    const answer = await fetch("stage", { cache: "no-store" });
    if (!answer.headers.has("$mark")) return location.reload();
    const stage = await answer.text();
    if (told.textContent !== stage) told.textContent = stage;
    missed = 0;
  } catch {
    if (++missed === 40) told.textContent = "The demo has ended; its terminal tells why.";
  }
  setTimeout(look, 500);
}
setTimeout(look, 500);
</script></body></html>
""")


class _Answers(BaseHTTPRequestHandler):
    """The page for browsers; whoever else asks is told to come again."""

    server: Welcome
    timeout = 10  # seconds, for those who connect and say nothing

    def do_GET(self) -> None:
        stage = self.server.stage
        if self.path == "/stage":
            self._answer(200, "text/plain", stage)
        elif "text/html" in self.headers.get("Accept", ""):
            self._answer(200, "text/html", PAGE.substitute(stage=escape(stage), mark=MARK))
        else:
            self._answer(503, "text/plain", f"{stage}; ask again in some seconds\n")

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(body), "Cache-Control": "no-store", MARK: 1,
        }.items():  # fmt: skip
            self.send_header(name, str(value))
        if status == 503:
            self.send_header("Retry-After", "5")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the terminal is for the demo."""


class Welcome(ThreadingHTTPServer):
    """Serves the page until ``leave``; the demo takes its port then.

    Args:
        host: address to serve on.
        port: None takes the first free one from Gradio's first on.

    Attributes:
        stage: what the start is at, for visitors to read.

    Raises:
        OSError: the port is taken, or no such address is this machine's.
    """

    daemon_threads, allow_reuse_port = True, False
    stage = "Starting"

    def __init__(self, host: str, port: int | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        first = int(os.getenv("GRADIO_SERVER_PORT", FIRST_PORT))
        self._host = host.strip("[]")
        self._bind(range(first, first + PORTS) if port is None else [port])
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def _bind(self, ports: range | list[int]) -> None:
        for port in ports:
            try:
                super().__init__((self._host, port), _Answers)
            except OSError as error:
                if port == ports[-1]:
                    what = "is taken or not yours" if len(ports) == 1 else "and all before it are taken"
                    raise OSError(f"{self._host}, port {port} {what} ({error}): choose another with --port") from None
            else:
                return

    def server_bind(self) -> None:
        """Without ``HTTPServer``'s question for the machine's name, which may take long."""
        TCPServer.server_bind(self)

    @property
    def port(self) -> int:
        """Where it is served."""
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        """The same, for browsers."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self.port}"

    def leave(self) -> None:
        """End, and free the port; once more does nothing."""
        self.shutdown()
        self.server_close()
