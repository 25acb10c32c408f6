"""Makes ``twistd mailroute`` known to twistd."""

from twisted.application.service import ServiceMaker

mailroute = ServiceMaker(
    "mailroute",
    "mailroute.tap",
    "A mail routing proxy: one name and one port in front of many mail servers.",
    "mailroute",
)
