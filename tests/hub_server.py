"""A hub on this machine that takes uploads of the Hugging Face client."""

import base64
import http.server
import json
import threading


class HubServer:
    """Answers what creating a repository and uploading a folder ask, until closed.

    Attributes:
        url: its address.
        created: what was said of each repository that was created.
        files: content of the files uploaded, by name.
        tokens: what the requests were signed with.
        status: code that every request is answered with; 0: those of success.
    """

    def __init__(self):
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.status = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if outer.status:
                    return self.send_error(outer.status)
                outer.tokens.add(self.headers.get("Authorization", ""))
                content = json.dumps(outer._answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _answer

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def _answer(self, path: str, body: bytes) -> dict:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            about = self.created[-1]
            return {"url": f"{self.url}/{about['organization']}/{about['name']}"}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            more = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": each["path"], **more} for each in files]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            repository = path.removeprefix("/api/models/").removesuffix("/commit/main")
            url = f"{self.url}/{repository}/commit/{'a' * 40}"
            return {"commitUrl": url, "commitOid": "a" * 40}
        return {}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
