"""How much a client may do in a time: the algorithm, and where its state is kept."""
