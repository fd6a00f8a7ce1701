"""freeze(): a snapshot of a network that runs each layer by its fastest kernel."""
