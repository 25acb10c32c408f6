"""Looking at a backend before mail depends on it: what it says, proves and takes, short of any login."""

from mailroute.probe.examine import examine, report
from mailroute.probe.report import Report
from mailroute.probe.show import lines
from mailroute.probe.target import Misuse, find

__all__ = ["Misuse", "Report", "examine", "find", "lines", "report"]
