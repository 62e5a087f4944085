"""Publishes outcomes and commits offsets, in the two modes of the option `delivery`."""
