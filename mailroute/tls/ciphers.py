"""Which ciphers a server prefers, by the hardware at both ends.

The key exchange is left to OpenSSL, which prefers X25519, with ML-KEM beside
it where both ends have that: pyOpenSSL can only name a single elliptic curve.
"""

from __future__ import annotations

import re
from pathlib import Path

from OpenSSL import SSL

_PRIORITIZE_CHACHA = 1 << 21
"""OpenSSL's SSL_OP_PRIORITIZE_CHACHA, which pyOpenSSL does not name.

A client that puts ChaCha20 first has no AES in its hardware, and gets its wish.
"""

OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE | _PRIORITIZE_CHACHA


def aes_in_hardware(cpuinfo: str) -> bool:
    """Tell from /proc/cpuinfo whether the processor computes AES; one that lists no features may."""
    features = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return features is None or "aes" in features[1].split()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# AES with 128 bits before 256: its handshake is faster as well (SHA-256), and nobody can break either.
_TLS_1_3 = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
_TLS_1_2 = ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"]
if not aes_in_hardware(_cpuinfo()):
    _TLS_1_3.insert(0, _TLS_1_3.pop())
    _TLS_1_2.insert(0, _TLS_1_2.pop())

TLS_1_3 = ":".join(_TLS_1_3).encode("ascii")
"""The cipher suites of TLS 1.3, the preferred one first."""

TLS_1_2 = ":".join(
    f"ECDHE-{signature}-{cipher}" for signature in ("ECDSA", "RSA") for cipher in _TLS_1_2
).encode("ascii")
"""The cipher suites of TLS 1.2: with forward secrecy, and an ECDSA certificate before an RSA one."""
