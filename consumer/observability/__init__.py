"""What the program reports about itself: metrics, health, traces and rate-limited log lines."""
