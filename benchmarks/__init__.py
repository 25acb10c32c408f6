"""What a session through mailroute costs, measured beside other proxies."""
