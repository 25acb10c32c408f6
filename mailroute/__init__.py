"""mailroute: a mail routing proxy, one name and one port in front of many mail servers."""
