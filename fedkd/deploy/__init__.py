"""Real deployments: certificates and keys, what every machine needs, checks of a machine, and what went wrong."""
