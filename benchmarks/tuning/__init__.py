"""What tuning costs beside its calls, and what the improvement loop gains on the demo's data."""
