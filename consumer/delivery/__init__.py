"""Publish and commit, in the two ways that the option `delivery` offers: `at_least_once` and `exactly_once`."""
