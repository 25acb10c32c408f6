"""Configurations for the tests."""

# The contract's own example, but for the protocols that another file would serve.
CONTRACT = r"""
[[certificate]]
chain = "cert.pem"
key = "key.pem"

[[listen]]
protocol = "imap"
endpoint = "tcp:143"
security = "starttls"
cleartext_login = false

[[listen]]
protocol = "imap"
endpoint = "tcp:993:interface=127.0.0.1"
security = "tls"

[backend.east]
imap = "tcp:10.0.0.1:143"
security = "starttls"
verify = "east.example.com"
ca = "ca.pem"
login = "replay"
identity = "native"

[backend.west]
imap = "tcp:west.example.com:993"
security = "tls"

[[route]]
source = "table"
file = "users.txt"

[[route]]
source = "pattern"
match = '(?P<user>.+)@example\.org'
backend = "west"
as = '\g<user>'

[[route]]
source = "default"
backend = "east"

[limits]
login_timeout = 60
backend_timeout = 30
idle_timeout = 1800
session_lifetime = 0
bad_commands = 5
connections = 10000
connections_per_address = 200
"""

SMALL = """\
[[listen]]
protocol = "imap"
endpoint = "tcp:143"
security = "none"

[backend.east]
imap = "tcp:10.0.0.1:143"

[[route]]
source = "default"
backend = "east"
"""
