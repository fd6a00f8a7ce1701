"""freeze(): a snapshot of a network, each layer by its fastest kernel."""
