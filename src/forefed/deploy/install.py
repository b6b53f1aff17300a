"""Files that an administrator installs: units for systemd, and a reverse proxy for the server."""

from __future__ import annotations

import sys
from pathlib import Path

NGINX = """\
# Lets sites through to the one interface that asks for their keys, and to nothing else. Starting
# runs (/v1/control) and running them (/v1/runtime) stay on this machine: who may start a run may
# run code on every node.
server {{
    listen 443 ssl;
    server_name {name};
    ssl_certificate "{root}/server.crt";
    ssl_certificate_key "{root}/server.key";
    ssl_protocols TLSv1.2 TLSv1.3;
    client_max_body_size 2g;

    location /v1/fleet/ {{
        proxy_pass https://127.0.0.1:{port};
        proxy_ssl_trusted_certificate "{root}/ca.crt";
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_http_version 1.1;
        proxy_request_buffering off;
        proxy_read_timeout 300s;
    }}
    location / {{
        return 403;
    }}
}}
"""

_UNIT = """\
[Unit]
Description=Forefed {role}
After=network-online.target
Wants=network-online.target

[Service]
User={user}
ExecStart="{python}" -m forefed.cli {role} start "{root}"
Restart=on-failure
RestartSec=5
KillMode=control-group
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths="{root}"
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


def unit(role: str, root: Path) -> str:
    """A systemd unit that runs ``forefed <role> start`` as the folder's owner."""
    try:
        user = root.owner()
    except KeyError:  # an account without a name, as in a container
        user = str(root.stat().st_uid)
    python, folder = (str(x).replace("%", "%%") for x in (sys.executable, root))
    return _UNIT.format(role=role, user=user, python=python, root=folder)
