"""What detectors and stores cost, before anything is run."""
