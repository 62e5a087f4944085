"""Reports the state of the process: metrics, health checks, traces and log lines."""
