"""nginx: the web server behind a forwarder, which tells whom it takes for the client; and a mail proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from servers.certificates import Certificate
from servers.processes import Log, ServerProcess, accepts, free_port, wait_until
from servers.programs import lacking, program

_CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    set_real_ip_from 127.0.0.0/8;
    real_ip_header proxy_protocol;
    server {{
{listeners}
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate {chain};
        ssl_certificate_key {key};
        location / {{ return 200 "$request_method $uri from $remote_addr, $ssl_protocol\\n"; }}
        location /files/ {{ alias {folder}/files/; }}
    }}
}}
"""


class Nginx:
    """A web server with four ports: in the clear and with TLS, each with a PROXY header or without."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self.folder = folder
        self._certificate = certificate
        self.ports: dict[str, int] = {}
        (folder / "files").mkdir(parents=True)

    def __enter__(self) -> Self:
        words = {"plain": "", "tls": " ssl", "proxy": " proxy_protocol", "tls-proxy": " ssl proxy_protocol"}
        self.ports = {name: free_port() for name in words}
        listeners = "\n".join(
            f"        listen 127.0.0.1:{self.ports[name]}{options};" for name, options in words.items()
        )
        path = self.folder / "nginx.conf"
        path.write_text(
            _CONFIGURATION.format(
                folder=self.folder,
                listeners=listeners,
                chain=self._certificate.chain,
                key=self._certificate.key,
            )
        )
        command = [program("nginx", "nginx-light"), "-p", str(self.folder), "-c", str(path)]
        self._process = ServerProcess(
            [*command, "-e", str(self.folder / "start.log")], self.folder / "output"
        )
        try:
            wait_until("nginx's start", self._runs)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.stop()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()

    def _runs(self) -> bool:
        assert self._process.running(), Log(self.folder / "output").text()
        return all(accepts("127.0.0.1", port) for port in self.ports.values())


_MAIL = """\
load_module {module};
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
mail {{
    auth_http 127.0.0.1:{auth}/auth;
    auth_http_header X-Auth-Key "a key";
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {chain};
    ssl_certificate_key {key};
    server {{ listen 127.0.0.1:{plain}; protocol imap; imap_auth plain login; }}
    server {{ listen 127.0.0.1:{tls} ssl; protocol imap; imap_auth plain login; }}
}}
"""

MODULE = Path("/usr/lib/nginx/modules/ngx_mail_module.so")


class NginxMail:
    """nginx as a mail proxy for IMAP, which asks an auth server on a port."""

    def __init__(self, folder: Path, certificate: Certificate, auth: int) -> None:
        self.folder = folder
        self._certificate = certificate
        self._auth = auth
        self.ports: dict[str, int] = {}
        folder.mkdir(parents=True)

    def __enter__(self) -> Self:
        if not MODULE.exists():
            lacking("nginx's mail module", "tools/install-debian-packages libnginx-mod-mail")
        self.ports = {name: free_port() for name in ("plain", "tls")}
        path = self.folder / "nginx.conf"
        path.write_text(
            _MAIL.format(
                module=MODULE,
                folder=self.folder,
                auth=self._auth,
                chain=self._certificate.chain,
                key=self._certificate.key,
                **self.ports,
            )
        )
        command = [program("nginx", "nginx-light"), "-p", str(self.folder), "-c", str(path)]
        self._process = ServerProcess(
            [*command, "-e", str(self.folder / "start.log")], self.folder / "output"
        )
        try:
            wait_until("nginx's start", self._runs)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.stop()

    def _runs(self) -> bool:
        assert self._process.running(), Log(self.folder / "output").text()
        return all(accepts("127.0.0.1", port) for port in self.ports.values())
