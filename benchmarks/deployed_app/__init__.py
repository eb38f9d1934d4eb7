"""The Flower app of `benchmarks.deployed`; the deployment's own relay is bundled beside it."""
