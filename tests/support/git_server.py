"""Git repositories over https on loopback: git's own http-backend behind a few lines of HTTP.

async with git_server(tmp_path) as server:
    server.repository("owner/name").commit({"file": "content"})
    ... clone https://127.0.0.1:port/owner/name.git, with `server.configuration` as the user's ~/.gitconfig
"""

import asyncio
import contextlib
import os
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import trustme


def git(directory: Path, *arguments: str) -> str:
    """Git as the test wants it, whatever the machine's configuration says."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.com",
        "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.com",
    }  # fmt: skip
    done = subprocess.run(
        ["git", *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Repository:
    """One repository with its working tree; the server has it as it is after the last `commit`."""

    def __init__(self, tree: Path, bare: Path) -> None:
        self.tree = tree
        self._bare = bare
        tree.mkdir(parents=True)
        git(tree, "init", "--quiet", "--initial-branch=main")

    def commit(self, files: dict[str, str], branch: str = "main") -> str:
        """Commits files on a branch; returns the commit's id."""
        if branch != git(self.tree, "branch", "--show-current"):
            git(self.tree, "switch", "--quiet", "--create", branch)
        for name, content in files.items():
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        git(self.tree, "add", "--all")
        git(self.tree, "commit", "--quiet", "--message", "more")
        self._publish()
        return git(self.tree, "rev-parse", "HEAD")

    def reference(self, name: str, commit: str) -> None:
        """A reference that no branch is, such as that of a pull request."""
        git(self.tree, "update-ref", name, commit)
        self._publish()

    def _publish(self) -> None:
        if not self._bare.exists():
            self._bare.parent.mkdir(parents=True, exist_ok=True)
            git(self.tree, "init", "--quiet", "--bare", "--initial-branch=main", str(self._bare))
            git(self._bare, "config", "uploadpack.allowAnySHA1InWant", "true")
        git(self.tree, "push", "--quiet", "--force", str(self._bare), "refs/*:refs/*")


class GitServer:
    """`status` answers every request so, while it is set; `hold` keeps every request waiting, then drops it."""

    def __init__(self, directory: Path) -> None:
        self.port = 0
        self.status: int | None = None
        self.hold: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self._directory = directory
        directory.mkdir(exist_ok=True)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self.context)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def repository(self, name: str) -> Repository:
        """A new one, which is at `<url>/<name>.git`."""
        return Repository(self._directory / "trees" / name, self._directory / "bare" / f"{name}.git")

    def configure(self, home: Path) -> None:
        """A ~/.gitconfig by which this server is trusted, and stands in for GitHub."""
        lines = ["[http]", f"sslCAInfo = {self._directory / 'ca.pem'}"]
        lines += [f'[url "{self.url}/"]', "insteadOf = https://github.com/"]
        (home / ".gitconfig").write_text("\n".join(lines) + "\n")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            method, target, _ = first.split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.asked.set()
            if self.hold is not None:
                await self.hold.wait()
                writer.transport.abort()
                return
            if self.status is not None:
                writer.write(f'HTTP/1.1 {self.status} No\r\nwww-authenticate: Basic realm="x"\r\n'.encode())
                writer.write(b"content-length: 0\r\nconnection: close\r\n\r\n")
            else:
                writer.write(await self._backend(method, target, headers, body))
            await writer.drain()
        # Nothing is waited for: a client that is gone does not say goodbye, and TLS would wait for that.
        writer.close()

    async def _backend(self, method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
        path, _, query = target.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self._directory / "bare"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
            "GIT_PROTOCOL": headers.get("git-protocol", ""),
        }  # fmt: skip
        backend = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await backend.communicate(body)
        head, _, content = said.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        status = next((line[8:] for line in lines if line.lower().startswith("status: ")), "200 OK")
        kept = [line for line in lines if not line.lower().startswith("status: ")]
        answer = [f"HTTP/1.1 {status}", *kept, f"content-length: {len(content)}", "connection: close", "", ""]
        return "\r\n".join(answer).encode() + content


@contextlib.asynccontextmanager
async def git_server(directory: Path) -> AsyncIterator[GitServer]:
    """A server on a free port of loopback, with its repositories in `directory`."""
    made = GitServer(directory)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=made.context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
