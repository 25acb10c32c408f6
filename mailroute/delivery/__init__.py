"""Mail that is delivered: one message from a client goes to the backends of its recipients."""

from mailroute.delivery.session import DeliverySession
from mailroute.delivery.terms import DeliveryDoor

__all__ = ["DeliveryDoor", "DeliverySession"]
