"""How the bridge reaches others: names, connections, proxies, certificates (docs/decisions/0009)."""
