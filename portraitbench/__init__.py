"""PortraitBench: a small world of drawn portraits in which identity and style are known exactly."""
