"""nginx: the web server behind a forwarder, which tells whom it takes for the client; and a mail proxy."""

from __future__ import annotations

from pathlib import Path

from servers.certificates import Authority, Certificate
from servers.processes import Foreground, Log, ServerProcess, accepts, free_port
from servers.programs import lacking, program


class _Nginx(Foreground):
    name = "nginx"

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self.folder = folder
        self.log = Log(folder / "output")
        self.ports: dict[str, int] = {}
        self._certificate = certificate

    def _configuration(self) -> str:
        """Choose the ports, and return what is in the configuration's file."""
        raise NotImplementedError

    def _launch(self) -> ServerProcess:
        path = self.folder / "nginx.conf"
        path.write_text(self._configuration())
        command = [program("nginx", "nginx-light"), "-p", str(self.folder), "-c", str(path)]
        return ServerProcess([*command, "-e", str(self.folder / "start.log")], self.log.path)

    def _ready(self) -> bool:
        return all(accepts("127.0.0.1", port) for port in self.ports.values())


_WEB = """\
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


class Nginx(_Nginx):
    """A web server with four ports: in the clear and with TLS, each with a PROXY header or without."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        super().__init__(folder, certificate)
        (folder / "files").mkdir(parents=True)

    def _configuration(self) -> str:
        words = {"plain": "", "tls": " ssl", "proxy": " proxy_protocol", "tls-proxy": " ssl proxy_protocol"}
        self.ports = {name: free_port() for name in words}
        listeners = "\n".join(
            f"        listen 127.0.0.1:{self.ports[name]}{options};" for name, options in words.items()
        )
        return _WEB.format(
            folder=self.folder,
            listeners=listeners,
            chain=self._certificate.chain,
            key=self._certificate.key,
        )


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
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    ssl_certificate {chain};
    ssl_certificate_key {key};
    server {{ listen 127.0.0.1:{plain}; protocol imap; imap_auth plain login; }}
    server {{ listen 127.0.0.1:{tls} ssl; protocol imap; imap_auth plain login; }}
    server {{
        listen 127.0.0.1:{certified} ssl; protocol imap; imap_auth plain login external;
        ssl_verify_client optional; ssl_client_certificate {authority};
        auth_http_pass_client_cert on;
    }}
    server {{
        listen 127.0.0.1:{relayed} proxy_protocol; set_real_ip_from 127.0.0.1;
        protocol imap; imap_auth plain login;
    }}
    server {{ listen 127.0.0.1:{mail}; protocol smtp; smtp_auth none; }}
    server {{ listen 127.0.0.1:{smtp}; protocol smtp; smtp_auth plain login; }}
}}
"""

MODULE = Path("/usr/lib/nginx/modules/ngx_mail_module.so")


class NginxMail(_Nginx):
    """nginx as a mail proxy for IMAP and SMTP, which asks an auth server on a port.

    One port is for clients that have certificates of the authority, one is behind a proxy that sends PROXY
    headers, and one takes mail.
    """

    def __init__(self, folder: Path, certificate: Certificate, auth: int, authority: Authority) -> None:
        super().__init__(folder, certificate)
        self._auth = auth
        self._authority = authority
        folder.mkdir(parents=True)

    def _configuration(self) -> str:
        if not MODULE.exists():
            lacking("nginx's mail module", "tools/install-debian-packages libnginx-mod-mail")
        self.ports = {name: free_port() for name in ("plain", "tls", "certified", "smtp", "relayed", "mail")}
        return _MAIL.format(
            module=MODULE,
            folder=self.folder,
            auth=self._auth,
            authority=self._authority.file,
            chain=self._certificate.chain,
            key=self._certificate.key,
            **self.ports,
        )
