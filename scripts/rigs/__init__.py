"""What `scripts/bench gate` is measured with: a cheap provider, a cheap client, and nginx as a yardstick."""
