"""From a trained run and a scan to a mask, an anomaly map and a case record."""
