"""The words of the house: events, deliveries, identities, errors and ports. Standard library only."""
