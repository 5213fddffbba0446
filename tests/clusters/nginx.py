"""A real nginx (Debian's package) in front of a job server: a path prefix, and basic auth."""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import free_port
from tests.waiting import wait_until

USER, PASSWORD = "alice", "open sesame"

NGINX_CONF = """
daemon off;
error_log stderr;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 10m;
        location /team-a/ray/ {{
            auth_basic "team a";
            auth_basic_user_file {folder}/users;
            proxy_pass {url}/;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Authorization "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_buffering off;
        }}
    }}
}}
"""


@contextlib.contextmanager
def running_nginx(url: str, folder: Path) -> Iterator[str]:
    """Pass requests on to the job server at `url`. Yields the address for clients."""
    executable = shutil.which("nginx") or "/usr/sbin/nginx"
    port = free_port()
    (folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
    (folder / "nginx.conf").write_text(NGINX_CONF.format(folder=folder, port=port, url=url))
    folder.chmod(0o755)
    log = (folder / "out").open("wb")
    with log:
        process = subprocess.Popen(
            [executable, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "user root;"],
            stderr=log,
        )
    try:
        wait_until((folder / "nginx.pid").exists, (folder / "out").read_text(), 10)
        yield f"http://127.0.0.1:{port}/team-a/ray"
    finally:
        process.terminate()
        process.wait(10)


def basic() -> dict[str, str]:
    """Return the header that lets a client in."""
    return {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
