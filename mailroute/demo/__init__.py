"""Two mail servers and mailroute in front of them, in one process: for trying it with nothing else at hand.

``twistd -n mailroute --demo`` runs it.  The servers speak twisted.mail's IMAP
and keep their mail in memory.
"""

from mailroute.demo.service import make_demo_service

__all__ = ["make_demo_service"]
