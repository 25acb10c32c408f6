"""Sockets that are served without a Twisted transport each.

The `hub` is one reader of the reactor for all of them.  `transport` is what a
protocol sees of such a socket: the interfaces of Twisted's own transports.
`acceptor` makes them of connections that come, `dialler` of those that are
made.  `openssl` is TLS on them.
"""
