"""Runs the model: the detector protocol and its backends.

Each backend has its own file. `consumer.detectors.loader.load_detector` imports only the one that is used.
"""
