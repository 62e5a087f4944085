"""Detector backends: one file each, loaded lazily by `consumer.detectors.loader.load_detector`."""
