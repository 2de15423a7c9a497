"""One file per eval. Each names its protocol version and gives `Config` and `evaluate`."""
