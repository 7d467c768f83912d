"""What this package costs and bears, measured beside its peers; see docs/benchmarks.md."""
