"""The Flower app: the two files that `natfl deploy server` bundles and submits."""
