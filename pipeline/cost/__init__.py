"""Cost of detectors and stores, estimated before anything is run."""
